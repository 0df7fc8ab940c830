"""What each position is known to be, and which columns of manifests are labels at all."""

from pathlib import Path

import pytest
import torch

from hooked_whisper.analysis.selectivity import Labels
from hooked_whisper.data import Recording, as_recordings
from hooked_whisper.data.position_labels import is_category, position_labels

SECOND = (torch.zeros(16_000), 16_000)
SENTENCES = """\
path,speaker,sex,text,language,source,licence,duration,tiny_en_wer
a.flac,ls-1,M,there is iron,en,LibriSpeech test-other,CC BY 4.0,3.13,0.061
b.flac,ls-1,M,margaret said,en,LibriSpeech test-other,CC BY 4.0,12.62,0.088
c.flac,ls-2,F,you who were,en,LJ Speech,public domain,3.13,0.000
d.flac,ls-2,F,i do not,en,LJ Speech,public domain,4.47,0.000
e.flac,ls-3,F,his statement,en,CMU ARCTIC,free for any use,4.47,0.061
"""


def spoken(label: Labels) -> list[str | None]:
    """The value of each vector."""
    return [None if i < 0 else label.values[i] for i in label.ids.tolist()]


def test_every_timed_label_is_read_in_the_middle_of_each_position() -> None:
    labels = {
        "word": [[0.0, 0.05, "one"], [0.06, 0.1, "two"]],
        "phone": [[0.0, 0.03, "W"], [0.03, 0.05, "N"], [0.06, 0.1, "T"]],
        "tone": [[0.02, 0.04, 3]],
        "speaker": "ann",
    }
    found = {each.name: spoken(each) for each in position_labels(
        [Recording("a", SECOND, labels), Recording("b", SECOND, {"speaker": "bob"})], [5, 2]
    )}  # fmt: skip
    assert found == {
        "word": ["one", "one", None, "two", "two", None, None],
        "position": ["1", "1", None, "2", "2", None, None],
        "phone": ["W", "N", None, "T", "T", None, None],
        "tone": [None, "3", None, None, None, None, None],
        "silence": ["speech", "speech", "silence", "speech", "speech", None, None],
        "speaker": ["ann"] * 5 + ["bob"] * 2,
    }


def test_the_label_that_the_words_come_from_is_not_there_twice() -> None:
    labels = {"digit": [[0.0, 0.05, "one"]], "phone": [[0.0, 0.03, "W"]]}
    found = position_labels([Recording("a", SECOND, labels, "One.")], [5])
    assert [each.name for each in found] == ["word", "position", "phone", "silence"]


def test_columns_of_the_sentences_that_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(SENTENCES, encoding="utf-8")
    known = list(as_recordings(tmp_path / "manifest.csv"))
    found = position_labels(known, [2, 1, 1, 1, 1])
    assert [each.name for each in found] == ["speaker", "sex", "source"]
    assert spoken(found[1]) == ["M", "M", "M", "F", "F", "F"]


HABITS = {
    "Common Voice": (
        "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender "
        "accents variant locale segment",
        ["d1 a.mp3 x1 hello_there - 2 0 twenties male_masculine England_English - en -"] * 2
        + ["d2 b.mp3 x2 good_day - 2 1 fifties female_feminine - - en -"] * 2,
        {"client_id", "age", "gender"},
    ),
    "NeMo": (
        "audio_filepath duration text speaker lang offset",
        ["a.wav 1.5 yes 3 en 0", "b.wav 1.5 no 3 en 0", "c.wav 2 no 4 en 1", "d.wav 2 no 4 en 1"],
        {"speaker"},
    ),
    "LibriSpeech": (
        "file text speaker_id chapter_id id",
        ["a A 19 198 19-198-0", "b B 19 198 19-198-1", "c C 26 495 26-0", "d D 26 495 26-1"],
        {"speaker_id", "chapter_id"},
    ),
    "ESC-50": (
        "filename fold target category esc10 src_file take",
        ["a.wav 1 0 dog True 100032 A", "b.wav 1 0 dog True 100032 B",
         "c.wav 2 14 rain False 17367 A", "d.wav 2 14 rain False 17367 A"],
        {"fold", "target", "category", "esc10", "take"},
    ),
    "FLEURS": (
        "num_samples path raw_transcription transcription gender lang_id language lang_group_id",
        ["16000 a R r 0 19 English 0", "16000 b R r 0 19 English 0", "9 c S s 1 7 German 0",
         "9 d S s 1 7 German 0"],
        {"gender", "lang_id", "language"},
    ),
    "GigaSpeech": (
        "segment_id speaker text begin_time end_time audio_id title url source category",
        ["s1 N/A hi 0.0 1.0 p1 Talk http://a 1 24", "s2 N/A ho 1.0 2.0 p1 Talk http://a 1 24",
         "s3 N/A he 0.0 1.0 p2 Tale http://b 2 25", "s4 N/A ha 1.0 2.0 p2 Tale http://b 2 25"],
        {"speaker", "audio_id", "source", "category"},
    ),
}  # fmt: skip
"""How others name their columns, rows of them, and which of these a sound may tell."""


@pytest.mark.parametrize("habit", HABITS)
def test_columns_of_others_that_can_be_told(habit: str) -> None:
    header, lines, wanted = HABITS[habit]
    rows = [["" if each == "-" else each for each in line.split()] for line in lines]
    columns = dict(zip(header.split(), zip(*rows, strict=True), strict=True))
    assert {name for name, values in columns.items() if is_category(name, values)} == wanted


def test_what_does_not_repeat_is_no_category() -> None:
    assert not is_category("chapter", [str(i) for i in range(10)] + ["3"])
    assert not is_category("room", ["kitchen"] * 8), "one value tells nothing"
    assert is_category("room", ["kitchen", "hall", None, "hall", "kitchen"])
    assert not is_category("level", [0.5, 0.5, 1.5, 1.5])
    assert not is_category(
        "note", ["a text that goes on for much longer than any name does " * 2] * 4
    )
    assert is_category("speaker", ["only one"])
