"""What the decoder reads on a page, and when it is spoken."""

import math

import numpy as np
import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.errors import InputError, TokenError
from hooked_whisper.reports.attention_words import (
    AlignmentReducer,
    align,
    check_words,
    read_transcript,
    times_of_words,
    words_of,
)
from hooked_whisper.speech.tokens import get_tokenizer


@pytest.fixture(scope="module")
def model(digits_model: HookedWhisper) -> HookedWhisper:
    return digits_model


def aligned_plainly(weights: torch.Tensor) -> list[int]:
    """`whisper.timing.dtw`, cell by cell."""
    n, m = weights.shape
    cost = [[math.inf] * (m + 1) for _ in range(n + 1)]
    way = [[0] * (m + 1) for _ in range(n + 1)]
    cost[0][0] = 0.0
    for j in range(1, m + 1):
        for i in range(1, n + 1):
            before = (cost[i - 1][j - 1], cost[i - 1][j], cost[i][j - 1])
            diagonal, above, left = before
            way[i][j] = (
                0 if diagonal < min(above, left) else 1 if above < min(diagonal, left) else 2
            )
            cost[i][j] = before[way[i][j]] - float(weights[i - 1, j - 1])
    starts, i, j = [0] * n, n, m
    while i > 0 and j > 0:
        starts[i - 1] = j - 1
        i, j = i - (way[i][j] != 2), j - (way[i][j] != 1)
    return starts


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (4, 4), (3, 17), (6, 2)], ids=str)
def test_alignment_is_openais(shape: tuple[int, int]) -> None:
    for weights in (torch.randn(shape), torch.randint(0, 2, shape).float()):  # the latter with ties
        assert align(weights) == aligned_plainly(weights)


def test_words_have_openais_times(model: HookedWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    from whisper import timing

    def path(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """In place of openai-whisper's, which takes long to compile."""
        return np.arange(len(x)), np.array(aligned_plainly(-x))

    monkeypatch.setattr(timing, "dtw", path)
    for recording in recordings()[:2]:
        mel = model.to_mel(recording.path)
        transcript, n_sound = read_transcript(model, mel, recording.text, "en"), mel.n_positions
        reducer = AlignmentReducer(model, int(n_sound))
        with torch.no_grad(), model.hooks([(reducer.names, reducer)]):
            model(mel, transcript.tokens)
        times = reducer.token_times(transcript.n_prompt)
        written = transcript.tokens[0, transcript.n_prompt : -1].tolist()
        theirs = timing.find_alignment(
            model, get_tokenizer(model.cfg), written, mel.values[0], 2 * int(n_sound)
        )
        ours = [(start_s, end_s) for start_s, end_s, _ in words_of(model, transcript, times)]
        assert ours == [(word.start, word.end) for word in theirs]


def test_words_are_found_where_they_are_spoken(model: HookedWhisper) -> None:
    recording = recordings()[0]
    mel = model.to_mel(recording.path)
    transcript = read_transcript(model, mel, None, "en")
    reducer = AlignmentReducer(model, int(mel.n_positions))
    with torch.no_grad():
        model.run_with_hooks(
            mel, transcript.tokens, return_type=None, fwd_hooks=[(reducer.names, reducer)]
        )
    times = reducer.token_times(transcript.n_prompt)
    words = words_of(model, transcript, times)
    assert [word for _, _, word in words] == ["three", "one", "four"]
    for (start_s, end_s, _), spoken in zip(words, recording.words, strict=True):
        assert start_s < spoken.end_s and end_s > spoken.start_s
    assert times[: transcript.n_prompt] == [None] * 4 and times[-1] is None


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
    assert words_of(model, transcript, [None] * 5) == []


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


def test_known_words_give_tokens_their_times(model: HookedWhisper) -> None:
    mel = model.to_mel(recordings()[0].path)
    transcript = read_transcript(model, mel, "One, hippopotamus", "en")
    assert model.to_str_tokens(transcript.tokens[0])[4:] == [
        *(" One", ",", " hipp", "opot", "amus"),
        "<|endoftext|>",
    ]
    words = [(0.5, 1.0, "one"), (1.0, 2.5, "Hippopotamus")]
    times = times_of_words(model, transcript, words)
    expected = [(0.5, 0.75), (0.75, 1), (1, 1.5), (1.5, 2), (2, 2.5)]
    assert times == [None] * 4 + expected + [None]
    assert words_of(model, transcript, times) == [(0.5, 1.0, "One,"), (1.0, 2.5, "hippopotamus")]
    assert times_of_words(model, transcript, words[:1]) is None
