"""Transcripts before and after edits, and what is counted in them."""

import math
import re
from collections.abc import Callable
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from whisper.normalizers.basic import BasicTextNormalizer

from hooked_whisper.digits import recordings
from hooked_whisper.errors import AudioError, HookNameError, InterventionError, SiteError
from hooked_whisper.interventions.ablation import SkipLayer, ZeroAblation
from hooked_whisper.interventions.attention_edits import CutAttention
from hooked_whisper.interventions.edits import Interventions
from hooked_whisper.interventions.sites import Site
from hooked_whisper.interventions.transcripts import (
    TranscriptComparison,
    compare_transcripts,
    mark_words,
)

# openai-whisper leaves the file of its vocabulary to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning")

FIRST, SECOND = recordings()[:2]
CROSS = "decoder.blocks.*.cross_attn.hook_attn_scores"
LAST = CutAttention(CROSS, window_s=(FIRST.words[2].start_s, FIRST.words[2].end_s))


def comparison(**changes: Any) -> TranscriptComparison:
    values = {
        "recordings": ("a.flac", "b.flac"),
        "before": ("one two three four", ""),
        "after": {
            "mild": ("one two three", ""),
            "harsh": ("so so so so so", "thanks for watching"),
        },
        "references": ("one two three four", ""),
        "is_silent": (False, True),
        **changes,
    }
    return TranscriptComparison(**values)


def test_rows_count_words():
    rows = comparison().rows()
    assert [(row["recording"], row["edits"]) for row in rows] == [
        (name, edits) for name in ("a.flac", "b.flac") for edits in ("none", "mild", "harsh")
    ]
    assert [row["word_error_rate"] for row in rows[:3]] == [0, 0.25, 1.25]
    assert [row["change"] for row in rows[:3]] == [0, 0.25, 1.25]
    assert [row["invented_words"] for row in rows] == [0, 0, 0, 0, 0, 3]
    assert rows[2]["repetition"] == pytest.approx(2 / 3)


def test_an_empty_reference_has_no_error_rate_but_for_an_empty_text():
    rates = [row["word_error_rate"] for row in comparison().rows()[3:]]
    assert rates[:2] == [0, 0] and math.isnan(rates[2])


def test_without_references_the_change_is_what_there_is():
    rows = comparison(references=(None, None)).rows()
    assert all(math.isnan(row["word_error_rate"]) for row in rows)
    assert rows[1]["change"] == 0.25


def test_texts_are_normalized_before_they_are_compared():
    result = comparison(references=("One, two; THREE four!", ""), normalize=False)
    assert result.rows()[0]["word_error_rate"] == 1
    result = comparison(
        references=("One, two; THREE four!", ""),
        normalize=lambda text: "".join(c for c in text.lower() if c.isalpha() or c == " "),
    )
    assert result.rows()[0]["word_error_rate"] == 0


def test_it_prints_as_a_table():
    assert str(comparison()).splitlines() == [
        "recording  edits  text                 WER   change  invented",
        "a.flac     none   one two three four   0.00  0.00    0",
        "a.flac     mild   one two three        0.25  0.25    0",
        "a.flac     harsh  so so so so so       1.25  1.25    0",
        "b.flac     none                        0.00  0.00    0",
        "b.flac     mild                        0.00  0.00    0",
        "b.flac     harsh  thanks for watching  -     -       3",
    ]


def test_columns_with_nothing_to_tell_are_left_out():
    result = comparison(references=(None, None), is_silent=(False, False))
    assert str(result).splitlines()[0].split() == ["recording", "edits", "text", "change"]


def test_it_is_a_dataframe():
    frame = comparison().to_dataframe()
    assert list(frame.columns) == [
        "recording",
        "edits",
        "text",
        "reference",
        "word_error_rate",
        "change",
        "invented_words",
        "repetition",
    ]
    assert frame.groupby("edits")["invented_words"].sum().to_dict() == {
        "none": 0,
        "mild": 0,
        "harsh": 3,
    }


