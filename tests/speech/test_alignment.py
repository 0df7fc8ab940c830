"""When tokens are spoken: as openai-whisper times words, or by words whose times are known."""

import math
from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.speech.alignment import (
    AlignmentCollector,
    align,
    times_of_known_words,
    word_times,
    words_of_tokens,
)
from hooked_whisper.speech.tokens import get_tokenizer

N_PROMPT = 4


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
def test_tokens_begin_where_the_best_path_does(shape: tuple[int, int]) -> None:
    for weights in (torch.randn(shape), torch.randint(0, 2, shape).float()):  # the latter with ties
        assert align(weights) == aligned_plainly(weights)


def collected(model: HookedWhisper, mel: Any, tokens: torch.Tensor) -> AlignmentCollector:
    """What the alignment heads do on one recording."""
    collector = AlignmentCollector(model.alignment_heads, int(mel.n_positions))
    with torch.no_grad(), model.hooks([(collector.names, collector)]):
        model(mel, tokens, return_type=None)
    return collector


def test_words_have_openais_times(model: HookedWhisper) -> None:
    from whisper import timing

    tokenizer = get_tokenizer(model.cfg)
    for recording in recordings()[:2]:
        mel = model.to_mel(recording.path)
        tokens = model.to_tokens(f" {recording.text}", append_eot=True)
        row = tokens[0].tolist()
        times = collected(model, mel, tokens).token_times(N_PROMPT)
        assert times[:N_PROMPT] == [None] * N_PROMPT and times[-1] is None
        theirs = timing.find_alignment(
            model, tokenizer, row[N_PROMPT:-1], mel.values[0], 2 * int(mel.n_positions)
        )
        ours = word_times(words_of_tokens(tokenizer, row, N_PROMPT), times)
        assert [(start_s, end_s) for start_s, end_s, _ in ours] == [
            (word.start, word.end) for word in theirs
        ]


def test_words_are_found_where_they_are_spoken(model: HookedWhisper) -> None:
    recording = recordings()[0]
    tokens = model.to_tokens(f" {recording.text}", append_eot=True)
    times = collected(model, model.to_mel(recording.path), tokens).token_times(N_PROMPT)
    row = tokens[0].tolist()
    words = word_times(words_of_tokens(get_tokenizer(model.cfg), row, N_PROMPT), times)
    assert [word for _, _, word in words] == ["three", "one", "four"]
    for (start_s, end_s, _), spoken in zip(words, recording.words, strict=True):
        assert start_s < spoken.end_s and end_s > spoken.start_s


def test_no_text_has_no_words(model: HookedWhisper) -> None:
    row = model.to_tokens("", append_eot=True)[0].tolist()
    assert words_of_tokens(get_tokenizer(model.cfg), row, N_PROMPT) == []


def test_known_words_give_tokens_their_times(model: HookedWhisper) -> None:
    row = model.to_tokens(" One, hippopotamus", append_eot=True)[0].tolist()
    assert model.to_str_tokens(row)[N_PROMPT:] == [
        *(" One", ",", " hipp", "opot", "amus"),
        "<|endoftext|>",
    ]
    words = words_of_tokens(get_tokenizer(model.cfg), row, N_PROMPT)
    known = [(0.5, 1.0, "one"), (1.0, 2.5, "Hippopotamus")]
    times = times_of_known_words(words, known, len(row))
    expected = [(0.5, 0.75), (0.75, 1), (1, 1.5), (1.5, 2), (2, 2.5)]
    assert times == [None] * N_PROMPT + expected + [None]
    assert word_times(words, times) == [(0.5, 1.0, "One,"), (1.0, 2.5, "hippopotamus")]
    assert times_of_known_words(words, known[:1], len(row)) is None
