"""When each token is said: by the words' known times, or else by the model's cross-attention."""

from collections.abc import Sequence
from typing import Any

import torch

from hooked_whisper.data.windows import AudioWindow, mel_of
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.attention_words import AlignmentReducer, Times
from hooked_whisper.speech.tokens import get_tokenizer, has_tokenizer


def token_times(model: HookedWhisper, window: AudioWindow, tokens: Sequence[int]) -> Times:
    """Start and end of each token in its window, in seconds; None for those without a time.

    Tokens of one word share the word's time. The last token of the prompt, which
    writes the first word, has that word's.
    """
    times: Times = [None] * len(tokens)
    if not has_tokenizer(model.cfg):
        return times
    tokenizer = get_tokenizer(model.cfg)
    written = [place for place, token in enumerate(tokens) if token < tokenizer.eot]
    if not written:
        return times
    groups = _by_word(tokenizer, [tokens[place] for place in written])
    if window.words and len(window.words) == len(groups):
        spans: Times = [(start, end) for start, end, _ in window.words]
    else:
        heard = _by_attention(model, window, tokens, written[0])
        spans = _joined([heard[place] for place in written], groups)
    places = iter(written)
    for group, span in zip(groups, spans, strict=True):
        for _ in range(group):
            times[next(places)] = span
    if written[0] > 0:
        times[written[0] - 1] = spans[0]
    return times


def _by_word(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    """How many tokens each word has."""
    _, groups = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
    return [len(group) for group in groups[:-1]]


def _joined(times: Times, groups: Sequence[int]) -> list[tuple[float, float] | None]:
    """From where its first token begins to where its last ends, for each word."""
    spans, place = [], 0
    for n in groups:
        first, last = times[place], times[place + n - 1]
        spans.append((first[0], last[1]) if first and last else None)
        place += n
    return spans


@torch.no_grad()
def _by_attention(
    model: HookedWhisper, window: AudioWindow, tokens: Sequence[int], n_prompt: int
) -> Times:
    """When each token is said, as the alignment heads hear it."""
    mel = mel_of(model, [window])
    row = [*tokens, get_tokenizer(model.cfg).eot][: model.cfg.n_text_ctx]
    reducer = AlignmentReducer(model, window.n_positions)
    with model.hooks([(reducer.names, reducer)]):
        model(mel, torch.tensor([row], device=model.device), return_type=None)
    return [*reducer.token_times(n_prompt), None][: len(tokens)]