def test_transcribing_without_and_with_edits(digits_model, capsys):
    sets = {"last digit": LAST, "two": [LAST, SkipLayer("decoder", 0)]}
    result = compare_transcripts(
        digits_model,
        FIRST.path,
        sets,
        FIRST.text,
        language="en",
        without_timestamps=True,
        sample_len=8,
    )
    assert result.recordings == (FIRST.path.name,)
    assert result.before == (FIRST.text,)
    for name, edits in (("last digit", [LAST]), ("two", sets["two"])):
        with Interventions(digits_model, *edits):
            text = digits_model.transcribe(
                str(FIRST.path),
                temperature=0,
                language="en",
                without_timestamps=True,
                sample_len=8,
            )["text"]
        assert result.after[name] == (text.strip(),)
    assert result.after["last digit"][0].split()[:2] == ["three", "one"]
    rates = [row["word_error_rate"] for row in result.rows()]
    assert rates[0] == 0
    assert rates[1] == jiwer.wer(FIRST.text, result.after["last digit"][0]) > 0
    assert "transcripts: 100%" in capsys.readouterr().err
    assert not any(point.is_hooked for point in digits_model.hook_dict.values())


def test_windows_go_side_by_side(digits_model):
    mel = digits_model.to_mel([FIRST.path, SECOND.path])
    edit = ZeroAblation(Site("decoder.blocks.*.hook_cross_attn_out"))
    result = compare_transcripts(
        digits_model, mel, edit, [FIRST.text, None], max_new_tokens=8, progress=False
    )
    assert result.recordings == ("0", "1")
    assert result.before == (FIRST.text, SECOND.text)
    with Interventions(digits_model, edit):
        assert list(result.after["edited"]) == digits_model.generate(mel, 8).texts
    assert result.rows()[1]["word_error_rate"] > 0.5


class Scribe:
    """A model that writes what its recordings are said to hold, without the time it takes."""

    def __init__(self, model: Any, texts: list[str]) -> None:
        self.model, self.texts, self.heard = model, texts, []

    def __call__(self, audio: Any, **options: Any) -> dict[str, str]:
        self.heard.append((audio, options))
        hooked = any(point.is_hooked for point in self.model.hook_dict.values())
        return {"text": f" {self.texts[len(audio) % len(self.texts)]}{' again' if hooked else ''}"}


@pytest.fixture
def scribe(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> Scribe:
    scribe = Scribe(tiny_model, ["zero", "one"])
    monkeypatch.setattr(
        type(tiny_model), "transcribe", lambda self, *args, **kw: scribe(*args, **kw)
    )
    return scribe


EDIT = ZeroAblation(Site("encoder.blocks.0.hook_mlp_out"))


def test_text_for_silence_is_counted(tiny_model, scribe):
    loud = 0.1 * torch.ones(16001)
    audio = [loud, np.zeros(16000, np.float32), (np.zeros(8000, np.int16), 8000), loud]
    result = compare_transcripts(tiny_model, audio, EDIT, [None, None, None, " "], progress=False)
    assert result.is_silent == (False, True, True, True)
    invented = [row["invented_words"] for row in result.rows()]
    assert invented == [0, 0, 1, 2, 1, 2, 1, 2]
    assert result.after["edited"][0] == "one again"


def test_a_silent_window_is_known(digits_model):
    mel = digits_model.to_mel([torch.zeros(16000), 0.1 * torch.randn(16000)], rate_hz=16000.0)
    result = compare_transcripts(digits_model, mel, EDIT, max_new_tokens=1, progress=False)
    assert result.is_silent == (True, False)


def test_options_and_rates_arrive(tiny_model, scribe):
    compare_transcripts(
        tiny_model, torch.ones(8000) / 2, [EDIT], rate_hz=8000, beam_size=3, progress=False
    )
    audio, options = scribe.heard[0]
    assert abs(len(audio) - 16000) < 2
    assert options == {"temperature": 0.0, "beam_size": 3}
    compare_transcripts(tiny_model, audio, EDIT, temperature=0.4, progress=False)
    assert scribe.heard[-1][1] == {"temperature": 0.4}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "Ctrl-C"])
def test_nothing_is_left_behind(tiny_model, monkeypatch, error):
    def fail(self, *args, **kwargs):
        if any(point.is_hooked for point in self.hook_dict.values()):
            raise error("stop here")
        return {"text": ""}

    monkeypatch.setattr(type(tiny_model), "transcribe", fail)
    with pytest.raises(error, match="stop here"):
        compare_transcripts(tiny_model, torch.ones(16000), EDIT, progress=False)
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


