"""Statistics of more recordings than fit into memory, taken in one after the other."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.moments import GrowingHistogram, RunningMoments
from hooked_whisper.analysis.residual import hoyer_sparsity, kurtosis
from hooked_whisper.errors import InputError, describe, shown

if TYPE_CHECKING:
    import pandas

OUTLIER_TIMES = 6.0
"""A dimension counts as an outlier when its root mean square is so many times the median's."""
_NEAR_0 = 0.1
"""What is nearer to 0 than this share of the root mean square counts as near 0."""
_MOST_OUTLIERS = 10
_NO_SCORES = ("recording", "stack", "layer", "kind", "head")


class HeadMeans:
    """The mean over recordings of every score of each head of a stack; NaN is left out.

    Args:
        n_layers: Layers of the stack.
        n_heads: Heads of each.

    >>> heads = HeadMeans(n_layers=1, n_heads=2)
    >>> for score in (0.5, 1.0):
    ...     heads.add({"layer": [0, 0], "head": [0, 1], "score": [score, torch.nan]})
    >>> heads["score"]
    tensor([[0.7500,    nan]])
    """

    def __init__(self, n_layers: int, n_heads: int) -> None:
        self._shape = (n_layers, n_heads)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, scores: "pandas.DataFrame | Mapping[str, Sequence[Any]]") -> None:
        """Take in some heads of one kind of attention, as `head_table` gives them, once each.

        Columns may be added to those of the table.
        """
        if "layer" not in (
            scores if isinstance(scores, Mapping) else getattr(scores, "columns", ())
        ):
            raise InputError(f"{describe(scores)} is no table of heads. Pass one of head_table.")
        heads = torch.tensor(list(scores["layer"])), torch.tensor(list(scores["head"]))
        for name in [name for name in scores if name not in _NO_SCORES]:
            values = torch.tensor(list(scores[name]), dtype=torch.float64)
            for sums in (self._sums, self._counts):
                sums.setdefault(name, torch.zeros(self._shape, dtype=torch.float64))
            self._sums[name][heads] += values.nan_to_num()
            self._counts[name][heads] += (~values.isnan()).double()

    def __getitem__(self, name: str) -> Float[Tensor, "layer head"]:
        """The mean of a score; NaN for heads that never had one.

        Raises:
            InputError: No table had it.
        """
        if name not in self._sums:
            raise InputError(f"{shown(name)} is no score that was added: {', '.join(self._sums)}.")
        return (self._sums[name] / self._counts[name]).float()

    def to_dict(self) -> dict[str, list[list[float]]]:
        """The means of every score that any head has, `[layer][head]`."""
        return {name: self[name].tolist() for name, counts in self._counts.items() if counts.any()}


