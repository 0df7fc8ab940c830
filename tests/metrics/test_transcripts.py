"""Metrics of texts, against edit distances written out."""

from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.errors import MetricError, TokenError
from hooked_whisper.metrics.tokens import LogProb
from hooked_whisper.metrics.transcripts import (
    CompressionRatio,
    ExactTranscript,
    Repetition,
    TokenErrorRate,
    TranscriptMetric,
    WordErrorRate,
    as_transcript_metric,
    check_value,
)


@pytest.fixture(scope="module")
def digits() -> HookedWhisper:
    return HookedWhisper.from_pretrained("digits")


def edit_distance(wanted: list[Any], written: list[Any]) -> int:
    """Levenshtein's, by the recursion that defines it."""
    row = list(range(len(written) + 1))
    for i, a in enumerate(wanted):
        above, row = row, [i + 1]
        for j, b in enumerate(written):
            row.append(min(above[j] + (a != b), above[j + 1] + 1, row[j] + 1))
    return row[-1]


TEXTS = [
    "three one four",
    "three one",
    "one three four",
    "three one four four four four four",
    "",
    "seven",
    "  three  one four ",
]
every_text = pytest.mark.parametrize("text", TEXTS, ids=lambda text: text or "nothing")


@every_text
def test_word_error_rate(text: str) -> None:
    expected = edit_distance(["three", "one", "four"], text.split()) / 3
    assert WordErrorRate("three one four", normalize=False)(text) == pytest.approx(expected)


@every_text
def test_token_error_rate(text: str, digits_model: HookedWhisper) -> None:
    def ids(text: str) -> list[int]:
        kept = text.strip()
        return digits_model.to_tokens(" " + kept, prepend_sot=False)[0].tolist() if kept else []

    wanted = ids("three one four")
    expected = edit_distance(wanted, ids(text)) / len(wanted)
    assert TokenErrorRate(digits_model, "three one four")(text) == pytest.approx(expected)
    assert TokenErrorRate(digits_model, " three one four ")(text) == pytest.approx(expected)


def test_token_error_rate_with_a_tokenizer(digits_model: HookedWhisper) -> None:
    from whisper.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(digits_model.is_multilingual)
    assert TokenErrorRate(tokenizer, "one two")("one") == 0.5


def test_tokens_are_those_that_the_model_writes(digits_model: HookedWhisper) -> None:
    """With the space before a word: " wombats" is 2 tokens, "wombats" 3."""
    assert TokenErrorRate(digits_model, "wombats")("one") == 1
    assert TokenErrorRate(digits_model, "wombats")("one two three") == 1.5


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("It's two o'clock.", "it is two o'clock", 0.0),
        ("Mr. Smith, um, left!", "mister smith left", 0.0),
        ("the colour", "the color", 0.0),
        ("put that down", "put this down", 1 / 3),
        ("three one four", "three one five", 1.0),  # numbers are joined: 314 is one word
    ],
    ids=["contraction", "title and filler", "spelling", "another word", "numbers"],
)
def test_openais_normalizer(reference: str, text: str, expected: float) -> None:
    metric = WordErrorRate(reference, normalize="english")
    assert metric(text) == pytest.approx(expected)


def test_case_and_punctuation_count_when_nothing_is_normalized() -> None:
    assert WordErrorRate("Put it down.", normalize=False)("put it down") == pytest.approx(2 / 3)


def test_a_normalizer_of_ones_own() -> None:
    metric = WordErrorRate("ONE two", normalize=str.lower)
    assert metric("one TWO") == 0
    assert ExactTranscript("ONE two", normalize=str.lower)("one TWO") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("one two", 1.0), (" one two ", 1.0), ("One two", 0.0), ("one two three", 0.0), ("", 0.0)],
    ids=repr,
)
def test_exact_transcript(text: str, expected: float) -> None:
    assert ExactTranscript(" one two")(text) == expected


def test_exact_transcript_may_normalize() -> None:
    assert ExactTranscript("One, two!", normalize="english")("12") == 1


@pytest.mark.parametrize(
    ("n", "text", "expected"),
    [
        (1, "so so so what", 0.5),
        (2, "so so so what", 1 / 3),
        (3, "so so so what", 0.0),
        (3, "a b c a b c a b c", 4 / 7),
        (3, "one two", 0.0),
        (1, "", 0.0),
        (1, "one", 0.0),
    ],
    ids=repr,
)
def test_repetition(n: int, text: str, expected: float) -> None:
    assert Repetition(n)(text) == pytest.approx(expected)


