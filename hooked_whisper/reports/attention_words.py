"""What the decoder reads, token by token, and when each token is spoken."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.analysis.attention_timing import POSITIONS_PER_SECOND
from hooked_whisper.errors import InputError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens, get_tokenizer

Word = tuple[float, float, str]
"""Start and end in seconds, and what is said."""
Times = list[tuple[float, float] | None]
"""Start and end of each token in seconds; None for what is not spoken: the prompt, the end."""

_MEDIAN = 7
"""Positions over which openai-whisper smooths attention before it aligns."""


@dataclass(frozen=True)
class Transcript:
    """A text as the decoder reads it.

    Args:
        tokens: The prompt, the text, and end-of-text.
        n_prompt: Tokens of the prompt.
        text: The text alone; empty where nothing is said.
        language: Its code.
    """

    tokens: Int[Tensor, "one pos"]
    n_prompt: int
    text: str
    language: str


def read_transcript(
    model: HookedWhisper, mel: Mel, text: str | None, language: str | None
) -> Transcript:
    """The tokens of a text, or of what the model writes down itself where there is none.

    Args:
        model: The model.
        mel: One recording.
        text: What is said; begins with a space, or is given one, as Whisper writes.
        language: A code or name; None has the model find out where it writes
            itself, and means English for a text.

    Raises:
        TokenError: No such language, or a text of more tokens than the decoder has positions.
    """
    if text is None:
        made = model.generate(mel, language=language)
        tokenizer = get_tokenizer(model.cfg, made.languages[0])
        row, n_prompt, language = made.tokens[0].tolist(), made.n_prompt, made.languages[0]
        written = [token for token in row[n_prompt:] if token != tokenizer.eot]
        written = written[: model.cfg.n_text_ctx - n_prompt - 1]
        tokens = torch.tensor([[*row[:n_prompt], *written, tokenizer.eot]])
    else:
        tokenizer = get_tokenizer(model.cfg, language)
        stripped = text.strip()
        spaced = f" {stripped}" if stripped and not stripped.startswith("<|") else stripped
        n_prompt = model.to_tokens("", language=language).shape[1]
        tokens = model.to_tokens(spaced, append_eot=True, language=language)
    tokens = tokens.to(model.device)
    check_tokens(tokens, model.cfg.d_vocab, model.cfg.n_text_ctx)
    said = model.to_string(tokens[0]).strip()
    return Transcript(tokens, n_prompt, said, tokenizer.language or "en")


class AlignmentReducer:
    """A hook for cross-attention, which adds up what word timing reads of its alignment heads.

    Args:
        model: Whose alignment heads to read.
        n_sound: Encoder positions that hold sound.

    Source: `whisper.timing.find_alignment`: each head's attention to the sound,
    in standard deviations from its mean over the tokens, smoothed in time.
    """

    def __init__(self, model: HookedWhisper, n_sound: int) -> None:
        self.heads: dict[int, list[int]] = {}
        for layer, head in model.alignment_heads.to_dense().nonzero().tolist():
            self.heads.setdefault(layer, []).append(head)
        self.n_sound = n_sound
        self.total: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """The hooks that it reads."""
        return [f"decoder.blocks.{layer}.cross_attn.hook_pattern" for layer in self.heads]

    def __call__(self, value: Tensor, hook: Any) -> None:
        """Add the heads of one layer."""
        layer = int(hook.name.split(".")[2])
        weights = value[0, self.heads[layer], :, : self.n_sound].float()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        weights = ((weights - mean) / std.where(std > 0, 1.0)).nan_to_num()
        added = _smooth(weights).sum(dim=0)
        self.total = added if self.total is None else self.total + added

    def token_times(self, n_prompt: int) -> Times:
        """When each token is spoken, as the heads hear it.

        Args:
            n_prompt: Tokens of the prompt.
        """
        assert self.total is not None
        n_tokens = len(self.total)
        # The row that writes a token is the one before it: from the prompt's last to the text's.
        rows = self.total[n_prompt - 1 : n_tokens - 1].cpu()
        starts = [start / POSITIONS_PER_SECOND for start in align(rows)]
        spoken = [(starts[i], starts[i + 1]) for i in range(len(starts) - 1)]
        return [*[None] * n_prompt, *spoken, None]


def align(weights: Float[Tensor, "token pos"]) -> list[int]:
    """The position at which each token begins, by dynamic time warping.

    The path through all tokens and all positions, neither ever going back,
    over which the weights add up to the most.

    Source: `whisper.timing.dtw`, with the same choice among equals; here by
    antidiagonals, whose cells do not wait for each other.

    >>> align(torch.tensor([[9.0, 9, -1, -1], [-1, -1, 9, 9]]))
    [0, 2]
    """
    x = -weights.double().numpy()
    n, m = x.shape
    came_from = np.zeros((n, m), np.int8)
    before = older = np.full(n + 1, np.inf)
    older = older.copy()
    older[0] = 0.0  # the way in
    for d in range(n + m - 1):
        rows = np.arange(max(0, d - m + 1), min(n - 1, d) + 1)
        ways = np.stack([older[rows], before[rows], before[rows + 1]])  # diagonal, above, left
        diagonal = (ways[0] < ways[1]) & (ways[0] < ways[2])
        above = ~diagonal & (ways[1] < ways[0]) & (ways[1] < ways[2])
        choice = np.where(diagonal, 0, np.where(above, 1, 2))
        current = np.full(n + 1, np.inf)
        current[rows + 1] = x[rows, d - rows] + ways[choice, np.arange(len(rows))]
        came_from[rows, d - rows] = choice
        older, before = before, current
    starts = [0] * n
    i, j = n - 1, m - 1
    while i >= 0 and j >= 0:
        starts[i] = int(j)
        way = came_from[i, j]
        i, j = i - (way != 2), j - (way != 1)
    return starts


def words_of(model: HookedWhisper, transcript: Transcript, times: Times) -> list[Word]:
    """The words that the text's tokens make, each from its first token's start to its last's end.

    Args:
        model: Whose tokenizer to ask.
        transcript: The tokens.
        times: When each is spoken.
    """
    words: list[Word] = []
    for word, places in _groups(model, transcript):
        first, last = times[places[0]], times[places[-1]]
        if first and last:
            words.append((first[0], last[1], word))
    return words


def times_of_words(
    model: HookedWhisper, transcript: Transcript, words: Sequence[Word]
) -> Times | None:
    """When each token is spoken, by words whose times are known; None if the text has others.

    The tokens of a word share its time evenly.

    Args:
        model: Whose tokenizer to ask.
        transcript: The tokens.
        words: What is said, in order.
    """
    groups = _groups(model, transcript)
    if [_plain(word) for word, _ in groups] != [_plain(word) for _, _, word in words]:
        return None
    times: list[tuple[float, float] | None] = [None] * transcript.tokens.shape[1]
    for (_, places), (start_s, end_s, _) in zip(groups, words, strict=True):
        step_s = (end_s - start_s) / len(places)
        for i, place in enumerate(places):
            times[place] = (start_s + i * step_s, start_s + (i + 1) * step_s)
    return times


def _groups(model: HookedWhisper, transcript: Transcript) -> list[tuple[str, range]]:
    """The text's words, with the marks behind them, and the places of their tokens."""
    tokenizer = get_tokenizer(model.cfg, transcript.language)
    row = transcript.tokens[0].tolist()[transcript.n_prompt : -1]
    groups: list[tuple[str, range]] = []
    at = transcript.n_prompt
    for word, tokens in zip(*tokenizer.split_to_word_tokens(row), strict=True):
        places = range(at, at + len(tokens))
        at += len(tokens)
        if not tokens or tokens[0] >= tokenizer.eot:
            continue
        if groups and not _plain(word):
            before, earlier = groups.pop()
            word, places = before + word.rstrip(), range(earlier.start, at)
        groups.append((word.strip(), places))
    return groups


