"""How well single latents tell what is being said, by whom, and when.

Latents are mostly 0, so that only active ones are kept and sorted: a million
frames with 768 latents, of which 32 are active at once, are 32 million numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import pandas

Unit = Literal["nats", "bits"]

_ENTRIES_AT_ONCE = 1_000_000
"""Active latents that are ranked at once: it bounds the memory."""


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known about each of some vectors, words or recordings.

    Args:
        name: What the label says: `"digit"`.
        values: The names of the values that it can have.
        ids: The place in `values` for each vector; -1 leaves the vector out.
    """

    name: str
    values: tuple[str, ...]
    ids: Int64[Tensor, " vector"]

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError(f"the label {self.name!r} has no values.")
        if self.ids.ndim != 1 or self.ids.is_floating_point():
            raise InputError(
                f"ids of {self.name!r} are a tensor of {self.ids.dtype}, shape "
                f"{tuple(self.ids.shape)}; they must be integers."
            )
        low, high = (int(self.ids.min()), int(self.ids.max())) if len(self.ids) else (-1, -1)
        if not -1 <= low <= high < len(self.values):
            raise InputError(
                f"ids of {self.name!r} go from {low} to {high}; its {len(self.values)} values have "
                f"0 to {len(self.values) - 1}, and -1 is no value."
            )

    def __len__(self) -> int:
        """Vectors, those without a value included."""
        return len(self.ids)

    @classmethod
    def of(cls, name: str, said: Sequence[Any], values: Sequence[Any] | None = None) -> "Labels":
        """The labels of a list of values, None for vectors that have none.

        >>> Labels.of("speaker", ["theo", "lucas", None, "theo"]).ids
        tensor([ 1,  0, -1,  1])
        """
        known = values
        if known is None:
            known = sorted({value for value in said if value is not None})
        index = {value: i for i, value in enumerate(known)}
        for value in said:
            if value is not None and value not in index:
                raise InputError(f"{value!r} is none of the values of {name!r}: {list(known)}.")
        ids = torch.tensor([index.get(value, -1) for value in said], dtype=torch.int64)
        return cls(name, tuple(map(str, known)), ids)


@dataclass(frozen=True, eq=False)
class ActiveLatents:
    """The latents of many vectors, without the zeros: latent by latent, least active first.

    Args:
        n_vectors: How many vectors.
        offsets: Where each latent's entries begin and, at the end, how many there are.
        vectors: Which vector each entry belongs to.
        activations: How active the latent is there.
    """

    n_vectors: int
    offsets: Int64[Tensor, " latent_plus_1"]
    vectors: Tensor
    activations: Float[Tensor, " entry"]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.offsets) - 1

    @property
    def n_active(self) -> Int64[Tensor, " latent"]:
        """On how many vectors each latent is active."""
        return self.offsets.diff()

    @classmethod
    def of(cls, latents: Float[Tensor, "vector latent"]) -> "ActiveLatents":
        """Of a tensor with its zeros."""
        collector = LatentCollector()
        collector.add(latents)
        return collector.result()


class LatentCollector:
    """Takes latents batch by batch and keeps the active ones."""

    def __init__(self) -> None:
        self._n = 0
        self._d_sae = 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, latents: Float[Tensor, "vector latent"]) -> None:
        """Take one batch."""
        latents = latents.detach().cpu()
        if not bool(torch.isfinite(latents).all()):
            raise InputError("the latents hold values that are not finite.")
        vectors, latent_ids = latents.nonzero(as_tuple=True)
        activations = latents[vectors, latent_ids].float()
        self._parts.append(((vectors + self._n).int(), latent_ids.int(), activations))
        self._n += len(latents)
        self._d_sae = latents.shape[1]

    @property
    def n_vectors(self) -> int:
        """Vectors so far."""
        return self._n

    def result(self) -> ActiveLatents:
        """Everything so far."""
        if not self._parts:
            raise InputError("no latents were given.")
        vectors, latent_ids, activations = map(torch.cat, zip(*self._parts, strict=True))
        self._parts = [(vectors, latent_ids, activations)]
        order = activations.argsort(stable=True)
        order = order[latent_ids[order].argsort(stable=True)]
        counts = torch.bincount(latent_ids.long(), minlength=self._d_sae)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return ActiveLatents(self._n, offsets, vectors[order], activations[order])


