"""Recordings that get labels of time: by the model, by an aligner, from files; and keep them."""

import dataclasses
from pathlib import Path

import pytest
import torch

from hooked_whisper import HookedWhisper, digits
from hooked_whisper.data import (
    Recording,
    add_alignments,
    align_phones,
    align_words,
    as_recordings,
    write_manifest,
)
from hooked_whisper.errors import LabelError, RecordingsError, StoreWriteError, TokenError
from hooked_whisper.speech.phones import MANNER, PLACE

DATA = Path(__file__).parent
SPOKEN = Recording("clips/espeak-00-0017.flac", str(DATA / "espeak-00-0017.flac"))
TEXT = "Their neighbour chose a pair of shoes, under the bridge."


def without_words(recording: digits.SpokenDigits) -> Recording:
    """A recording of digits of which only the text is known."""
    return Recording(recording.path.name, str(recording.path), {"speaker": "x"}, recording.text)


def test_words_are_timed_as_openai_whisper_times_them(digits_model: HookedWhisper) -> None:
    true = [each for each in digits.recordings() if len(each.text.split()) > 2][:3]
    found = align_words(digits_model, [without_words(each) for each in true], progress=False)
    for one, known in zip(found, true, strict=True):
        written = digits_model.transcribe(str(known.path), language="en", word_timestamps=True)
        theirs = [word for segment in written["segments"] for word in segment["words"]]
        assert [word for *_, word in one.labels["word"]] == known.text.split()
        assert [start for start, *_ in one.labels["word"]] == pytest.approx(
            [word["start"] for word in theirs], abs=0.041
        )
        assert one.labels["speaker"] == "x"


def test_a_recording_without_a_text_is_transcribed(digits_model: HookedWhisper) -> None:
    true = digits.recordings()[0]
    bare = Recording("bare", str(true.path))
    (found,) = align_words(digits_model, [bare], progress=False)
    written = digits_model.transcribe(str(true.path), language="en", word_timestamps=True)
    assert found.text == written["text"].strip()
    times = [(w["start"], w["end"]) for s in written["segments"] for w in s["words"]]
    assert [(start, end) for start, end, _ in found.labels["word"]] == [
        (start, end) for start, end in times if start < end
    ]


def test_a_text_is_not_aligned_with_part_of_its_sound(digits_model: HookedWhisper) -> None:
    long = Recording("long", (torch.zeros(40 * 16_000), 16_000), {}, "one")
    short = without_words(digits.recordings()[0])
    with pytest.warns(UserWarning, match="1 of 2 recordings cannot be labelled: 'long': it is lon"):
        found = align_words(digits_model, [long, short], progress=False)
    assert found[0] is long and "word" in found[1].labels
    with pytest.raises(RecordingsError, match="1 of 1 recordings cannot be labelled"):
        align_words(digits_model, [long], progress=False)


def test_words_need_whispers_vocabulary(tiny_model: HookedWhisper) -> None:
    with pytest.raises(TokenError):
        align_words(tiny_model, [SPOKEN], progress=False)


@pytest.fixture(scope="module")
def aligned() -> Recording:
    pytest.importorskip("pocketsphinx", reason="needs the extra `labels`")
    known = dataclasses.replace(SPOKEN, text=TEXT, labels={"speaker": "espeak", "words": []})
    (found,) = align_phones([known], progress=False)
    return found


def test_phones_have_their_manner_and_place(aligned: Recording) -> None:
    assert [word for *_, word in aligned.labels["word"]] == TEXT[:-1].replace(
        ",", ""
    ).lower().split()
    assert aligned.labels["speaker"] == "espeak"
    for name, table in (("manner", MANNER), ("place", PLACE)):
        assert aligned.labels[name] == [
            [start, end, table[phone]] for start, end, phone in aligned.labels["phone"]
        ]
    assert [phone for *_, phone in aligned.labels["phone"]][-3:] == ["R", "IH", "JH"]


def test_what_cannot_be_aligned_stays_as_it_is_and_a_warning_says_why() -> None:
    pytest.importorskip("pocketsphinx", reason="needs the extra `labels`")
    given = [
        dataclasses.replace(SPOKEN, text=TEXT),
        SPOKEN,
        dataclasses.replace(SPOKEN, text="le chat", labels={"language": "fr"}),
        Recording("gone.wav", "gone.wav", {}, "one"),
    ]
    with pytest.warns(UserWarning, match="3 of 4 recordings cannot be labelled") as told:
        found = align_phones(given, progress=False)
    assert found[1:] == given[1:] and "phone" in found[0].labels
    message = str(told[0].message)
    assert "it has no text" in message and "'fr'" in message and "gone.wav" in message


def test_a_manifest_keeps_every_label(aligned: Recording, tmp_path: Path) -> None:
    path = tmp_path / "lists" / "labels.jsonl"
    path.parent.mkdir()
    given = [aligned, dataclasses.replace(SPOKEN, id="b.flac", tokens=(1, 2))]
    write_manifest(given, path)
    found = list(as_recordings(path))
    assert [each.id for each in found] == [each.id for each in given]
    for one, other in zip(found, given, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert {k: v for k, v in one.labels.items() if k != "text"} == other.labels
        assert torch.equal(one.load(), other.load())
    assert found[0].words == aligned.words


def test_manifests_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingsError, match=r"must end in \.jsonl"):
        write_manifest([SPOKEN], tmp_path / "a.csv")
    with pytest.raises(RecordingsError, match="is no file"):
        write_manifest([(torch.zeros(16_000), 16_000)], tmp_path / "a.jsonl")
    with pytest.raises(StoreWriteError):
        write_manifest([SPOKEN], tmp_path / "nowhere" / "a.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_files_become_labels_of_the_recordings_that_are_called_like_them(tmp_path: Path) -> None:
    known = [SPOKEN, dataclasses.replace(SPOKEN, id="other.wav")]
    with pytest.warns(UserWarning, match="no alignment is called 'other'"):
        found = add_alignments(known, DATA)
    assert found[1] == known[1]
    words = [word for *_, word in found[0].labels["word"]]
    assert words == TEXT[:-1].replace(",", "").lower().split()
    assert "ʃ" in [phone for *_, phone in found[0].labels["phone"]]
    assert "manner" not in found[0].labels  # phones in IPA, of which no table is here
    (tmp_path / "a").mkdir()
    for name in ("x.csv", "a/x.csv"):
        (tmp_path / name).write_text("start,end,word\n0,1,one\n", encoding="utf-8")
    with pytest.raises(LabelError, match=r"two files in .* are for 'x'"):
        add_alignments(known, tmp_path)
    with pytest.raises(LabelError, match=r"there is no \.TextGrid"):
        add_alignments(known, tmp_path / "nowhere")


def test_harvests_of_a_manifest_have_its_labels(
    aligned: Recording, tmp_path: Path, digits_model: HookedWhisper
) -> None:
    from hooked_whisper.store import harvest

    write_manifest([aligned], tmp_path / "labels.jsonl")
    hook = "encoder.blocks.0.hook_resid_post"
    store = harvest(
        digits_model,
        tmp_path / "labels.jsonl",
        hook,
        tmp_path / "store",
        n_workers=0,
        progress=False,
    )
    said = store.labels("phone", hook, slice(0, store.n_rows(hook)))
    for row in range(0, len(said), 5):
        middle = (row + 0.5) * 0.02
        true = [each for start, end, each in aligned.labels["phone"] if start <= middle < end]
        assert said[row] == (true[0] if true else None)
    assert {"AH", "SH", None} <= set(said)
