"""When tokens are spoken: by openai-whisper's word timing, or by words whose times are known."""

import string
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import POSITIONS_PER_SECOND
from hooked_whisper.speech.tokens import is_written

if TYPE_CHECKING:
    from whisper.tokenizer import Tokenizer

Word = tuple[float, float, str]
"""Start and end in seconds, and what is said."""
Times = list[tuple[float, float] | None]
"""Start and end of each token in seconds; None for what is not spoken: the prompt, the end."""

MEDIAN_WIDTH = 7
"""Positions over which openai-whisper smooths attention before it aligns."""


class AlignmentCollector:
    """A hook for cross-attention, which adds up what word timing reads of its alignment heads.

    Args:
        alignment_heads: A model's `alignment_heads`.
        n_sound: Encoder positions that hold sound.

    Source: `whisper.timing.find_alignment`: each head's attention to the sound,
    in standard deviations from its mean over the tokens, smoothed in time.
    """

    def __init__(self, alignment_heads: Tensor, n_sound: int) -> None:
        self.heads: dict[int, list[int]] = {}
        for layer, head in alignment_heads.to_dense().nonzero().tolist():
            self.heads.setdefault(layer, []).append(head)
        self.n_sound = n_sound
        self.total: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """The hooks that it reads."""
        return [f"decoder.blocks.{layer}.cross_attn.hook_pattern" for layer in self.heads]

    def __call__(self, value: Tensor, hook: Any) -> None:
        """Add the heads of one layer, of the first row."""
        layer = int(hook.name.split(".")[2])
        added = timing_weights(value[0, self.heads[layer], :, : self.n_sound]).sum(dim=0)
        self.total = added if self.total is None else self.total + added

    def token_times(self, n_prompt: int) -> Times:
        """When each token behind a prompt of so many is spoken; the last is end-of-text."""
        assert self.total is not None
        n_tokens = len(self.total)
        # The row that writes a token is the one before it: from the prompt's last to the text's.
        rows = self.total[n_prompt - 1 : n_tokens - 1].cpu()
        starts = [start / POSITIONS_PER_SECOND for start in align(rows)]
        return [*[None] * n_prompt, *pairwise(starts), None]


def timing_weights(
    pattern: Float[Tensor, "head token pos"],
) -> Float[Tensor, "head token pos"]:
    """What word timing reads of each head's attention to the sound.

    In standard deviations from its mean over the tokens, smoothed in time.

    Source: `whisper.timing.find_alignment`.
    """
    from whisper.timing import median_filter

    weights = pattern.float()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    smoothed: Tensor = median_filter(
        ((weights - mean) / std.where(std > 0, 1.0)).nan_to_num(), MEDIAN_WIDTH
    )
    return smoothed


def align(weights: Float[Tensor, "token pos"]) -> list[int]:
    """The position at which each token begins, by dynamic time warping.

    The path through all tokens and all positions, neither ever going back,
    over which the weights add up to the most: `whisper.timing.dtw`.

    >>> align(torch.tensor([[9.0, 9, -1, -1], [-1, -1, 9, 9]]))
    [0, 2]
    """
    from whisper.timing import dtw

    tokens, positions = dtw(-weights)
    starts: dict[int, int] = {}
    for token, position in zip(tokens.tolist(), positions.tolist(), strict=True):
        starts.setdefault(token, position)
    return list(starts.values())


def words_of_tokens(
    tokenizer: "Tokenizer", tokens: Sequence[int], n_prompt: int
) -> list[tuple[str, range]]:
    """The words of a text, with the marks behind them, and the places of their tokens.

    Args:
        tokenizer: Whose tokens they are.
        tokens: The prompt, the text and end-of-text.
        n_prompt: Tokens of the prompt.
    """
    words: list[tuple[str, range]] = []
    at = n_prompt
    for word, group in zip(*tokenizer.split_to_word_tokens(list(tokens[n_prompt:-1])), strict=True):
        places = range(at, at + len(group))
        at += len(group)
        if not group or not is_written(group[0], tokenizer):
            continue
        if words and not _without_marks(word):
            before, earlier = words.pop()
            word, places = before + word.rstrip(), range(earlier.start, at)
        words.append((word.strip(), places))
    return words


def word_times(words: Sequence[tuple[str, range]], times: Times) -> list[Word]:
    """The words of `words_of_tokens`, each from its first token's start to its last one's end."""
    found: list[Word] = []
    for word, places in words:
        first, last = times[places[0]], times[places[-1]]
        if first and last:
            found.append((first[0], last[1], word))
    return found


def times_of_known_words(
    words: Sequence[tuple[str, range]], known: Sequence[Word], n_tokens: int
) -> Times | None:
    """When each of `n_tokens` is spoken, by words whose times are known; None if they are others.

    The tokens of a word share its time evenly.
    """
    if [_without_marks(word) for word, _ in words] != [_without_marks(word) for *_, word in known]:
        return None
    times: Times = [None] * n_tokens
    for (_, places), (start_s, end_s, _) in zip(words, known, strict=True):
        step_s = (end_s - start_s) / len(places)
        for i, place in enumerate(places):
            times[place] = (start_s + i * step_s, start_s + (i + 1) * step_s)
    return times


def _without_marks(word: str) -> str:
    """A word as people compare it: without case and marks around it."""
    return word.strip().strip(string.punctuation).casefold()
