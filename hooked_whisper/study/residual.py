"""How the last encoder layer's residual stream is distributed, before and after the LayerNorm."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis import (
    GrowingHistogram,
    RunningMoments,
    hoyer_sparsity,
    kurtosis,
    speech_vectors,
)
from hooked_whisper.figures import plot_histograms
from hooked_whisper.study.clips import Clip, Hook, Written
from hooked_whisper.study.exhibits import Claim, Exhibit, Section, Table, number, percent

OUTLIER_TIMES = 6.0
"""A dimension counts as an outlier when its root mean square is so many times the median's."""
NEAR_0 = 0.1
"""What is nearer to 0 than this share of the root mean square counts as near 0."""
MOST_OUTLIERS = 10


@dataclass(frozen=True)
class Reference:
    """What a statistic is for numbers of known distribution.

    Args:
        uniform, normal, laplace: For independent numbers of it, of mean 0.
    """

    uniform: float
    normal: float
    laplace: float


KURTOSIS = Reference(-1.2, 0.0, 3.0)
TO_UNIFORM = Reference(0.0, 0.0572, 0.1130)
TO_NORMAL = Reference(0.0572, 0.0, 0.0620)
NEAR_0_SHARE = Reference(0.0577, 0.0797, 0.1319)
"""Of numbers, the share with |x| under a tenth of the root mean square."""


def hoyer_references(d_model: int) -> Reference:
    """Hoyer's sparsity of long vectors of independent numbers.

    |x|₁ / |x|₂ tends to √n E|x| / √(E x²).
    """
    root = math.sqrt(d_model)
    of = {"uniform": math.sqrt(3) / 2, "normal": math.sqrt(2 / math.pi), "laplace": math.sqrt(0.5)}
    return Reference(**{name: root * (1 - ratio) / (root - 1) for name, ratio in of.items()})


class StreamStatistics:
    """Takes vectors of a residual stream in clip by clip."""

    def __init__(self) -> None:
        self.moments = RunningMoments(order=4, covariance=True)
        self.of_dimensions = GrowingHistogram(2048)
        self.of_all = GrowingHistogram(2**16)
        self._sums = dict.fromkeys(("norm", "hoyer", "kurtosis_per_vector"), 0.0)
        self.by_clip: list[float] = []

    def add(self, vectors: Float[Tensor, "vector d_model"]) -> None:
        """Take in the vectors of one clip."""
        x = vectors.detach().float().cpu()
        self.moments.add(x)
        self.of_dimensions.add(x)
        self.of_all.add(x.reshape(-1, 1))
        self._sums["norm"] += float(x.norm(dim=-1).sum())
        self._sums["hoyer"] += float(hoyer_sparsity(x).nansum())
        self._sums["kurtosis_per_vector"] += float(kurtosis(x, per="vector").nansum())
        self.by_clip.append(float(kurtosis(x)))

    def numbers(self) -> dict[str, Any]:
        """Every number over all clips so far, as JSON has it."""
        n, d_model = self.moments.n, len(self.moments.mean)
        mean, std, tails = self.moments.pooled()
        middle, spread = torch.tensor([mean]).double(), torch.tensor([std]).double()
        rms = math.sqrt(mean**2 + std**2)
        times = self.moments.rms / self.moments.rms.median()
        order = times.argsort(descending=True)
        outliers = [int(i) for i in order[: int((times >= OUTLIER_TIMES).sum())]]
        varied = self.moments.variance > 0
        energy = self.moments.variance / self.moments.variance.sum()
        own_std = self.moments.variance.sqrt()
        own_uniform = self.of_dimensions.distance_to("uniform", self.moments.mean, own_std)
        own_normal = self.of_dimensions.distance_to("normal", self.moments.mean, own_std)
        return {
            "n_vectors": n,
            "d_model": d_model,
            "mean": mean,
            "std": std,
            "kurtosis": tails,
            "kurtosis_by_clip": list(self.by_clip),
            "ks_to_uniform": float(self.of_all.distance_to("uniform", middle, spread)[0]),
            "ks_to_normal": float(self.of_all.distance_to("normal", middle, spread)[0]),
            "dimensions_nearer_to_uniform": float(
                (own_uniform < own_normal)[varied].double().mean()
            ),
            "median_kurtosis_of_dimensions": float(self.moments.kurtosis[varied].median()),
            "hoyer": self._sums["hoyer"] / n,
            "near_0_share": float(
                self.of_all.share_below(torch.tensor([NEAR_0 * rms], dtype=torch.float64))[0]
            ),
            "participation_ratio": self.moments.participation_ratio,
            "evenness": float(-torch.special.xlogy(energy, energy).sum() / math.log(d_model)),
            "kurtosis_per_vector": self._sums["kurtosis_per_vector"] / n,
            "norm": self._sums["norm"] / n,
            "n_outliers": len(outliers),
            "outliers": [
                {"dimension": i, "rms": float(self.moments.rms[i]), "times": float(times[i])}
                for i in outliers[:MOST_OUTLIERS]
            ],
            "largest_dimension": int(order[0]),
            "largest_rms": float(self.moments.rms[order[0]]),
            "largest_times": float(times[order[0]]),
        }


