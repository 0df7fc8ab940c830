"""Metrics of single tokens: their logits, probabilities and ranks at one position."""

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from hooked_whisper.errors import MetricError, describe
from hooked_whisper.metrics.base import Metric, check_position, metric_name
from hooked_whisper.model.generate import suppressed_tokens
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.tokens import get_tokenizer

TokenIds = Any
"""A token id for all rows, or several, one for each: numbers or a tensor; see `token_ids`."""


class _OfTokens(Metric):
    """A metric that reads some tokens' scores at one position."""

    pos: int
    _names: ClassVar[tuple[str, ...]] = ("token",)

    def __post_init__(self) -> None:
        for name in self._names:
            object.__setattr__(self, name, token_ids(getattr(self, name), name))
        check_position(self.pos)

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.pos,)

    def check(self, n_rows: int, n_pos: int, d_vocab: int) -> None:
        super().check(n_rows, n_pos, d_vocab)
        for name in self._names:
            _check_ids(getattr(self, name), name, n_rows, d_vocab)

    def _scores(self, logits: Tensor) -> Float32[Tensor, "batch vocab"]:
        """The logits of the one position, after checking that they fit."""
        n_rows, n_positions, d_vocab = logits.shape
        if n_positions != 1:
            raise MetricError(
                f"logits of {n_positions} positions were given to {metric_name(self)}, which reads "
                "one. Call it with the logits of all positions: metric(logits)."
            )
        self.check(n_rows, max(self.pos + 1, -self.pos), d_vocab)
        return logits[:, 0].float()


@dataclass(frozen=True)
class LogitDifference(_OfTokens):
    """How much higher the logit of one token is than that of another.

    Args:
        right: Token id, or one for each row.
        wrong: What it is compared with.
        pos: The decoder position that predicts them, one before their own.

    Raises:
        MetricError: No token ids, or as many as there are no rows.

    Source: Wang et al. 2022, section 2.

    >>> LogitDifference(right=2, wrong=0)(torch.tensor([[[1.0, 0.0, 4.0]]]))
    tensor([3.])
    """

    right: TokenIds
    wrong: TokenIds
    pos: int = -1
    _names: ClassVar[tuple[str, ...]] = ("right", "wrong")

    def of_some_tokens(self) -> tuple[Metric, list[int]] | None:
        if isinstance(self.right, int) and isinstance(self.wrong, int):
            return LogitDifference(0, 1, self.pos), [self.right, self.wrong]
        return None

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        scores = self._scores(logits)
        return _pick(scores, self.right) - _pick(scores, self.wrong)


@dataclass(frozen=True)
class LogProb(_OfTokens):
    """Log-probability of a token, in nats.

    Args:
        token: Token id, or one for each row.
        pos: The decoder position that predicts it, one before its own.

    Raises:
        MetricError: No token ids, or as many as there are no rows.

    >>> LogProb(token=1)(torch.zeros(1, 1, 2))
    tensor([-0.6931])
    """

    token: TokenIds
    pos: int = -1

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        return _pick(self._scores(logits).log_softmax(dim=-1), self.token)


@dataclass(frozen=True)
class Probability(_OfTokens):
    """Probability of a token, 0 to 1; see `LogProb` for the arguments.

    >>> Probability(token=1)(torch.zeros(1, 1, 2))
    tensor([0.5000])
    """

    token: TokenIds
    pos: int = -1

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        return _pick(self._scores(logits).softmax(dim=-1), self.token)


@dataclass(frozen=True)
class TokenRank(_OfTokens):
    """How many tokens are more probable than this one: 0 for the most probable.

    Equally probable tokens are not counted, and it has no gradient. See
    `LogProb` for the arguments.

    >>> TokenRank(token=0)(torch.tensor([[[1.0, 0.0, 4.0]]]))
    tensor([1.])
    """

    token: TokenIds
    pos: int = -1

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        scores = self._scores(logits).detach()
        return (scores > _pick(scores, self.token)[:, None]).sum(dim=-1).float()