@pytest.mark.parametrize(
    ("audio", "edits", "references", "error", "message"),
    [
        ([torch.ones(16000)], {}, None, InterventionError, "no edits to compare"),
        ([torch.ones(16000)], [], None, InterventionError, r"'edited' is \[\]; it must be an edit"),
        ([torch.ones(16000)], {"a": "x"}, None, InterventionError, "'x' is no edit"),
        ([torch.ones(16000)], {"a": 3}, None, InterventionError, "'a' is 3"),
        ([torch.ones(16000)], {"none": EDIT}, None, InterventionError, "the run without edits"),
        ([torch.ones(16000)], ZeroAblation(Site("x.hook")), None, HookNameError, "'x.hook'"),
        ([torch.ones(16000)], SkipLayer("encoder", 9), None, SiteError, "no encoder layer 9"),
        ([torch.ones(16000)], EDIT, ["a", "b"], InterventionError, "2 references and 1 recordings"),
        ([], EDIT, None, AudioError, "the list of audio is empty"),
        ("nowhere.flac", EDIT, None, AudioError, "nowhere.flac"),
    ],
    ids=[
        "no sets",
        "no edits",
        "text",
        "number",
        "name",
        "hook",
        "layer",
        "references",
        "no audio",
        "no file",
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    tiny_model, scribe, without_shape_checks, audio, edits, references, error, message
):
    with pytest.raises(error, match=message):
        compare_transcripts(tiny_model, audio, edits, references, progress=False)
    assert scribe.heard == []


@pytest.mark.parametrize(
    ("before", "after", "marked"),
    {
        "same": ("three one four", "three one four", "three one four"),
        "replaced": (
            "three one four",
            "three nine four",
            "three <del>one</del> <ins>nine</ins> four",
        ),
        "left out": ("three one four", "three four", "three <del>one</del> four"),
        "put in": ("three four", "three one four", "three <ins>one</ins> four"),
        "at both ends": ("a b c", "b c d", "<del>a</del> b c <ins>d</ins>"),
        "all": ("so it goes", "no", "<del>so</del> <ins>no</ins> <del>it goes</del>"),
        "from nothing": ("", "thank you", "<ins>thank you</ins>"),
        "to nothing": ("thank you", "", "<del>thank you</del>"),
        "nothing": ("", "", ""),
        "html": ("<b> &", "<i> &", "<del>&lt;b&gt;</del> <ins>&lt;i&gt;</ins> &amp;"),
    }.values(),
)
def test_words_lost_are_struck_out_and_new_ones_underlined(before: str, after: str, marked: str):
    assert mark_words(before, after) == marked
    n_changed = round(jiwer.wer(before, after) * len(before.split())) if before else None
    lost, found = (
        len(" ".join(re.findall(f"<{tag}>(.*?)</", marked)).split()) for tag in ("del", "ins")
    )
    assert n_changed is None or max(lost, found) <= n_changed <= lost + found


def test_words_are_compared_as_the_error_rate_does():
    assert mark_words("Three, one!", "three one", str) == (
        "<del>Three, one!</del> <ins>three one</ins>"
    )
    normalize = BasicTextNormalizer()
    assert (
        mark_words("Three, one! Don't", "three one don’t -", normalize)
        == "three one don’t <ins>-</ins>"
    )


def test_it_shows_transcripts_side_by_side(shown: Callable[[Any], Any]):
    found = shown(comparison(recordings=("<a>", "b")))
    assert [row[:3] for row in found.rows[1:]] == [
        ["<a>", "(what is said)", "one two three four"],
        ["<a>", "none", "one two three four"],
        ["<a>", "mild", "one two three four"],
        ["<a>", "harsh", "so one two three four so so so so"],
        ["b", "(what is said)", ""],
        ["b", "none", ""],
        ["b", "mild", ""],
        ["b", "harsh", "thanks for watching"],
    ]
    assert [row[3:] for row in found.rows[2:5]] == [
        ["0", "0", "0"],
        ["0.25", "0.25", "0"],
        ["1.25", "1.25", "0"],
    ]
    assert found.rows[-1][3:] == ["–", "–", "3"]
    assert len(found.all("del")) == 2 and len(found.all("ins")) == 3


def test_recordings_of_one_name_are_not_mixed_up(shown: Callable[[Any], Any]):
    found = shown(
        comparison(
            recordings=("a", "a"),
            before=("one", "two"),
            after={"edit": ("one", "two")},
            references=(None, None),
        )
    )
    assert not found.all("del") and not found.all("ins")
    assert found.rows[0] == ["recording", "edits", "text", "change", "invented"]


def test_its_repr_is_a_line():
    texts = tuple("one two three" for _ in range(2))
    assert (
        repr(comparison(before=texts))
        == "TranscriptComparison(2 recordings, edits: 'mild', 'harsh')"
    )
