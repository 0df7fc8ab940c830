"""What the decoder reads on a page, and when it is spoken."""

import pytest

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.errors import InputError, TokenError
from hooked_whisper.reports.attention import (
    check_words,
    read_transcript,
)


@pytest.fixture(scope="module")
def model(digits_model: HookedWhisper) -> HookedWhisper:
    return digits_model


def test_the_model_writes_where_there_is_no_text(model: HookedWhisper) -> None:
    transcript = read_transcript(model, model.to_mel(recordings()[0].path), None, None)
    assert transcript.text == "three one four"
    assert transcript.tokens.shape == (1, 4 + 3 + 1)
    assert model.to_str_tokens(transcript.tokens[0])[-1] == "<|endoftext|>"


@pytest.mark.parametrize(
    "text", ["one two", " one two", "one two "], ids=["bare", "before", "after"]
)
def test_a_given_text_begins_as_whisper_writes(model: HookedWhisper, text: str) -> None:
    transcript = read_transcript(model, model.to_mel(recordings()[0].path), text, "en")
    assert model.to_str_tokens(transcript.tokens[0])[4:] == [" one", " two", "<|endoftext|>"]


def test_no_text_has_no_words(model: HookedWhisper) -> None:
    transcript = read_transcript(model, model.to_mel(recordings()[0].path), "", "en")
    assert transcript.tokens.shape == (1, 5)
    assert transcript.words == []


def test_too_long_a_text_is_refused(model: HookedWhisper) -> None:
    with pytest.raises(TokenError, match="505 tokens are too many"):
        read_transcript(model, model.to_mel(recordings()[0].path), " one" * 500, "en")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([("one", 0.1, 0.2)], "word 0 is .*pass its start and end"),
        ([(0.1, 0.2, "one"), (0.5, 0.4, "two")], "word 1, 'two', goes from 0.5 to 0.4 s"),
        ([(0.1, float("nan"), "one")], "word 0, 'one', goes from 0.1 to nan"),
        (["one"], "word 0 is 'one'"),
    ],
    ids=["order", "backwards", "nan", "strings"],
)
def test_words_without_times_are_refused(words: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_words(words)