class ResidualCollector:
    """The residual stream behind the last encoder block, and the encoder's output.

    Args:
        n_layers: Encoder blocks.
    """

    def __init__(self, n_layers: int) -> None:
        self.hooks = {
            "before": f"encoder.blocks.{n_layers - 1}.hook_resid_post",
            "after": "encoder.ln_final.hook_normalized",
        }
        self.streams = {name: StreamStatistics() for name in self.hooks}

    def encoder_hooks(self, clip: Clip) -> list[Hook]:
        """The two hooks, over the positions that hold sound."""

        def take(name: str) -> Any:
            def function(value: Tensor, *, hook: Any) -> None:
                self.streams[name].add(speech_vectors(value, clip.n_positions))

            return function

        return [(hook, take(name)) for name, hook in self.hooks.items()]

    def decoder_hooks(self, clip: Clip, written: Written) -> list[Hook]:
        """None."""
        return []


def is_uniform(numbers: dict[str, Any]) -> bool:
    """Whether the numbers of a stream are nearer to a uniform distribution than to a normal one."""
    return bool(numbers["ks_to_uniform"] < numbers["ks_to_normal"])


def is_sparse(numbers: dict[str, Any]) -> bool:
    """Whether few dimensions carry a vector: Hoyer's sparsity nearer to 1 than to a normal's."""
    normal = hoyer_references(numbers["d_model"]).normal
    return bool(numbers["hoyer"] > (1 + normal) / 2)


def residual_section(collector: ResidualCollector) -> Section:
    """Histogram, table and outliers, with what the post says."""
    found = {name: each.numbers() for name, each in collector.streams.items()}
    before, after = found["before"], found["after"]
    d_model = before["d_model"]
    about = (
        f"All {d_model} dimensions of the residual stream behind the last encoder block "
        f"({collector.hooks['before']}), and of the encoder's output behind the final LayerNorm "
        f"({collector.hooks['after']}), at every position of 20 ms that holds sound: "
        f"{number(before['n_vectors'])} vectors. KS is Kolmogorov and Smirnov's distance to a "
        "distribution of the same mean and standard deviation."
    )
    return Section(
        "residual",
        "The last encoder layer's residual stream",
        about,
        found,
        [
            _distribution(collector, before, after),
            _outliers(before, after),
            _statistics(before, after, hoyer_references(d_model)),
        ],
    )


def _distribution(collector: ResidualCollector, before: Any, after: Any) -> Exhibit:
    figure = plot_histograms(
        {
            f"{name} the LayerNorm": _drawn(each.of_all, each.moments.pooled())
            for name, each in collector.streams.items()
        },
        label="value, in standard deviations from the mean",
        title="All dimensions together",
    )
    shape = "uniform" if is_uniform(before) else "normal"
    same = is_uniform(before) == is_uniform(after)
    then = "they still are" if same else f"to a {'normal' if is_uniform(before) else 'uniform'} one"
    finding = (
        f"Before the LayerNorm the values are nearer to a {shape} distribution (KS "
        f"{number(before['ks_to_uniform'], 3)} to uniform, {number(before['ks_to_normal'], 3)} to "
        f"normal; excess kurtosis {number(before['kurtosis'])}), after it {then} "
        f"({number(after['ks_to_uniform'], 3)} and "
        f"{number(after['ks_to_normal'], 3)}; {number(after['kurtosis'])})."
    )
    claim = Claim(
        "The activations in the last layer of the encoder are rather uniform (5 examples).",
        is_uniform(before) or is_uniform(after),
        f"uniform would be: KS nearer to uniform than to normal. It is "
        f"{number(before['ks_to_uniform'], 3)} against {number(before['ks_to_normal'], 3)} before "
        f"the LayerNorm and {number(after['ks_to_uniform'], 3)} against "
        f"{number(after['ks_to_normal'], 3)} after it; of single dimensions "
        f"{percent(before['dimensions_nearer_to_uniform'])} and "
        f"{percent(after['dimensions_nearer_to_uniform'])} are nearer to uniform.",
    )
    alt = (
        "Density of all values on a logarithmic axis, two lines: before and after the final "
        "LayerNorm."
    )
    return Exhibit(
        "residual_histogram", "Distribution of values", finding, figure, alt, claim=claim
    )


