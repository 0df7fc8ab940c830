"""Metrics of many tokens at once: a whole text's log-probability, its loss, the divergence."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from hooked_whisper.errors import AlignmentError, MetricError, describe
from hooked_whisper.metrics.base import (
    PositionMetric,
    check_position,
    metric_name,
    resolve_positions,
)

_ROWS_AT_ONCE = 8
"""Rows of a softmax over the vocabulary that the processor's cache holds."""


@dataclass(frozen=True, eq=False)
class _OfText(PositionMetric):
    """A metric of the predictions of a text's tokens, each given those before it.

    The logits at one position predict the token at the next one.
    """

    tokens: Int[Tensor, "batch pos"]
    start: int = 1
    n_tokens: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        tokens = self.tokens
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
            raise MetricError(
                f"tokens are {describe(tokens)}; they must be an integer tensor [batch, pos]: "
                "model.to_tokens(text), or example.tokens."
            )
        n_rows, n_pos = tokens.shape
        if n_pos < 2 or n_rows < 1:
            raise MetricError(
                f"tokens have shape {(n_rows, n_pos)}; a row needs two or more, as nothing "
                "predicts the first."
            )
        check_position(self.start, "start")
        start = self.start + n_pos if self.start < 0 else self.start
        if not 1 <= start < n_pos:
            raise MetricError(
                f"start is {self.start}; with {n_pos} tokens it can be 1 to {n_pos - 1}, or "
                f"{1 - n_pos} to -1. Nothing predicts the first token."
            )
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "tokens", tokens.detach().clone().long())
        self._check_lengths()

    def _check_lengths(self) -> None:
        if self.n_tokens is None:
            return
        n_rows, n_pos = self.tokens.shape
        lengths = [self.n_tokens] if isinstance(self.n_tokens, int) else list(self.n_tokens)
        if len(lengths) not in (1, n_rows) or not all(
            self.start < each <= n_pos for each in lengths
        ):
            raise MetricError(
                f"n_tokens is {self.n_tokens!r}; it must be a number of tokens from "
                f"{self.start + 1} to {n_pos}, or one for each of the {n_rows} rows."
            )

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(range(self.start - 1, self.tokens.shape[1] - 1))

    def check(self, n_rows: int, n_pos: int, d_vocab: int) -> None:
        super().check(n_rows, n_pos, d_vocab)
        have = len(self.tokens)
        if have not in (1, n_rows):
            raise MetricError(
                f"the metric {metric_name(self)} has {have} rows of tokens for {n_rows} rows of "
                "logits. Give one row, or as many."
            )
        low, high = (int(bound) for bound in torch.aminmax(self.tokens))
        if low < 0 or high >= d_vocab:
            raise MetricError(
                f"the metric's tokens go from {low} to {high}; ids go from 0 to {d_vocab - 1}."
            )

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        n_positions, needed = logits.shape[1], len(self.positions)
        if n_positions != needed:
            raise MetricError(
                f"logits of {n_positions} positions were given to {metric_name(self)}, which "
                f"reads {needed}. Call it with the logits of all positions: metric(logits)."
            )
        return super().of_positions(logits)

    def _targets(self, logits: Tensor, first: int) -> Int[Tensor, "batch n_some"]:
        """The tokens that these logits predict, after checking that they fit."""
        n_rows, n_some, d_vocab = logits.shape
        self.check(n_rows, self.tokens.shape[1], d_vocab)
        start = self.start + first
        return self.tokens[:, start : start + n_some].to(logits.device).expand(n_rows, -1)

    def _counts(self, device: torch.device) -> Bool[Tensor, "rows n_positions"]:
        """Which of the predictions count: those of tokens that are no padding."""
        places = torch.arange(self.start, self.tokens.shape[1], device=device)
        n_tokens = self.tokens.shape[1] if self.n_tokens is None else self.n_tokens
        return places < torch.tensor(n_tokens, device=device).view(-1, 1)

    def _log_probs(self, logits: Tensor, first: int) -> Float32[Tensor, "batch n_some"]:
        """Log-probability of each token, in nats."""
        targets = self._targets(logits, first)
        parts = zip(
            logits.flatten(0, 1).split(_ROWS_AT_ONCE),
            targets.reshape(-1, 1).split(_ROWS_AT_ONCE),
            strict=True,
        )
        picked = [part.float().log_softmax(dim=-1).gather(1, wanted) for part, wanted in parts]
        return torch.cat(picked).view(targets.shape)