@pytest.mark.parametrize("n", [0, -1, True], ids=repr)
def test_repetition_of_no_words(n: int) -> None:
    with pytest.raises(MetricError, match=r"n is .*; it must be a number of words, 1 or more"):
        Repetition(n)


def test_compression_ratio_is_openai_whispers() -> None:
    import zlib

    loop = "thank you " * 40
    expected = len(loop.encode()) / len(zlib.compress(loop.encode()))
    assert CompressionRatio()(loop) == pytest.approx(expected)
    assert CompressionRatio()(loop) > 2.4 > 1 > CompressionRatio()("three one four")
    assert CompressionRatio()("") == 0


def test_on_what_the_model_writes(digits_model: HookedWhisper) -> None:
    said = recordings()[0]
    with torch.no_grad():
        text = digits_model.generate(digits_model.to_mel(said.path)).texts[0]
    assert WordErrorRate(said.text)(text) == 0
    assert TokenErrorRate(digits_model, said.text)(text) == 0
    assert ExactTranscript(said.text)(text) == 1
    assert Repetition()(text) == 0


# Their contract


METRICS = [
    WordErrorRate("one"),
    WordErrorRate("one", normalize=False),
    ExactTranscript("one"),
    Repetition(),
    CompressionRatio(),
    as_transcript_metric(len),
]


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_it_reads_a_transcript_and_gives_a_number(metric: TranscriptMetric) -> None:
    assert metric.reads_transcript
    assert isinstance(metric("one two"), float)
    assert isinstance(metric(""), float)
    assert as_transcript_metric(metric) is metric


def test_equal_metrics_are_equal() -> None:
    assert WordErrorRate("one") == WordErrorRate("one") != WordErrorRate("two")
    assert repr(WordErrorRate("one")) == (
        "WordErrorRate(reference='one', normalize='auto', language=None)"
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda text: len(text), 3.0),
        (lambda text: "o" in text, 1.0),
        (lambda text: torch.tensor(0.5), 0.5),
    ],
    ids=["int", "bool", "tensor"],
)
def test_a_function_as_a_metric(function: Any, expected: float) -> None:
    assert as_transcript_metric(function)("one") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"returned None\. It must return one number"),
        ("0.5", r"returned '0\.5'\. It must return one number"),
        (torch.zeros(2), r"returned a tensor of shape \(2,\) and dtype torch\.float32"),
        (float("nan"), r"returned nan\. It must return a finite number"),
        (float("inf"), r"returned inf\. It must return a finite number"),
    ],
    ids=["None", "text", "two numbers", "NaN", "inf"],
)
def test_a_function_that_gives_no_number(value: Any, message: str) -> None:
    def mine(text: str) -> Any:
        return value

    with pytest.raises(MetricError, match="the metric mine " + message):
        as_transcript_metric(mine)("one")
    with pytest.raises(MetricError, match="the metric " + message):
        check_value(value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (LogProb(3), r"judges logits, but a text is what is judged"),
        (None, r"None is no metric\. Give one such as WordErrorRate"),
        ("wer", r"'wer' is no metric"),
    ],
    ids=["of logits", "None", "text"],
)
def test_what_is_no_metric_of_texts(wrong: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        as_transcript_metric(wrong)


@pytest.mark.parametrize(
    "make",
    [WordErrorRate, ExactTranscript, lambda text: TokenErrorRate(None, text)],
    ids=["words", "exact", "tokens"],
)
@pytest.mark.parametrize("reference", ["", "  \n"], ids=repr)
def test_an_empty_reference(make: Any, reference: str) -> None:
    with pytest.raises(MetricError, match=r"the reference is .*, which holds no words"):
        make(reference)


def test_a_reference_that_normalizing_empties() -> None:
    with pytest.raises(MetricError, match=r"'\[laughs\] um' has no words left when it is norm"):
        WordErrorRate("[laughs] um", normalize="english")
    assert WordErrorRate("[laughs] um", normalize=False)("um") == 0.5


def test_tokens_need_a_tokenizer(tiny_model: Any) -> None:
    with pytest.raises(MetricError, match=r"None has no tokenizer\. Give a HookedWhisper"):
        TokenErrorRate(None, "one")
    with pytest.raises(TokenError, match="d_vocab is 101; Whisper's tokenizer has"):
        TokenErrorRate(tiny_model, "one")