def _drawn(histogram: GrowingHistogram, pooled: tuple[float, float, float]) -> Any:
    """About 120 bins over what there is, in standard deviations."""
    mean, std, _ = pooled
    counts, edges = histogram.counts[0], (histogram.edges[0] - mean) / (std or 1.0)
    filled = counts.nonzero()[:, 0]
    first, last = int(filled[0]), int(filled[-1]) + 1
    step = max(1, -(-(last - first) // 120))
    last = min(len(counts), first + -(-(last - first) // step) * step)
    last = first + (last - first) // step * step
    return counts[first:last].unflatten(0, (-1, step)).sum(dim=1), edges[first : last + 1 : step]


def _statistics(before: Any, after: Any, hoyer: Reference) -> Exhibit:
    def row(name: str, key: str, reference: Reference | None, digits: int = 3) -> list[str]:
        known = ["", "", ""]
        if reference is not None:
            known = [number(getattr(reference, each), digits) for each in vars(reference)]
        return [name, number(before[key], digits), number(after[key], digits), *known]

    rows = [
        row("excess kurtosis, all values", "kurtosis", KURTOSIS, 2),
        row("excess kurtosis of a dimension, median", "median_kurtosis_of_dimensions", KURTOSIS, 2),
        row("KS distance to uniform", "ks_to_uniform", TO_UNIFORM),
        row("KS distance to normal", "ks_to_normal", TO_NORMAL),
        row("share of dimensions nearer to uniform", "dimensions_nearer_to_uniform", None),
        row("Hoyer sparsity of a vector (0 all alike, 1 one dimension)", "hoyer", hoyer),
        row("share of values near 0 (under 0.1 rms)", "near_0_share", NEAR_0_SHARE),
        row("participation ratio (directions in use)", "participation_ratio", None, 1),
        row("evenness of variance over dimensions (1 all alike)", "evenness", None),
        row("mean length of a vector", "norm", None, 2),
    ]
    table = Table(
        ["statistic", "before LayerNorm", "after LayerNorm", "uniform", "normal", "Laplace"],
        rows,
        "The last three columns: independent numbers of that distribution with mean 0",
    )
    sparse = is_sparse(before) or is_sparse(after)
    finding = (
        f"A vector's Hoyer sparsity is {number(before['hoyer'], 3)} before and "
        f"{number(after['hoyer'], 3)} after the LayerNorm, {number(hoyer.normal, 3)} being that of "
        f"normal numbers and 1 that of a single dimension, and the vectors use "
        f"{number(before['participation_ratio'], 1)} and {number(after['participation_ratio'], 1)} "
        f"of {before['d_model']} directions."
    )
    claim = Claim(
        "The activations are non-sparse, hence difficult to interpret.",
        not sparse,
        f"sparse would be: Hoyer sparsity over {number((1 + hoyer.normal) / 2, 3)}, halfway from "
        f"normal numbers to one dimension. It is {number(before['hoyer'], 3)} and "
        f"{number(after['hoyer'], 3)}; {percent(before['near_0_share'])} and "
        f"{percent(after['near_0_share'])} of the values are near 0, of normal numbers 8.0 %.",
    )
    return Exhibit(
        "residual_statistics", "How uniform, how sparse", finding, table=table, claim=claim
    )


def _outliers(before: Any, after: Any) -> Exhibit:
    rows = [
        [name, each["dimension"], number(each["rms"]), number(each["times"], 1)]
        for name, found in (("before", before), ("after", after))
        for each in found["outliers"]
    ]
    if not rows:
        rows = [
            [
                name,
                found["largest_dimension"],
                number(found["largest_rms"]),
                number(found["largest_times"], 1),
            ]
            for name, found in (("before", before), ("after", after))
        ]
    table = Table(
        ["LayerNorm", "dimension", "rms", "times the median"],
        rows,
        f"Dimensions whose root mean square is at least {OUTLIER_TIMES:g} times the median "
        "dimension's; where there is none, the largest",
    )
    finding = (
        f"{before['n_outliers']} of {before['d_model']} dimensions are outliers before the "
        f"LayerNorm and {after['n_outliers']} after it; the largest has "
        f"{number(before['largest_times'], 1)} times the median dimension's root mean square "
        f"before and {number(after['largest_times'], 1)} times after."
    )
    return Exhibit("residual_outliers", "Dimensions that stand out", finding, table=table)