@dataclass(frozen=True, eq=False)
class LabelSelectivity:
    """How well each latent tells one label.

    Args:
        name: The label.
        values: Its values.
        n: How many vectors have each value.
        auroc: For each latent and value, the chance that the latent is more
            active on a vector with the value than on one with another value
            (half for as active). 0.5 tells nothing, below 0.5 it is less
            active; NaN where all vectors, or none, have the value.
        information: Mutual information of whether the latent is active and
            whether the vector has the value.
        information_all: Mutual information of whether the latent is active
            and which value the vector has.
        unit: Of the information.
    """

    name: str
    values: tuple[str, ...]
    n: Int64[Tensor, " value"]
    auroc: Float64[Tensor, "latent value"]
    information: Float64[Tensor, "latent value"]
    information_all: Float64[Tensor, " latent"]
    unit: Unit

    def best(self) -> list[tuple[str, int, float]]:
        """For each value that has an AUROC, the latent with the greatest, and this AUROC."""
        found = []
        for index, value in enumerate(self.values):
            column = self.auroc[:, index].nan_to_num(nan=-1)
            latent = int(column.argmax())
            if column[latent] >= 0:
                found.append((value, latent, float(column[latent])))
        return found


@dataclass(frozen=True, eq=False)
class Selectivity:
    """How well each latent tells each of some labels.

    Args:
        labels: What was found, by the name of the label.
        n_vectors: How many vectors, words or recordings.
        density: Share of them on which each latent is active.
    """

    labels: dict[str, LabelSelectivity]
    n_vectors: int
    density: Float64[Tensor, " latent"]

    def __getitem__(self, name: str) -> LabelSelectivity:
        """What was found for one label."""
        if name not in self.labels:
            raise InputError(f"no label {name!r}; there are {', '.join(self.labels)}.")
        return self.labels[name]

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each latent and each value of each label."""
        import pandas

        tables = []
        for label in self.labels.values():
            d_sae, n_values = label.auroc.shape
            columns = {
                "latent": torch.arange(d_sae).repeat_interleave(n_values).numpy(),
                "label": label.name,
                "value": list(label.values) * d_sae,
                "auroc": label.auroc.flatten().numpy(),
                f"information_{label.unit}": label.information.flatten().numpy(),
                "density": self.density.repeat_interleave(n_values).numpy(),
                "n": label.n.repeat(d_sae).numpy(),
            }
            tables.append(pandas.DataFrame(columns))
        return pandas.concat(tables, ignore_index=True)

    def best(self, n: int = 1) -> "pandas.DataFrame":
        """For each value of each label the `n` latents with the greatest AUROC, best first."""
        table = self.to_dataframe().dropna(subset="auroc")
        pairs = [(label.name, value) for label in self.labels.values() for value in label.values]
        order = {pair: i for i, pair in enumerate(pairs)}
        table["order"] = [order[pair] for pair in zip(table["label"], table["value"], strict=True)]
        table = table.sort_values(["order", "auroc", "latent"], ascending=[True, False, True])
        best = table.groupby("order").head(n)
        return best.drop(columns="order").reset_index(drop=True)


@torch.no_grad()
def selectivity(
    latents: ActiveLatents | Float[Tensor, "vector latent"],
    labels: Labels | Sequence[Labels],
    unit: Unit = "bits",
) -> Selectivity:
    """How well each latent tells each value of some labels, by AUROC and mutual information.

    Args:
        latents: Of vectors: frames, or words or recordings after max pooling.
        labels: What is known about each vector.
        unit: Of mutual information.

    Raises:
        InputError: As many labels as there are no vectors, or a label named twice.

    Source: AUROC as the Mann-Whitney U statistic with midranks for ties.
    """
    if unit not in get_args(Unit):
        raise InputError(f'unit is {unit!r}; it can be "nats" or "bits".')
    several = [labels] if isinstance(labels, Labels) else list(labels)
    names = [label.name for label in several]
    if not several or len(set(names)) < len(names):
        raise InputError(f"the labels are {names}; pass at least one, each with its own name.")
    active = ActiveLatents.of(latents) if isinstance(latents, Tensor) else latents
    for label in several:
        if len(label) != active.n_vectors:
            raise InputError(
                f"the label {label.name!r} is known for {len(label)} vectors, and there are "
                f"latents of {active.n_vectors}."
            )
    found = {label.name: _selectivity_of(active, label, unit) for label in several}
    density = active.n_active.double() / max(1, active.n_vectors)
    return Selectivity(found, active.n_vectors, density)


def auroc(
    latents: ActiveLatents | Float[Tensor, "vector latent"], labels: Labels
) -> Float64[Tensor, "latent value"]:
    """The AUROC of each latent for each value of a label against its other values, ties by half.

    >>> labels = Labels.of("digit", ["one", "one", "two"])
    >>> auroc(torch.tensor([[2.0], [1.0], [1.0]]), labels)
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    return selectivity(latents, labels)[labels.name].auroc


