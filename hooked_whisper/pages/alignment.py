"""When each token is said: by the words' known times, or else by the model's cross-attention."""

from collections.abc import Sequence
from typing import Any

import torch

from hooked_whisper.config import FRAMES_PER_SECOND
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.pages.heard import Heard, mel_of
from hooked_whisper.sae.evaluation.inputs import has_tokenizer
from hooked_whisper.speech.tokens import get_tokenizer

Times = list[tuple[float, float] | None]


def token_times(model: HookedWhisper, window: Heard, tokens: Sequence[int]) -> Times:
    """Start and end of each token in its window, in seconds; None for those without a time.

    Tokens of one word share the word's time. The last token of the prompt, which
    writes the first word, has that word's.
    """
    times: Times = [None] * len(tokens)
    if not has_tokenizer(model):
        return times
    tokenizer = get_tokenizer(model.cfg)
    written = [place for place, token in enumerate(tokens) if token < tokenizer.eot]
    if not written:
        return times
    groups = _by_word(tokenizer, [tokens[place] for place in written])
    if window.words and len(window.words) == len(groups):
        spans = [(start, end) for start, end, _ in window.words]
    else:
        spans = _by_attention(model, tokenizer, window, [tokens[place] for place in written])
        if len(spans) != len(groups):
            return times
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


@torch.no_grad()
def _by_attention(
    model: HookedWhisper, tokenizer: Any, window: Heard, tokens: Sequence[int]
) -> list[tuple[float, float]]:
    """The words' times by dynamic time warping of the alignment heads.

    Source: `whisper.timing.find_alignment`, which this calls.
    """
    from whisper.timing import find_alignment

    mel = mel_of(model, [window])
    n_frames = int(mel.n_frames[0])
    if not n_frames:
        return []
    words = find_alignment(model, tokenizer, list(tokens), mel.values[0], n_frames)
    length = n_frames / FRAMES_PER_SECOND
    found = [(min(float(each.start), length), min(float(each.end), length)) for each in words]
    return found[: len(found) - 1] if words and words[-1].word == "" else found
