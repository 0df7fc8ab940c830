"""The word error rate, against words counted by hand and jiwer's own."""

import math
import random

import jiwer
import pytest

from hooked_whisper.errors import InputError
from hooked_whisper.metrics import WordErrorRate
from hooked_whisper.speech import word_error_rate
from hooked_whisper.speech.wer import normalizer


def edits(reference: list[str], text: list[str]) -> int:
    """Least number of words put in, left out or replaced."""
    if not reference or not text:
        return len(reference) + len(text)
    return min(
        edits(reference[1:], text) + 1,
        edits(reference, text[1:]) + 1,
        edits(reference[1:], text[1:]) + (reference[0] != text[0]),
    )


PAIRS = {
    "same": (["one two"], ["one two"]),
    "all kinds": (["one two three", "four"], ["two three five", "six four"]),
    "longer than what is said": (["one"], ["one one one"]),
    "nothing said, something written": (["one two", ""], ["one two", "three"]),
    "nothing written": (["one two", "three"], ["", "three"]),
}


@pytest.mark.parametrize(("references", "texts"), PAIRS.values(), ids=PAIRS.keys())
def test_counts_words(references: list[str], texts: list[str]) -> None:
    wrong = sum(edits(a.split(), b.split()) for a, b in zip(references, texts, strict=True))
    n_words = sum(len(each.split()) for each in references)
    assert word_error_rate(references, texts) == pytest.approx(wrong / n_words)


def test_is_jiwers_on_longer_texts() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("a bc d efg".split(), k=draw.randint(1, 30))) for _ in range(40)]
    references, written = texts[:20], texts[20:]
    expected = jiwer.wer(references, written)
    assert word_error_rate(references, written) == pytest.approx(expected)
    one = jiwer.wer(references[0], written[0])
    assert word_error_rate(references[0], written[0]) == pytest.approx(one)
    assert WordErrorRate(references[0])(written[0]) == pytest.approx(one)


def test_without_any_word_there_is_no_rate() -> None:
    assert word_error_rate(["", "..."], ["", "-"]) == 0
    assert math.isnan(word_error_rate([""], ["one"]))


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("basic", 1 / 3),
        ("english", 1.0),  # numbers are joined: 314 is one word
        (False, 1.0),
        (lambda text: text.lower().replace(",", ""), 1 / 3),
    ],
    ids=["basic", "english", "as they are", "a function"],
)
def test_what_is_compared(normalize: object, expected: float) -> None:
    assert word_error_rate("three one four", "Three, One, FIVE", normalize) == pytest.approx(
        expected
    )


def test_the_default_is_one_for_all() -> None:
    said, written = "Three one: four!", "three one four"
    assert word_error_rate(said, written) == WordErrorRate(said)(written) == 0
    assert word_error_rate("Žižek, ça va?", "žižek ça va") == 0


@pytest.mark.usefixtures("without_shape_checks")
def test_refuses() -> None:
    with pytest.raises(InputError, match="1 references and 2 transcripts do not match"):
        word_error_rate("one", ["one", "two"])
    with pytest.raises(InputError, match="normalize is 'french'; it can be \"basic\""):
        normalizer("french")  # type: ignore[arg-type]


def test_true_is_what_it_was_and_says_what_to_write() -> None:
    with pytest.warns(DeprecationWarning, match='say normalize="english"'):
        assert WordErrorRate("three one four", normalize=True)("three one five") == 1
