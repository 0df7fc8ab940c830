"""Words and phones of forced alignment, against a synthesiser that knows its own times."""

import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import torch

from hooked_whisper.errors import LabelError
from hooked_whisper.speech.alignment_files import read_alignment
from hooked_whisper.speech.audio import load_audio
from hooked_whisper.speech.phone_alignment import Alignment, PhoneAligner, words_of

DATA = Path(__file__).parents[1] / "data"
NAMES = ("espeak-00-0014", "espeak-00-0017")


def text_of(name: str) -> str:
    """What the synthesiser was told to say."""
    words = read_alignment(DATA / f"{name}.csv")[name]["word"]
    return " ".join(word for *_, word in words)


@pytest.fixture(scope="module")
def aligner() -> PhoneAligner:
    pytest.importorskip("pocketsphinx", reason="needs the extra `labels`")
    return PhoneAligner()


@pytest.fixture(scope="module")
def aligned(aligner: PhoneAligner) -> dict[str, Alignment]:
    return {name: aligner.align(load_audio(DATA / f"{name}.flac"), text_of(name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_words_begin_when_they_are_said(name: str, aligned: dict[str, Alignment]) -> None:
    true = read_alignment(DATA / f"{name}.csv")[name]["word"]
    found = aligned[name].words
    assert [piece.value for piece in found] == [word for *_, word in true]
    late = [piece.start_s - start for piece, (start, *_) in zip(found, true, strict=True)]
    assert median(map(abs, late)) < 0.015
    assert abs(median(late)) < 0.008  # neither early nor late: a step is where it is heard


@pytest.mark.parametrize("name", NAMES)
def test_phones_lie_within_their_words_and_touch(name: str, aligned: dict[str, Alignment]) -> None:
    found = aligned[name]
    assert found.unknown == ()
    for word in found.words:
        own = [
            piece
            for piece in found.phones
            if word.start_s <= piece.start_s < piece.end_s <= word.end_s
        ]
        assert (own[0].start_s, own[-1].end_s) == (word.start_s, word.end_s)
        assert all(a.end_s == b.start_s for a, b in pairwise(own))
    assert len(found.phones) > 2 * len(found.words)


def test_a_word_that_no_dictionary_has_gets_its_time_but_no_phones(
    aligner: PhoneAligner, aligned: dict[str, Alignment]
) -> None:
    name = NAMES[0]
    known = aligned[name]
    word = max(known.words, key=lambda piece: piece.end_s - piece.start_s)
    text = text_of(name).replace(str(word.value), f"{word.value}qq")
    found = aligner.align(load_audio(DATA / f"{name}.flac"), text)
    place = known.words.index(word)
    assert found.unknown == (f"{word.value}qq",)
    assert found.words[place].start_s == pytest.approx(word.start_s, abs=0.05)
    lost = [piece for piece in known.phones if word.start_s <= piece.start_s < word.end_s]
    assert len(found.phones) == len(known.phones) - len(lost)


def test_a_pronunciation_that_is_given_is_used() -> None:
    pytest.importorskip("pocketsphinx", reason="needs the extra `labels`")
    name, word = NAMES[0], words_of(text_of(NAMES[0]))[1]
    aligner = PhoneAligner({f"{word}qq": "k ae1 t"})
    text = text_of(name).replace(word, f"{word}qq", 1)
    found = aligner.align(load_audio(DATA / f"{name}.flac"), text)
    piece = found.words[1]
    own = [each.value for each in found.phones if piece.start_s <= each.start_s < piece.end_s]
    assert (found.unknown, own) == ((), ["K", "AE", "T"])


def test_what_is_no_pronunciation_is_refused() -> None:
    pytest.importorskip("pocketsphinx", reason="needs the extra `labels`")
    for wrong in ("", "kæt", "K AX T", "K-AE-T"):
        with pytest.raises(LabelError, match="pronunciation of 'cat'"):
            PhoneAligner({"cat": wrong})


def test_sound_that_cannot_hold_the_text_is_refused_and_the_next_is_aligned(
    aligner: PhoneAligner, aligned: dict[str, Alignment]
) -> None:
    with pytest.raises(LabelError, match="does not follow the text"):
        aligner.align(torch.zeros(1600), "a long sentence of many words that nobody has said here")
    with pytest.raises(LabelError, match="has no words"):
        aligner.align(torch.zeros(16_000), "...")
    again = aligner.align(load_audio(DATA / f"{NAMES[0]}.flac"), text_of(NAMES[0]))
    assert again == aligned[NAMES[0]]


def test_without_pocketsphinx_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(LabelError, match=r"pip install 'hooked-whisper\[labels\]'"):
        PhoneAligner()
