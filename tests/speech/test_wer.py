"""The word error rate, against words counted by hand and jiwer's own."""

import math
import random
import warnings

import jiwer
import pytest
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from hooked_whisper.errors import InputError
from hooked_whisper.metrics import WordErrorRate
from hooked_whisper.speech import word_error_rate
from hooked_whisper.speech.wer import normalizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # it leaves its table of spellings open
    ENGLISH = EnglishTextNormalizer()

SENTENCES = (
    "Replied he, of a truth I heard him not, and the folks are all sleeping.",
    "In 1862 the 2nd army's colours cost $20,000; the rest, hmm, got one third of the money.",
    "Like Richard the three's ghosts, the twenty-one of them: the one, the other.",
)
"""Like those of the clips, and with what English texts have of numbers."""


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
        ("auto", 1 / 3),
        ("basic", 1 / 3),
        ("english", 1.0),  # numbers are joined: 314 is one word
        (False, 1.0),
        (lambda text: text.lower().replace(",", ""), 1 / 3),
    ],
    ids=["auto", "basic", "english", "as they are", "a function"],
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
    with pytest.raises(InputError, match="1 references, 2 transcripts and 1 languages do not"):
        word_error_rate("one", ["one", "two"])
    with pytest.raises(InputError, match="normalize is 'french'; it can be \"auto\""):
        normalizer("french")  # type: ignore[arg-type]


def test_true_is_what_it_was_and_says_what_to_write() -> None:
    with pytest.warns(DeprecationWarning, match='say normalize="english"'):
        assert WordErrorRate("three one four", normalize=True)("three one five") == 1


class TestEnglish:
    @pytest.mark.parametrize(
        ("said", "written", "expected"),
        [
            ("six nine zero two", "6 9 0 2", 0),
            ("six nine zero two", "6902.", 0),
            ("six nine zero two", "6,912", 1 / 4),
            ("one nine four five", "1945", 0),
            ("oh four two", "042", 0),
            ("two zero", "20", 0),
            ("Three one one", "3 1", 1 / 3),
            ("put that one down", "Put that one down!", 0),
            ("he was born in nineteen seventy two", "He was born in 1972.", 0),
            ("in nineteen seventy two", "in 1973", 1 / 2),
            ("oh oh it is seven", "Oh, oh, it's 7!", 0),
            ("i've seen mister hale's colour", "I have seen Mr. Hale's color", 0),
        ],
    )
    def test_says_numbers_alike(self, said: str, written: str, expected: float) -> None:
        assert word_error_rate(said, written) == pytest.approx(expected)
        assert WordErrorRate(said)(written) == pytest.approx(expected)

    @pytest.mark.parametrize("text", SENTENCES)
    def test_is_openai_whispers_where_no_digits_are_said_one_by_one(self, text: str) -> None:
        assert normalizer()(text).split() == ENGLISH(text).split()
        other = text.replace("the", "a")
        theirs = [ENGLISH(each) for each in (text, other)]
        assert word_error_rate(text, other) == pytest.approx(jiwer.wer(*theirs))


def test_other_languages_keep_their_letters_and_numbers() -> None:
    said, written = "Schön, um acht Uhr", "schon um 8 uhr"
    theirs = [BasicTextNormalizer()(each) for each in (said, written)]
    assert word_error_rate(said, written, language="de") == jiwer.wer(*theirs) == 0.5
    assert word_error_rate([said] * 2, [written] * 2, language=["de", "German"]) == 0.5
    assert WordErrorRate(said, language="de")(written) == 0.5
    with pytest.raises(InputError, match="2 transcripts and 1 languages"):
        word_error_rate(["a", "b"], ["a", "b"], language=["de"])
