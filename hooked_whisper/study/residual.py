"""How the last encoder layer's residual stream is distributed, before and after the LayerNorm."""

import math
from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from torch import Tensor

from hooked_whisper.analysis import ResidualStatistics, SumsByNorm, speech_vectors
from hooked_whisper.display import table
from hooked_whisper.figures import plot_histograms
from hooked_whisper.study.report import Section, claim, exhibit, words
from hooked_whisper.study.windows import Hooks, WindowRun

KURTOSIS = {"uniform": -1.2, "normal": 0.0, "laplace": 3.0}
TO_UNIFORM = {"uniform": 0.0, "normal": 0.0572, "laplace": 0.1130}
TO_NORMAL = {"uniform": 0.0572, "normal": 0.0, "laplace": 0.0620}
NEAR_0_SHARE = {"uniform": 0.0577, "normal": 0.0797, "laplace": 0.1319}
"""What the statistics are for independent numbers of a distribution, of mean 0."""


def hoyer_references(d_model: int) -> dict[str, float]:
    """Hoyer's sparsity of long vectors of independent numbers.

    |x|₁ / |x|₂ tends to √n E|x| / √(E x²).
    """
    root = math.sqrt(d_model)
    of = {"uniform": math.sqrt(3) / 2, "normal": math.sqrt(2 / math.pi), "laplace": math.sqrt(0.5)}
    return {name: root * (1 - ratio) / (root - 1) for name, ratio in of.items()}


class ResidualStreams:
    """The residual stream behind the last of so many encoder blocks, and the encoder's output."""

    def __init__(self, n_layers: int) -> None:
        self.hook_names = {
            "before": f"encoder.blocks.{n_layers - 1}.hook_resid_post",
            "after": "encoder.ln_final.hook_normalized",
        }
        self.streams = {name: ResidualStatistics() for name in self.hook_names}
        self.by_norm = {name: SumsByNorm() for name in self.hook_names}

    def hooks(self, run: WindowRun) -> Hooks:
        """The two hooks, over the positions that hold sound."""

        def take(name: str) -> Callable[..., None]:
            def add(value: Tensor, *, hook: Any) -> None:
                vectors = speech_vectors(value, run.window.n_positions)
                self.streams[name].add(vectors)
                self.by_norm[name].add(vectors, vectors.new_zeros(len(vectors)))

            return add

        return [(hook_name, take(name)) for name, hook_name in self.hook_names.items()]

    def massive(self, name: str) -> dict[str, Any]:
        """Positions over three times the median length, and what they carry."""
        usual, every = self.by_norm[name].parted()
        n, carried = every.n - usual.n, every.spread - usual.spread_about(every)
        largest = (every.sum - usual.sum).abs().topk(min(3, len(every.sum))).indices.tolist()
        return {
            "n": n,
            "n_positions": every.n,
            "share": n / every.n,
            "variance": carried / every.spread if n and every.spread else 0.0,
            "dimensions": largest if n else [],
        }


def is_uniform(numbers: dict[str, Any]) -> bool:
    """Whether the numbers of a stream are nearer to a uniform distribution than to a normal one."""
    return bool(numbers["ks_to_uniform"] < numbers["ks_to_normal"])


def is_sparse(numbers: dict[str, Any]) -> bool:
    """Whether few dimensions carry a vector: Hoyer's sparsity nearer to 1 than to a normal's."""
    return bool(numbers["hoyer"] > (1 + hoyer_references(numbers["d_model"])["normal"]) / 2)


def residual_section(found: ResidualStreams) -> Section:
    """Histogram, table and outliers, with what the post says."""
    numbers = {
        name: stream.to_dict() | {"massive": found.massive(name)}
        for name, stream in found.streams.items()
    }
    hoyer = hoyer_references(numbers["before"]["d_model"])
    known: dict[str, Any] = numbers | {
        "hook_names": found.hook_names,
        "normal": hoyer["normal"],
        "reach": ResidualStatistics.bulk_stds,
        "uniform": {name: is_uniform(stream) for name, stream in numbers.items()},
    }
    histogram = plot_histograms(
        {
            f"{name} the LayerNorm": stream.histogram(stream.bulk_stds)
            for name, stream in found.streams.items()
        },
        label="value, in standard deviations from the mean",
        title="All dimensions together",
    )
    uniform = claim("claim_uniform", known["uniform"], known)
    is_dense = {name: not is_sparse(stream) for name, stream in numbers.items()}
    dense = claim("claim_sparse", is_dense, known)
    statistics = _statistics(numbers, hoyer)
    exhibits = [
        exhibit("residual_histogram", figure=histogram, claim=uniform, **known),
        exhibit("residual_massive", table=_massive(numbers), **known),
        exhibit("residual_outliers", table=_outliers(numbers), **known),
        exhibit("residual_statistics", table=statistics, claim=dense, **known),
    ]
    return Section("residual", **words("residual", known), numbers=numbers, exhibits=exhibits)


def _statistics(numbers: dict[str, Any], hoyer: dict[str, float]) -> Markup:
    """Of both streams, beside those of known distributions."""
    statistics: list[tuple[str, str, dict[str, float]]] = [
        ("excess kurtosis, all values", "kurtosis", KURTOSIS),
        ("excess kurtosis of a dimension, median", "median_kurtosis_of_dimensions", KURTOSIS),
        ("KS distance to uniform", "ks_to_uniform", TO_UNIFORM),
        ("KS distance to normal", "ks_to_normal", TO_NORMAL),
        ("share of dimensions nearer to uniform", "dimensions_nearer_to_uniform", {}),
        ("Hoyer sparsity of a vector (0 all alike, 1 one dimension)", "hoyer", hoyer),
        ("share of values near 0 (under 0.1 rms)", "near_0_share", NEAR_0_SHARE),
        ("participation ratio (directions in use)", "participation_ratio", {}),
        ("evenness of variance over dimensions (1 all alike)", "evenness", {}),
        ("mean length of a vector", "norm", {}),
    ]
    rows = [
        [
            name,
            *(stream[key] for stream in numbers.values()),
            *(known.get(shape) for shape in ("uniform", "normal", "laplace")),
        ]
        for name, key, known in statistics
    ]
    header = ["statistic", "before LayerNorm", "after LayerNorm", "uniform", "normal", "Laplace"]
    return table(header, rows)


def _massive(numbers: dict[str, Any]) -> Markup:
    """Massive positions of both streams."""
    rows = []
    for name, stream in numbers.items():
        each = stream["massive"]
        dimensions = ", ".join(map(str, each["dimensions"])) or "-"
        rows.append([name, each["n"], each["share"], each["variance"], dimensions])
    header = ["LayerNorm", "massive positions", "share", "share of the variance", "dimensions"]
    return table(header, rows)


def _outliers(numbers: dict[str, Any]) -> Markup:
    """The dimensions that are outliers; where there is none, the largest."""
    rows = [
        [name, str(each["dimension"]), each["rms"], each["times"]]
        for name, stream in numbers.items()
        for each in stream["outliers"]
    ] or [
        [name, *(stream[f"largest_{key}"] for key in ("dimension", "rms", "times"))]
        for name, stream in numbers.items()
    ]
    return table(["LayerNorm", "dimension", "rms", "times the median"], rows)
