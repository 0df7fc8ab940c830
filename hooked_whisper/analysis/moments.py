"""Moments and histograms, also of more numbers than fit into memory, taken in batch by batch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from hooked_whisper.errors import InputError, shown

Distribution = Literal["normal", "uniform"]


class RunningMoments:
    """Mean, variance, tails and covariance of vectors that come batch by batch.

    Sums alone are kept, in float64 on the device of the first batch, and the
    numbers are the same, to rounding, however the vectors are parted.

    Args:
        order: The highest power of the distance from the mean that is summed
            up: 2 for the variance, 4 for the kurtosis too.
        covariance: Sum up products of dimensions too, for the participation ratio.

    Source: Pébay 2008, "Formulas for Robust, One-Pass Parallel Computation of Covariances and
        Arbitrary-Order Statistical Moments".

    >>> moments = RunningMoments()
    >>> for batch in torch.tensor([[[1.0], [2.0]], [[3.0], [6.0]]]):
    ...     moments.add(batch)
    >>> moments.n, moments.mean.tolist(), moments.variance.tolist()
    (4, [3.0], [3.5])
    """

    def __init__(self, order: Literal[2, 4] = 2, *, covariance: bool = False) -> None:
        self.n = 0
        self.mean: Float64[Tensor, " dimension"] = torch.zeros(0, dtype=torch.float64)
        if order not in (2, 4):
            raise InputError(f"order is {shown(order)}; it can be 2 or 4.")
        self._order = order
        # Of the 2nd and higher powers of the distance from the mean, and of its products.
        self._powers: Float64[Tensor, "power dimension"] | None = None
        self._products: Float64[Tensor, "dimension other"] | None = None
        self._has_products = covariance

    def add(self, vectors: Float[Tensor, "vector dimension"]) -> None:
        """Take one batch in; it may be empty.

        Raises:
            InputError: Vectors of another width than those before.
        """
        x = vectors.detach().double()
        if self.n and x.shape[1] != len(self.mean):
            raise InputError(
                f"the vectors have {x.shape[1]} dimensions, those before {len(self.mean)}."
            )
        if not len(x):
            return
        n, mean = len(x), x.mean(dim=0)
        x = x - mean
        powers = torch.stack([x.pow(power).sum(dim=0) for power in range(2, self._order + 1)])
        products = x.T @ x if self._has_products else None
        if self._powers is not None:
            total = self.n + n
            centre = self.mean + (mean - self.mean) * (n / total)
            old, new = self.mean - centre, mean - centre
            powers = _about(self.n, old, self._powers) + _about(n, new, powers)
            if products is not None and self._products is not None:
                products += self._products + self.n * torch.outer(old, old)
                products += n * torch.outer(new, new)
            n, mean = total, centre
        self.n, self.mean, self._powers, self._products = n, mean, powers, products

    def _sums(self, order: int) -> Float64[Tensor, "power dimension"]:
        if self._powers is None:
            raise InputError("no vectors were added; there is nothing to tell.")
        if order > self._order:
            raise InputError("these moments have no kurtosis: make them with order=4.")
        return self._powers

    @property
    def variance(self) -> Float64[Tensor, " dimension"]:
        """Of each dimension, of the population."""
        return self._sums(2)[0] / self.n

    @property
    def spread(self) -> float:
        """The squared distances of all vectors from the mean vector, summed up."""
        return float(self._sums(2)[0].sum())

    @property
    def rms(self) -> Float64[Tensor, " dimension"]:
        """Root mean square of each dimension."""
        return (self.variance + self.mean.square()).sqrt()

    @property
    def kurtosis(self) -> Float64[Tensor, " dimension"]:
        """Excess kurtosis of each dimension; NaN where nothing varies."""
        second, _, fourth = self._sums(4) / self.n
        return fourth / second.square() - 3

    def pooled(self) -> tuple[float, float, float]:
        """Mean, standard deviation and excess kurtosis of all numbers of all dimensions."""
        centre = self.mean.mean()
        about_centre = _about(self.n, self.mean - centre, self._sums(4))
        second, _, fourth = about_centre.mean(dim=1) / self.n
        return float(centre), float(second.sqrt()), float(fourth / second.square() - 3)

    @property
    def participation_ratio(self) -> float:
        """How many directions the vectors use: see the function `participation_ratio`."""
        if self._products is None:
            raise InputError("no products were summed up: make the moments with covariance=True.")
        return float(self._products.trace().square() / self._products.square().sum())


def _about(n: int, by: Tensor, powers: Tensor) -> Float64[Tensor, "power dimension"]:
    """Sums of powers of the distance from a mean, about a place that is `by` below it."""
    sums = [torch.full_like(by, n), torch.zeros_like(by), *powers]
    return torch.stack(
        [
            sum((math.comb(p, k) * sums[p - k] * by**k for k in range(1, p + 1)), start=sums[p])
            for p in range(2, len(sums))
        ]
    )


@dataclass(frozen=True)
class Histogram:
    """How many values fall between edges.

    Args:
        counts: Of each bin; the last one includes its upper edge.
        edges: One more than bins, rising.
        n_outside: Values under the first edge or over the last.
    """

    counts: Int[Tensor, "bin"]
    edges: Float[Tensor, "edge"]
    n_outside: int

    @classmethod
    def of(cls, values: Float[Tensor, " value"], edges: Float[Tensor, " edge"]) -> "Histogram":
        """Count values between edges of the same dtype; an edge belongs to the bin above it.

        >>> Histogram.of(torch.tensor([0.0, 1.0, 2.0, 9.0]), torch.tensor([0.0, 1.0, 2.0])).counts
        tensor([1, 2])
        """
        n_bins = len(edges) - 1
        # Compared with the edges that are returned, so that both tell the same.
        inside = values[(values >= edges[0]) & (values <= edges[-1])]
        bins = torch.bucketize(inside, edges, right=True).clamp(max=n_bins) - 1
        counts = torch.bincount(bins, minlength=n_bins)
        return cls(counts, edges, len(values) - len(inside))


class GrowingHistogram:
    """How the numbers of each dimension are distributed, in bins that widen where they must.

    Bins lie evenly about 0. Where a number is outside, the dimension's bins
    are joined in pairs until it is inside: no number is left out, and each
    counts in the bin that it belongs to.

    Args:
        n_bins: Of each dimension; a multiple of 4.

    Raises:
        InputError: Another number of bins.

    >>> histogram = GrowingHistogram(4)
    >>> for batch in torch.tensor([[[0.5], [0.7]], [[-0.1], [1.5]]]):
    ...     histogram.add(batch)
    >>> histogram.counts.tolist(), histogram.edges.tolist()
    ([[0, 1, 2, 1]], [[-2.0, -1.0, 0.0, 1.0, 2.0]])
    """

    def __init__(self, n_bins: int = 2048) -> None:
        if n_bins < 4 or n_bins % 4:
            raise InputError(f"n_bins is {n_bins}; it must be a multiple of 4.")
        self.n_bins = n_bins
        self.counts: Int64[Tensor, "dimension bin"] = torch.zeros(0, n_bins, dtype=torch.int64)
        self.reach: Float64[Tensor, " dimension"] = torch.zeros(0, dtype=torch.float64)

    def add(self, values: Float[Tensor, "value dimension"]) -> None:
        """Take numbers in, as many of each dimension.

        Raises:
            InputError: NaN or infinity.
        """
        x = values.detach().double().cpu()
        if not len(x):
            return
        largest = x.abs().amax(dim=0)
        if not bool(largest.isfinite().all()):
            raise InputError("the values hold NaN or infinity, which are in no bin.")
        if not len(self.reach):
            # Powers of 2, so that the bins do not depend on which numbers came first.
            self.reach = torch.exp2(largest.clamp(min=1e-30).log2().floor() + 1)
            self.counts = torch.zeros(x.shape[1], self.n_bins, dtype=torch.int64)
        while bool((outside := largest >= self.reach).any()):
            self._widen(outside)
        bins = ((x / self.reach + 1) * (self.n_bins / 2)).long().clamp(0, self.n_bins - 1)
        cells = bins + torch.arange(x.shape[1]) * self.n_bins
        found = torch.bincount(cells.flatten(), minlength=self.counts.numel())
        self.counts += found.view_as(self.counts)

    def _widen(self, which: Tensor) -> None:
        """Join the bins of some dimensions in pairs: the same numbers, twice as far."""
        joined = self.counts[which].unflatten(1, (-1, 2)).sum(dim=2)
        wider = torch.zeros_like(self.counts[which])
        quarter = self.n_bins // 4
        wider[:, quarter : 3 * quarter] = joined
        self.counts[which] = wider
        self.reach[which] *= 2

    @property
    def edges(self) -> Float64[Tensor, "dimension edge"]:
        """One more than bins, rising."""
        return torch.linspace(-1, 1, self.n_bins + 1, dtype=torch.float64) * self.reach[:, None]

    def share_below(
        self, threshold: Float64[Tensor, " dimension"]
    ) -> Float64[Tensor, " dimension"]:
        """The share of numbers nearer to 0 than a threshold, bins that it cuts in proportion."""
        edges = self.edges
        low, high = edges[:, :-1], edges[:, 1:]
        inside = high.minimum(threshold[:, None]) - low.maximum(-threshold[:, None])
        part = inside.clamp(min=0) / (high - low)
        return (self.counts * part).sum(dim=1) / self.counts.sum(dim=1)

    def distance_to(
        self,
        distribution: Distribution,
        mean: Float64[Tensor, " dimension"],
        std: Float64[Tensor, " dimension"],
    ) -> Float64[Tensor, " dimension"]:
        """Kolmogorov and Smirnov's distance to a distribution, at the edges of the bins.

        Args:
            distribution: `"normal"` or `"uniform"`.
            mean, std: The distribution's, for each dimension: mostly the
                numbers' own, from `RunningMoments`.

        Raises:
            InputError: An unknown distribution.
        """
        if distribution not in get_args(Distribution):
            known = list(get_args(Distribution))
            raise InputError(f"distribution is {distribution!r}; it can be one of {known}.")
        from_mean = (self.edges - mean[:, None]) / std[:, None]
        if distribution == "normal":
            expected = torch.special.ndtr(from_mean)
        else:
            expected = (from_mean / (2 * math.sqrt(3)) + 0.5).clamp(0, 1)
        found = self.counts.double().cumsum(dim=1) / self.counts.sum(dim=1, keepdim=True)
        found = torch.nn.functional.pad(found, (1, 0))
        return (found - expected).abs().amax(dim=1)
