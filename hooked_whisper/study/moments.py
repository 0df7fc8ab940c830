"""Statistics of more numbers than fit into memory, taken in clip by clip."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


class Moments:
    """Mean and central moments of each dimension, and the covariance, of vectors given in parts.

    The same numbers, to rounding, however the vectors are parted.

    Source: Pébay 2008, "Formulas for Robust, One-Pass Parallel Computation of Covariances and
        Arbitrary-Order Statistical Moments".
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: Float64[Tensor, " dimension"] = torch.zeros(0, dtype=torch.float64)
        self._sums: list[Tensor] = []  # of the 2nd, 3rd and 4th power of the distance from the mean
        self._products = torch.zeros(0, dtype=torch.float64)

    def add(self, vectors: Float[Tensor, "vector dimension"]) -> None:
        """Take some vectors in."""
        x = vectors.detach().double().cpu()
        if not len(x):
            return
        mean = x.mean(dim=0)
        x = x - mean
        sums, products = [x.pow(power).sum(dim=0) for power in (2, 3, 4)], x.T @ x
        if not self.n:
            self.n, self.mean, self._sums, self._products = len(x), mean, sums, products
            return
        total = self.n + len(x)
        middle = self.mean + (mean - self.mean) * (len(x) / total)
        parts = [(self.n, self.mean - middle, self._sums), (len(x), mean - middle, sums)]
        self._sums = [
            torch.stack([moved(n, by, each)[i] for n, by, each in parts]).sum(dim=0)
            for i in range(3)
        ]
        self._products = self._products + products
        for n, by, _ in parts:
            self._products = self._products + n * torch.outer(by, by)
        self.n, self.mean = total, middle

    @property
    def variance(self) -> Float64[Tensor, " dimension"]:
        """Of each dimension, of the population."""
        return self._sums[0] / self.n

    @property
    def rms(self) -> Float64[Tensor, " dimension"]:
        """Root mean square of each dimension."""
        return (self.variance + self.mean.square()).sqrt()

    @property
    def kurtosis(self) -> Float64[Tensor, " dimension"]:
        """Excess kurtosis of each dimension; NaN where nothing varies."""
        second, _, fourth = (each / self.n for each in self._sums)
        return fourth / second.square() - 3

    def pooled(self) -> tuple[float, float, float]:
        """Mean, standard deviation and excess kurtosis of all numbers of all dimensions."""
        middle = self.mean.mean()
        second, _, fourth = (
            each.mean() / self.n for each in moved(self.n, self.mean - middle, self._sums)
        )
        kurtosis = fourth / second.square() - 3
        return float(middle), float(second.sqrt()), float(kurtosis)

    @property
    def participation_ratio(self) -> float:
        """How many directions the vectors use: see `analysis.participation_ratio`."""
        return float(self._products.trace().square() / self._products.square().sum())


def moved(n: int, by: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of powers of the distance from a mean, from another place that is so far off."""
    second, third, fourth = sums
    return (
        second + n * by**2,
        third + 3 * second * by + n * by**3,
        fourth + 4 * third * by + 6 * second * by**2 + n * by**4,
    )


class GrowingHistogram:
    """How the numbers of each dimension are distributed, in bins that widen where they must.

    Bins lie evenly about 0. Where a number is outside, the dimension's bins
    are joined in pairs until it is inside: no number is left out, and each
    counts in the bin that it belongs to.

    Args:
        n_bins: Of each dimension; a multiple of 4.
    """

    def __init__(self, n_bins: int = 2048) -> None:
        self.n_bins = n_bins
        self.counts: Int64[Tensor, "dimension bin"] = torch.zeros(0, n_bins, dtype=torch.int64)
        self.reach: Float64[Tensor, " dimension"] = torch.zeros(0, dtype=torch.float64)

    def add(self, values: Float[Tensor, "value dimension"]) -> None:
        """Take numbers in, as many of each dimension."""
        x = values.detach().double().cpu()
        if not len(x):
            return
        largest = x.abs().amax(dim=0)
        if not len(self.reach):
            # Powers of 2, so that the bins do not depend on which numbers came first.
            self.reach = _power_of_two_over(largest)
            self.counts = torch.zeros(x.shape[1], self.n_bins, dtype=torch.int64)
        while bool((outside := largest >= self.reach).any()):
            self._widen(outside)
        bins = ((x / self.reach + 1) * (self.n_bins / 2)).long().clamp(0, self.n_bins - 1)
        places = bins + torch.arange(x.shape[1]) * self.n_bins
        found = torch.bincount(places.flatten(), minlength=self.counts.numel())
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

    def share_below(self, limit: Tensor) -> Float64[Tensor, " dimension"]:
        """The share of numbers nearer to 0 than a limit, bins that it cuts in proportion."""
        edges = self.edges
        low, high = edges[:, :-1], edges[:, 1:]
        inside = high.minimum(limit[:, None]) - low.maximum(-limit[:, None])
        part = inside.clamp(min=0) / (high - low)
        return (self.counts * part).sum(dim=1) / self.counts.sum(dim=1)

    def distance_to(self, cdf: Callable[[Tensor], Tensor]) -> Float64[Tensor, " dimension"]:
        """Kolmogorov-Smirnov's distance to a distribution, at the edges of the bins.

        Args:
            cdf: The share of the distribution under each edge, `[dimension edge]`.
        """
        found = self.counts.double().cumsum(dim=1) / self.counts.sum(dim=1, keepdim=True)
        found = torch.nn.functional.pad(found, (1, 0))
        return (found - cdf(self.edges)).abs().amax(dim=1)


def uniform_cdf(mean: Tensor, std: Tensor) -> Callable[[Tensor], Tensor]:
    """Of the uniform distribution with this mean and standard deviation, for each dimension."""
    half = math.sqrt(3) * std[:, None]
    return lambda x: ((x - mean[:, None]) / (2 * half) + 0.5).clamp(0, 1)


def normal_cdf(mean: Tensor, std: Tensor) -> Callable[[Tensor], Tensor]:
    """Of the normal distribution with this mean and standard deviation, for each dimension."""
    return lambda x: torch.special.ndtr((x - mean[:, None]) / std[:, None])


def _power_of_two_over(values: Tensor) -> Tensor:
    return torch.exp2(values.clamp(min=1e-30).log2().floor() + 1)