def _selectivity_of(active: ActiveLatents, labels: Labels, unit: Unit) -> LabelSelectivity:
    n_values = len(labels.values)
    totals = torch.bincount(labels.ids[labels.ids >= 0], minlength=n_values)
    ranks = torch.zeros(active.d_sae, n_values, dtype=torch.float64)
    on = torch.zeros(active.d_sae, n_values, dtype=torch.int64)
    for first, last in runs_of_latents(active.offsets):
        entries = slice(int(active.offsets[first]), int(active.offsets[last]))
        ids = labels.ids[active.vectors[entries].long()]
        latent = torch.arange(first, last).repeat_interleave(active.n_active[first:last]) - first
        known = ids >= 0
        part = slice(first, last)
        ranks[part], on[part] = _rank_sums(
            active.activations[entries][known], latent[known], ids[known], totals, last - first
        )
    n = totals.double()
    rest = n.sum() - n
    pairs = n * rest
    above = ranks - n * (n + 1) / 2
    score = torch.where(pairs > 0, above / pairs.clamp(min=1), torch.nan)
    scale = 1.0 if unit == "nats" else math.log(2)
    joint = torch.stack([on.double(), n - on.double()], dim=-1)  # [latent value active]
    against = joint.sum(dim=1, keepdim=True) - joint
    of_value = mutual_information(torch.stack([joint, against], dim=-2)) / scale
    of_all = mutual_information(joint) / scale
    return LabelSelectivity(labels.name, labels.values, totals, score, of_value, of_all, unit)


def runs_of_latents(offsets: Int64[Tensor, " latent_plus_1"]) -> list[tuple[int, int]]:
    """Runs of latents with not too many entries each, but one latent at least."""
    parts, first = [], 0
    n = len(offsets) - 1
    while first < n:
        limit = offsets[first] + _ENTRIES_AT_ONCE
        last = int(torch.searchsorted(offsets, limit, right=True)) - 1
        last = min(n, max(first + 1, last))
        parts.append((first, last))
        first = last
    return parts


def _rank_sums(
    activations: Float[Tensor, " entry"],
    latent: Int64[Tensor, " entry"],
    ids: Int64[Tensor, " entry"],
    totals: Int64[Tensor, " value"],
    n_latents: int,
) -> tuple[Float64[Tensor, "latent value"], Int64[Tensor, "latent value"]]:
    """For each latent and value the sum of the ranks of its vectors, and how many are active.

    The entries come latent by latent, least active first. Ranks count from 1
    within a latent; equals share the mean of theirs, and so do all vectors on
    which it is not active.
    """
    n_values = len(totals)
    m = len(activations)
    n_active = torch.bincount(latent, minlength=n_latents)
    n_off = totals.sum() - n_active
    n_below = torch.bincount(latent[activations < 0], minlength=n_latents)
    begins = n_active.cumsum(0) - n_active
    new = torch.ones(m, dtype=torch.bool)
    new[1:] = (activations[1:] != activations[:-1]) | (latent[1:] != latent[:-1])
    starts = new.nonzero()[:, 0]
    sizes = torch.cat([starts, starts.new_tensor([m])]).diff()
    middle = starts.double() + (sizes.double() + 1) / 2
    rank = middle.repeat_interleave(sizes) - begins[latent]
    rank += torch.where(activations > 0, n_off[latent], 0)
    cell = latent * n_values + ids
    size = n_latents * n_values
    sums = torch.bincount(cell, weights=rank, minlength=size).view(n_latents, n_values)
    on = torch.bincount(cell, minlength=size).view(n_latents, n_values)
    off_rank = n_below.double() + (n_off.double() + 1) / 2
    return sums + off_rank[:, None] * (totals - on), on


def mutual_information(counts: Float64[Tensor, "*batch some other"]) -> Float64[Tensor, "*batch"]:
    """Mutual information in nats of two variables, from how often they meet.

    Source: Cover and Thomas 2006, equation 2.28.
    """
    joint = counts / counts.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    apart = joint.sum(dim=-1, keepdim=True) * joint.sum(dim=-2, keepdim=True)
    ratio = torch.where(joint > 0, joint / apart.where(joint > 0, 1.0), 1.0)
    return (joint * ratio.log()).sum(dim=(-2, -1)).clamp(min=0)
