"""Massive activations: a few positions whose vectors are many times as long as all others.

In language models they sit at the first token and at delimiters, and act as biases of
attention. In Whisper's encoder they sit in pauses. What they do to numbers is the same: they
carry most of the variance, so that a share of variance says little of all other positions.

Source: Sun et al. 2024, "Massive Activations in Large Language Models", whose thresholds, made
for language models (over 100, and 1,000 times the median number), no Whisper reaches.
"""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from hooked_whisper.errors import InputError

MASSIVE_TIMES = 3.0
"""A vector over so many times the median length is massive."""

_STEP = math.log(1.01)
"""How finely lengths are told apart by `SumsByNorm`, on a logarithmic scale: 1 %."""


def is_massive(
    vectors: Float[Tensor, "vector d_model"], times: float | int = MASSIVE_TIMES
) -> Bool[Tensor, " vector"]:
    """Which vectors are longer than so many times the median length (L2) of all of them.

    >>> is_massive(torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, -4.0], [90.0, 0.0]])).tolist()
    [False, False, False, True]
    """
    check_times(times)
    norms = vectors.detach().float().norm(dim=-1)
    return norms > times * norms.median() if len(norms) else norms > 0


def check_times(times: float | int) -> None:
    """Refuse a threshold that would call half of all vectors massive.

    Raises:
        InputError: It is 1 or less.
    """
    if not times > 1:
        raise InputError(f"times is {times}; it must be over 1, such as {MASSIVE_TIMES:g}.")


class SumsByNorm:
    """Sums over vectors by their length, from which those without the massive ones follow.

    The median length is known when all vectors have come; which are massive follows from it.
    Lengths are told apart in steps of 1 %, so that memory does not grow with the data and
    batches of any size give the same numbers.
    """

    def __init__(self) -> None:
        # Of each step of length: vectors, their squared lengths, squared errors, the vectors.
        self._sums: dict[int, Float64[Tensor, " column"]] = {}

    def add(
        self,
        vectors: Float[Tensor, "vector width"],
        squared_errors: Float[Tensor, " vector"],
    ) -> None:
        """Take a batch in: vectors, and how far off each one's reconstruction is."""
        x = vectors.detach().double()
        squared = x.square().sum(dim=1)
        steps = (squared.clamp_min(1e-300).log() / (2 * _STEP)).floor().long()
        found, inverse = steps.unique(return_inverse=True)
        one = torch.ones_like(squared)
        columns = torch.stack([one, squared, squared_errors.double()], dim=1)
        rows = torch.cat([columns, x], dim=1)
        sums = rows.new_zeros(len(found), rows.shape[1]).index_add_(0, inverse, rows)
        for step, own in zip(found.tolist(), sums, strict=True):
            self._sums[step] = self._sums[step] + own if step in self._sums else own

    def parted(self, times: float | int = MASSIVE_TIMES) -> tuple["Part", "Part"]:
        """All vectors but the massive ones, and all vectors."""
        check_times(times)
        if not self._sums:
            raise InputError("no vectors were added; there is nothing to tell.")
        steps: Int64[Tensor, " step"] = torch.tensor(sorted(self._sums))
        rows = torch.stack([self._sums[step] for step in steps.tolist()])
        counts = rows[:, 0].cumsum(0)
        median = int((counts > (int(counts[-1]) - 1) // 2).nonzero()[0])
        usual = steps <= steps[median] + round(math.log(times) / _STEP)
        return Part(rows[usual].sum(dim=0)), Part(rows.sum(dim=0))


class Part:
    """Some vectors, by their sums.

    Args:
        sums: Number, squared lengths, squared errors, and the vectors, summed up.
    """

    def __init__(self, sums: Float64[Tensor, " column"]) -> None:
        self.n, self.squared, self.squared_error = int(sums[0]), float(sums[1]), float(sums[2])
        self.sum = sums[3:]
        self._mean = self.sum / sums[0]

    @property
    def spread(self) -> float:
        """Squared distances from their own mean vector, summed up."""
        return max(0.0, self.squared - self.n * float(self._mean.square().sum()))

    def spread_about(self, other: "Part") -> float:
        """Squared distances from another part's mean vector, summed up."""
        return self.spread + self.n * float((self._mean - other._mean).square().sum())
