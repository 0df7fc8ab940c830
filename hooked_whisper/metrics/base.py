"""What a run is judged by: one number for each row of logits.

A metric is called with logits and returns a number for each row. One that
reads some positions only says which (`positions`), so that a sweep need not
compute the others' logits. Here are what all metrics share and how a function becomes
one; those of single tokens are in `tokens`, of many in `sequences`, of the
written text in `transcripts`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from hooked_whisper.errors import MetricError, describe


class Metric(ABC):
    """One number for each row, from logits.

    A subclass computes `of_positions`, and says in `positions` what it reads.
    Gradients flow back to the logits wherever the formula has any.
    """

    reads_transcript: ClassVar[bool] = False

    @property
    def positions(self) -> tuple[int, ...] | None:
        """Decoder positions that are read; negative ones count from the last; None is all."""
        return None

    @abstractmethod
    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        """The metric, from the logits at `positions` alone, in that order."""

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float32[Tensor, "batch"]:
        """The metric, from the logits of a whole pass.

        Raises:
            MetricError: Positions, tokens or rows that these logits do not have.
        """
        places = resolve_positions(self, logits.shape[1])
        return self.of_positions(logits if places is None else logits[:, places])

    def of_some_tokens(self) -> "tuple[Metric, list[int]] | None":
        """The same for the logits of some tokens alone, and these tokens; None if it reads all."""
        return None

    def check(self, n_rows: int, n_pos: int, d_vocab: int) -> None:
        """Refuse a run that this metric cannot judge, before it is computed.

        Args:
            n_rows: Rows of the run.
            n_pos: Tokens given to the decoder.
            d_vocab: Size of the vocabulary.

        Raises:
            MetricError: Positions, tokens or rows that such a run does not have.
        """
        resolve_positions(self, n_pos)


class PositionMetric(Metric):
    """A metric made of one number for each position that it reads.

    A sweep then need not look again at positions that a patch does not reach.
    """

    @abstractmethod
    def at_positions(
        self, logits: Float[Tensor, "batch n_some vocab"], first: int = 0
    ) -> Float32[Tensor, "batch n_some"]:
        """The numbers of some of the positions: those from the `first` that is read on."""

    @abstractmethod
    def combine(self, numbers: Float32[Tensor, "batch n_positions"]) -> Float32[Tensor, "batch"]:
        """The metric, from the numbers of all positions that are read."""

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        return self.combine(self.at_positions(logits))


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A metric of one's own; see `as_metric`."""

    function: Callable[[Tensor], Any]
    read: tuple[int, ...] | None = None

    @property
    def positions(self) -> tuple[int, ...] | None:
        return self.read

    def of_positions(
        self, logits: Float[Tensor, "batch n_positions vocab"]
    ) -> Float32[Tensor, "batch"]:
        return check_values(self.function(logits), len(logits), self.function)


def as_metric(function: Any, positions: Sequence[int] | None = None) -> Metric:
    """A metric from any function of logits `[batch pos vocab]` to one number for each row.

    Args:
        function: It must treat each row by itself: a sweep puts several runs
            side by side. A `Metric` is returned as it is.
        positions: The decoder positions that it reads; then it gets the
            logits of these alone, in this order. None gives it all.

    Raises:
        MetricError: No function; or, when called, a result that is not one
            finite number for each row.

    >>> as_metric(lambda logits: logits[:, -1].max(dim=-1).values)(torch.ones(2, 3, 4))
    tensor([1., 1.])
    """
    if getattr(function, "reads_transcript", False):
        raise MetricError(
            f"{function!r} judges a text, but logits are what is judged here. Give a metric of "
            "logits."
        )
    if isinstance(function, Metric):
        return function
    if not callable(function):
        raise MetricError(
            f"{function!r} is no metric. Give one such as LogProb(token), or a function of logits "
            "[batch pos vocab] that returns one number for each row."
        )
    if positions is not None:
        positions = tuple(positions)
        for pos in positions:
            check_position(pos)
        if not positions:
            raise MetricError("positions are empty. Give at least one, or None for all.")
    return FunctionMetric(function, positions)


def check_values(values: Any, n_rows: int, metric: Any = None) -> Float32[Tensor, "batch"]:
    """What a metric returned, if it is one finite number for each row."""
    name = "the metric" if metric is None else f"the metric {metric_name(metric)}"
    need = f"It must return a tensor of one number for each of the {n_rows} rows: shape ({n_rows},)"
    if not isinstance(values, Tensor):
        raise MetricError(f"{name} returned {describe(values)}. {need}.")
    if tuple(values.shape) != (n_rows,):
        raise MetricError(
            f"{name} returned a tensor of shape {tuple(values.shape)}. {need}, for instance "
            "logits[:, -1, token]."
        )
    if values.is_complex() or values.layout != torch.strided or values.is_meta:
        kind = "a meta tensor" if values.is_meta else f"{values.dtype}, {values.layout}"
        raise MetricError(f"{name} returned {kind}, no plain real numbers. {need}.")
    bad = ~torch.isfinite(values.detach())
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise MetricError(
            f"{name} gave {float(values[row])} in row {row}, and {int(bad.sum())} of {n_rows} rows "
            "are not finite. Look at the logits there: model(mel, tokens)[row]."
        )
    return values.float()


def check_position(pos: Any, what: str = "pos") -> None:
    """Refuse what is no decoder position."""
    if isinstance(pos, bool) or not isinstance(pos, int):
        raise MetricError(
            f"{what} is {describe(pos)}; it must be a decoder position: an integer, negative ones "
            "counted from the last."
        )


def resolve_positions(metric: Any, n_pos: int) -> list[int] | None:
    """The positions that a metric reads, counted from 0; None for all.

    >>> resolve_positions(as_metric(torch.sum, positions=[0, -1]), n_pos=7)
    [0, 6]
    """
    positions = getattr(metric, "positions", None)
    if positions is None:
        return None
    for pos in positions:
        if not -n_pos <= pos < n_pos:
            raise MetricError(
                f"the metric {metric_name(metric)} reads position {pos}; there are {n_pos}, from "
                f"{-n_pos} to {n_pos - 1}."
            )
    return [pos % n_pos for pos in positions]


def metric_name(metric: Any) -> str:
    """A metric's short name for a message."""
    if isinstance(metric, FunctionMetric):
        metric = metric.function
    return getattr(metric, "__name__", None) or type(metric).__name__