class ResidualStatistics:
    """How a residual stream is distributed, over all positions of all recordings.

    >>> statistics = ResidualStatistics()
    >>> for vectors in torch.randn(2, 500, 16, generator=torch.manual_seed(0)):
    ...     statistics.add(vectors)
    >>> found = statistics.to_dict()
    >>> found["n_vectors"], found["ks_to_normal"] < found["ks_to_uniform"], found["n_outliers"]
    (1000, True, 0)
    """

    bulk_stds: ClassVar[int] = 6
    """Standard deviations from the mean within which the bulk of the values lies."""

    def __init__(self) -> None:
        self._moments = RunningMoments(order=4, covariance=True)
        self._of_dimensions, self._of_all = GrowingHistogram(2048), GrowingHistogram(2**16)
        self._sums = dict.fromkeys(("norm", "hoyer", "kurtosis_per_vector"), 0.0)
        self._kurtosis: list[float] = []

    def add(self, vectors: Float[Tensor, "vector d_model"]) -> None:
        """Take in the vectors of one recording, such as `speech_vectors` gives."""
        x = vectors.detach().float().cpu()
        self._moments.add(x)
        self._of_dimensions.add(x)
        self._of_all.add(x.reshape(-1, 1))
        self._sums["norm"] += float(x.norm(dim=-1).sum())
        self._sums["hoyer"] += float(hoyer_sparsity(x).nansum())
        self._sums["kurtosis_per_vector"] += float(kurtosis(x, per="vector").nansum())
        self._kurtosis.append(float(kurtosis(x)))

    def to_dict(self) -> dict[str, Any]:
        """Every number, as JSON has it: of `n_vectors` vectors of `d_model` values.

        `mean` and `std` of all values; `kurtosis`, in excess, of all, by clip, of the median
        dimension, and averaged over vectors; Kolmogorov and Smirnov's distance of all values
        `ks_to_uniform` and `ks_to_normal`, and the share of `dimensions_nearer_to_uniform`;
        `bulk_share`, of values within `bulk_stds` standard deviations of the mean;
        `norm` and `hoyer` sparsity averaged over the vectors; `near_0_share`, of values under a
        tenth of their root mean square; `participation_ratio`, directions in use; `evenness` of
        variance over dimensions, 1 where all are alike; `outliers`, dimensions over 6 times the
        median one's root mean square, ten at most, and `largest_dimension`.
        """
        moments, n, d_model = self._moments, self._moments.n, len(self._moments.mean)
        mean, std, tails = moments.pooled()
        pooled = torch.tensor([mean]).double(), torch.tensor([std]).double()
        near_0 = torch.tensor([_NEAR_0 * math.hypot(mean, std)], dtype=torch.float64)
        bulk, _ = self.histogram(self.bulk_stds)
        own = moments.mean, moments.variance.sqrt()
        to_uniform = self._of_dimensions.distance_to("uniform", *own)
        nearer_to_uniform = to_uniform < self._of_dimensions.distance_to("normal", *own)
        varied = moments.variance > 0
        energy = moments.variance / moments.variance.sum()
        times = moments.rms / moments.rms.median()
        n_outliers = int((times >= OUTLIER_TIMES).sum())
        largest = [
            {"dimension": int(i), "rms": float(moments.rms[i]), "times": float(times[i])}
            for i in times.argsort(descending=True)[:_MOST_OUTLIERS]
        ]
        return {
            "n_vectors": n,
            "d_model": d_model,
            "mean": mean,
            "std": std,
            "kurtosis": tails,
            "kurtosis_by_clip": list(self._kurtosis),
            "ks_to_uniform": float(self._of_all.distance_to("uniform", *pooled)[0]),
            "ks_to_normal": float(self._of_all.distance_to("normal", *pooled)[0]),
            "dimensions_nearer_to_uniform": float(nearer_to_uniform[varied].double().mean()),
            "median_kurtosis_of_dimensions": float(moments.kurtosis[varied].median()),
            "bulk_share": float(bulk.sum() / self._of_all.counts.sum()),
            "near_0_share": float(self._of_all.share_below(near_0)[0]),
            "participation_ratio": moments.participation_ratio,
            "evenness": float(-torch.special.xlogy(energy, energy).sum() / math.log(d_model)),
            **{name: total / n for name, total in self._sums.items()},
            "n_outliers": n_outliers,
            "outliers": largest[:n_outliers],
            **{f"largest_{name}": value for name, value in largest[0].items()},
        }

    def histogram(self, reach: float | int = math.inf) -> tuple[Tensor, Tensor]:
        """Of all values, about 120 bins in standard deviations from the mean: counts and edges.

        Args:
            reach: Leave out the bins that lie further out than this.
        """
        if not reach > 0:
            raise InputError(f"reach is {shown(reach)}; it must be over 0.")
        mean, std, _ = self._moments.pooled()
        counts, edges = self._of_all.counts[0], (self._of_all.edges[0] - mean) / (std or 1.0)
        inside = (edges[1:] > -reach) & (edges[:-1] < reach)
        filled = (counts.bool() & inside).nonzero()[:, 0]
        first, last = int(filled[0]), int(filled[-1]) + 1
        step = max(1, -(-(last - first) // 120))
        last = min(len(counts), first + -(-(last - first) // step) * step)
        last = first + (last - first) // step * step
        counts = counts[first:last].unflatten(0, (-1, step)).sum(dim=1)
        return counts, edges[first : last + 1 : step]