def _plain(word: str) -> str:
    """A word as people compare it: without case and marks around it."""
    return word.strip().strip(string.punctuation).casefold()


def check_words(words: Sequence[Any]) -> list[Word]:
    """Words with their times, as plain tuples.

    Raises:
        InputError: One that is no start, end and word, or ends before it starts.
    """
    checked: list[Word] = []
    for number, each in enumerate(words):
        try:
            start_s, end_s, word = each
            start_s, end_s = float(start_s), float(end_s)
        except (TypeError, ValueError):
            raise InputError(
                f"word {number} is {each!r}; pass its start and end in seconds and the word: "
                '(0.5, 0.9, "three").'
            ) from None
        if not 0 <= start_s <= end_s < float("inf"):
            raise InputError(
                f"word {number}, {word!r}, goes from {start_s:g} to {end_s:g} s; it must begin at "
                "0 s or later, and end after that."
            )
        checked.append((start_s, end_s, str(word)))
    return checked


def _smooth(weights: Float[Tensor, "head token pos"]) -> Float[Tensor, "head token pos"]:
    """The median of seven positions around each; as it is where there are too few."""
    aside = _MEDIAN // 2
    if weights.shape[-1] <= aside:
        return weights
    padded = F.pad(weights, (aside, aside), mode="reflect")
    return padded.unfold(-1, _MEDIAN, 1).sort(dim=-1).values[..., aside]