@dataclass(frozen=True)
class NoSpeechProb(Metric):
    """Probability of `<|nospeech|>` at the start, by which Whisper tells silence, 0 to 1.

    Args:
        model: Its vocabulary says which token that is.
        pos: The position of `<|startoftranscript|>`: 0, unless a prompt stands before it.

    Raises:
        TokenError: The model's vocabulary is not Whisper's.

    Source: `no_speech_prob` of `whisper.decoding.DecodingTask`.
    """

    model: HookedWhisper = field(repr=False)
    pos: int = 0
    token: int = field(init=False)

    def __post_init__(self) -> None:
        check_position(self.pos)
        object.__setattr__(self, "token", get_tokenizer(self.model.cfg).no_speech)

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.pos,)

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        return Probability(self.token, self.pos).of_positions(logits)


@dataclass(frozen=True)
class EndMargin(Metric):
    """How far the end of the text lies above every other token that may be written, in logits.

    Behind the prompt it tells whether anything is written at all: above 0 the model writes
    nothing, greedily and by `generate`'s rules; below 0 it begins a text.

    Args:
        model: Its vocabulary says which token the end is, and which are never written.
        pos: The position that predicts it; the last token of the prompt for an empty text.

    Raises:
        TokenError: The model's vocabulary is not Whisper's.

    Source: the token rules of `whisper.decoding.DecodingTask`.
    """

    model: HookedWhisper = field(repr=False)
    pos: int = -1
    end: int = field(init=False)
    suppressed: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_position(self.pos)
        object.__setattr__(self, "end", get_tokenizer(self.model.cfg).eot)
        object.__setattr__(self, "suppressed", tuple(suppressed_tokens(self.model)))

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.pos,)

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        scores = logits[:, -1].float()
        never = torch.tensor([self.end, *self.suppressed], device=scores.device)
        others = scores.index_fill(-1, never, -torch.inf)
        return scores[:, self.end] - others.max(dim=-1).values


def token_ids(value: Any, what: str) -> int | tuple[int, ...]:
    """Token ids as plain numbers: one for all rows, or one for each.

    >>> token_ids(torch.tensor([5, 7]), "token")
    (5, 7)
    """
    plain = value.tolist() if hasattr(value, "tolist") else value
    several = isinstance(plain, list | tuple)
    ids = tuple(plain) if several else (plain,)
    for each in ids:
        if isinstance(each, bool) or not hasattr(each, "__index__") or operator.index(each) < 0:
            raise MetricError(
                f"{what} is {describe(value)}; it must be a token id, or one for each row. "
                "Find one with model.to_tokens(text, prepend_sot=False)[0, 0]."
            )
    if not ids:
        raise MetricError(f"{what} is empty; give one token id, or one for each row.")
    ids = tuple(map(operator.index, ids))
    return ids if several else ids[0]


def _check_ids(ids: Any, what: str, n_rows: int, d_vocab: int) -> None:
    """Refuse tokens out of the vocabulary, and as many as there are no rows."""
    each = ids if isinstance(ids, tuple) else (ids,)
    if len(each) not in (1, n_rows):
        raise MetricError(
            f"{what} has {len(each)} token ids for {n_rows} rows of logits. Give one, or one for "
            "each row."
        )
    if max(each) >= d_vocab:
        raise MetricError(
            f"{what} is {max(each)}, out of the vocabulary: ids go from 0 to {d_vocab - 1}."
        )


def _pick(scores: Float[Tensor, "batch vocab"], ids: Any) -> Float[Tensor, "batch"]:
    """Each row's score of its token."""
    if isinstance(ids, int):
        return scores[:, ids]
    index = torch.tensor(ids, device=scores.device).expand(len(scores))
    return scores.gather(1, index[:, None])[:, 0]