@dataclass(frozen=True, eq=False)
class SequenceLogProb(_OfText):
    """Log-probability of a whole text, in nats: the sum over its tokens, each given those before.

    Args:
        tokens: What the decoder is given, start sequence included; one row
            serves every row.
        start: The first token that counts. Nothing predicts token 0.
        n_tokens: Tokens in each row, where the rest is padding; None is all.

    Raises:
        MetricError: No such tokens, start or lengths.

    >>> SequenceLogProb(torch.tensor([[0, 1, 1]]))(torch.zeros(1, 3, 2))
    tensor([-1.3863])
    """

    def at_positions(
        self, logits: Float[Tensor, "batch n_some vocab"], first: int = 0
    ) -> Float32[Tensor, "batch n_some"]:
        return self._log_probs(logits, first)

    def combine(self, numbers: Float32[Tensor, "batch n_positions"]) -> Float32[Tensor, "batch"]:
        return torch.where(self._counts(numbers.device), numbers, 0.0).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class Loss(_OfText):
    """Mean cross-entropy of a text's tokens, in nats: what `model.loss` gives, row by row.

    See `SequenceLogProb` for the arguments. `start=1` without `n_tokens` is
    `model.loss`, which counts padding too.

    >>> Loss(torch.tensor([[0, 1, 1]]))(torch.zeros(1, 3, 2))
    tensor([0.6931])
    """

    def at_positions(
        self, logits: Float[Tensor, "batch n_some vocab"], first: int = 0
    ) -> Float32[Tensor, "batch n_some"]:
        return -self._log_probs(logits, first)

    def combine(self, numbers: Float32[Tensor, "batch n_positions"]) -> Float32[Tensor, "batch"]:
        counts = self._counts(numbers.device)
        return torch.where(counts, numbers, 0.0).sum(dim=-1) / counts.sum(dim=-1)


@dataclass(frozen=True, eq=False)
class ExactSequence(_OfText):
    """1 where each token of a text is the most probable one given those before it, else 0.

    Then greedy decoding, left to itself, writes this very text. It has no
    gradient. See `SequenceLogProb` for the arguments.

    >>> ExactSequence(torch.tensor([[0, 1, 1]]))(torch.eye(2)[[1, 1, 0]][None])
    tensor([1.])
    """

    def at_positions(
        self, logits: Float[Tensor, "batch n_some vocab"], first: int = 0
    ) -> Float32[Tensor, "batch n_some"]:
        return (self._targets(logits, first) == logits.argmax(dim=-1)).float()

    def combine(self, numbers: Float32[Tensor, "batch n_positions"]) -> Float32[Tensor, "batch"]:
        return ((numbers == 1) | ~self._counts(numbers.device)).all(dim=-1).float()


@dataclass(frozen=True, eq=False)
class KLDivergence(PositionMetric):
    """How far the predictions are from those of a reference run, in nats: KL(reference || run).

    The mean over positions; 0 where both predict alike.

    Args:
        reference_logits: Of the reference run, over all positions; one row
            serves every row.
        pos: The decoder positions to compare; None is all of them.

    Raises:
        MetricError: The reference holds NaN, or has no such positions.

    Source: Kullback and Leibler 1951.
    """

    reference_logits: Float[Tensor, "batch pos vocab"] = field(repr=False)
    pos: int | Sequence[int] | None = None
    _log_probs: Float32[Tensor, "batch n_positions vocab"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.positions == ():
            raise MetricError("pos is empty. Give at least one position, or None for all.")
        for pos in self.positions or ():
            check_position(pos)
        reference = self.reference_logits.detach()
        places = resolve_positions(self, reference.shape[1])
        if places is not None:
            reference = reference[:, places]
        log_probs = reference.float().log_softmax(dim=-1)
        if bool(log_probs.isnan().any()):
            raise MetricError("the reference logits hold NaN, or a position with no token at all.")
        object.__setattr__(self, "_log_probs", log_probs)

    @property
    def positions(self) -> tuple[int, ...] | None:
        if self.pos is None:
            return None
        return (self.pos,) if isinstance(self.pos, int) else tuple(self.pos)

    def check(self, n_rows: int, n_pos: int, d_vocab: int) -> None:
        have = self.reference_logits.shape
        if have[0] not in (1, n_rows) or have[1:] != (n_pos, d_vocab):
            raise AlignmentError(
                f"the reference logits are {tuple(have)} and the run's ({n_rows}, {n_pos}, "
                f"{d_vocab}), [batch pos vocab]. Give a reference of one row or as many, made "
                "with tokens of the same length."
            )

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float32[Tensor, "batch"]:
        self.check(*logits.shape)
        return super().__call__(logits)

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        expected = self._log_probs
        if logits.shape[1:] != expected.shape[1:] or len(expected) not in (1, len(logits)):
            raise AlignmentError(
                f"the reference has {tuple(expected.shape)} logits at the positions that are "
                f"compared, the run {tuple(logits.shape)}, [batch pos vocab]."
            )
        return super().of_positions(logits)

    def at_positions(
        self, logits: Float[Tensor, "batch n_some vocab"], first: int = 0
    ) -> Float32[Tensor, "batch n_some"]:
        expected = self._log_probs[:, first : first + logits.shape[1]].to(logits.device)
        probs = expected.exp()
        apart = expected - logits.float().log_softmax(dim=-1)
        # A token that the reference rules out adds nothing, though its logarithm is infinite.
        return (probs * torch.where(probs > 0, apart, 0.0)).sum(dim=-1)

    def combine(self, numbers: Float32[Tensor, "batch n_positions"]) -> Float32[Tensor, "batch"]:
        return numbers.mean(dim=-1)
