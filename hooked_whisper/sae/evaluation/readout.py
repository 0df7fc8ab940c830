"""What the best latent for each value of a label tells, on vectors that did not choose it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from hooked_whisper.analysis.selectivity import (
    ActiveLatents,
    Labels,
    mutual_information,
    runs_of_latents,
    selectivity,
)
from hooked_whisper.analysis.thresholds import precision_at_recall
from hooked_whisper.display import box, table
from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

Choice = Literal["f1", "auroc"]
NONE = "(none)"
"""What a vector is told to be on which no chosen latent is over its threshold."""
OTHER = "(other)"
_MOST_CHOSEN_ON = 2
"""Latents that are active on fewer vectors than this are never chosen."""


@dataclass(frozen=True, eq=False)
class LabelReadout:
    """How well one latent for each value tells a label, and what it takes for what.

    Each value's latent and threshold were chosen on some vectors and are judged on others.

    Args:
        name: The label.
        values: Its values, where the vectors that chose and those that judged have both.
        latents: The latent of each value.
        thresholds: It says yes from here on.
        n: How many vectors that judged have each value.
        chosen: What the latent was chosen by, where it was chosen: F1 or AUROC.
        chosen_by: Which of them.
        auroc: Of the latent, on the vectors that judged.
        precision: Of the vectors on which it says yes, the share that has the value.
        recall: Of the vectors with the value, the share on which it says yes.
        at_recall: A recall that is the same for all values, whatever their thresholds.
        precision_at_recall: The precision at the threshold, on the vectors that judged, that has
            this recall; of vectors that are alike, as many as are missing, by lot.
        confusion: Of the vectors with each value, how many are told to be which: the value whose
            latent is furthest over its threshold, in its standard deviations; the last column is
            none. What has a value that is not listed is left out.
    """

    name: str
    values: tuple[str, ...]
    latents: Int64[Tensor, " value"]
    thresholds: Float64[Tensor, " value"]
    n: Int64[Tensor, " value"]
    chosen: Float64[Tensor, " value"]
    chosen_by: Choice
    auroc: Float64[Tensor, " value"]
    precision: Float64[Tensor, " value"]
    recall: Float64[Tensor, " value"]
    at_recall: float
    precision_at_recall: Float64[Tensor, " value"]
    confusion: Int64[Tensor, "value value_and_none"]

    @property
    def f1(self) -> Float64[Tensor, " value"]:
        """The harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return torch.where(total > 0, 2 * self.precision * self.recall / total.clamp(min=1e-12), 0)

    @property
    def mean_auroc(self) -> float:
        """Over the values, each counted once."""
        return float(self.auroc.nanmean())

    @property
    def mean_f1(self) -> float:
        """Over the values, each counted once."""
        return float(self.f1.mean())

    @property
    def accuracy(self) -> float:
        """Share of the vectors that are told to be what they are."""
        return float(self.confusion.diagonal().sum() / self.confusion.sum().clamp(min=1))

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each value."""
        import pandas

        columns = {
            "value": list(self.values),
            "latent": self.latents.numpy(),
            "n": self.n.numpy(),
            f"chosen_{self.chosen_by}": self.chosen.numpy(),
            "auroc": self.auroc.numpy(),
            "f1": self.f1.numpy(),
            "precision": self.precision.numpy(),
            "recall": self.recall.numpy(),
            f"precision_at_recall_{self.at_recall:g}": self.precision_at_recall.numpy(),
            "threshold": self.thresholds.numpy(),
        }
        return pandas.DataFrame(columns)

    def confusion_table(self, groups: Mapping[str, str] | None = None) -> "pandas.DataFrame":
        """Shares of what is said (rows) that are told to be what (columns); each row adds up to 1.

        Args:
            groups: The group of each value, such as `MANNER` or `PLACE` of
                `hooked_whisper.speech.phones`; values without one are a group of their own.
        """
        import pandas

        names = [*self.values, NONE]
        found = pandas.DataFrame(self.confusion.numpy(), index=names[:-1], columns=names)
        if groups is not None:
            group = {name: groups.get(name, name) for name in names}
            order = list(dict.fromkeys(group[name] for name in names))
            found = found.groupby(group).sum().T.groupby(group).sum().T
            found = found.reindex(index=[name for name in order if name != NONE], columns=order)
        return found.div(found.sum(axis=1).clip(lower=1), axis=0)

    def plot(self, groups: Mapping[str, str] | None = None) -> "matplotlib.figure.Figure":
        """The confusion table as a picture; see `confusion_table`."""
        from hooked_whisper.figures import plot_confusion

        shares = self.confusion_table(groups)
        return plot_confusion(
            torch.tensor(shares.to_numpy()),
            list(shares.index),
            list(shares.columns),
            title=f"{self.name}: {self.accuracy:.0%} of {int(self.confusion.sum()):,} told right",
        )

    def __repr__(self) -> str:
        return (
            f"LabelReadout({self.name!r}: {len(self.values)} values, one latent each; mean AUROC "
            f"{self.mean_auroc:.3f}, mean F1 {self.mean_f1:.3f}, {self.accuracy:.1%} told right)"
        )

    def _repr_html_(self) -> str:
        """The table, the values that are told best first."""
        frame = self.to_dataframe().sort_values("f1", ascending=False)
        about = (
            f"{len(self.values)} values: mean AUROC {self.mean_auroc:.3f}, mean F1 "
            f"{self.mean_f1:.3f}; {self.accuracy:.1%} told right"
        )
        return box(f"Readout of {self.name}", about, table(list(frame), frame.values.tolist()))


@torch.no_grad()
def readout(
    chosen_on: ActiveLatents,
    labels: Labels,
    judged_on: ActiveLatents,
    judged_labels: Labels,
    choose: Choice = "f1",
    at_recall: float = 0.5,
) -> LabelReadout:
    """The latent that tells each value of a label best, judged on vectors that did not choose it.

    The same for neurons, dimensions or anything else in place of latents: give both signs of what
    can be negative, `ActiveLatents.of(torch.cat([x, -x], dim=1))`.

    Args:
        chosen_on: Of vectors: frames of some speakers.
        labels: Theirs.
        judged_on: The same latents of others: frames of other speakers.
        judged_labels: Theirs.
        choose: By the greatest F1 over all thresholds, or by the greatest AUROC; the threshold is
            that of the greatest F1 either way.
        at_recall: The recall at which all are compared by their precision.

    Raises:
        InputError: Other latents or labels on one side, or no value that both have; a recall
            that is none.
    """
    if choose not in get_args(Choice):
        raise InputError(f'choose is {choose!r}; it can be "f1" or "auroc".')
    if not 0 < at_recall <= 1:
        raise InputError(f"at_recall is {at_recall}; it can be over 0, to 1.")
    if chosen_on.d_sae != judged_on.d_sae or labels.name != judged_labels.name:
        raise InputError(
            f"{chosen_on.d_sae} latents and the label {labels.name!r} choose, and "
            f"{judged_on.d_sae} latents and the label {judged_labels.name!r} judge; they must be "
            "the same."
        )
    values = _values_of_both(labels, judged_labels)
    labels, judged_labels = _with_values(labels, values), _with_values(judged_labels, values)
    score, thresholds, _ = best_f1(chosen_on, labels)
    if choose == "auroc":
        score = selectivity(chosen_on, labels)[labels.name].auroc.nan_to_num(nan=0.0)
    score = torch.where((chosen_on.n_active < _MOST_CHOSEN_ON)[:, None], -1.0, score)
    score = score[:, : len(values)]
    latents = score.argmax(dim=0)
    column = torch.arange(len(values))
    threshold = thresholds[latents, column]
    spread = _dense(chosen_on, latents).std(dim=0).clamp(min=1e-12)
    activations = _dense(judged_on, latents)
    known = judged_labels.ids >= 0
    ids, activations = judged_labels.ids[known], activations[known]
    says = activations >= threshold
    is_value = ids[:, None] == column
    right = (says & is_value).sum(dim=0).double()
    n = is_value.sum(dim=0)
    auroc = selectivity(judged_on, judged_labels)[labels.name].auroc[latents, column]
    return LabelReadout(
        name=labels.name,
        values=values,
        latents=latents,
        thresholds=threshold,
        n=n,
        chosen=score[latents, column],
        chosen_by=choose,
        auroc=auroc,
        precision=right / says.sum(dim=0).clamp(min=1),
        recall=right / n.clamp(min=1),
        at_recall=at_recall,
        precision_at_recall=torch.stack(
            [
                precision_at_recall(activations[:, i], is_value[:, i], at_recall)
                for i in range(len(values))
            ]
        ),
        confusion=_confusion(says, (activations - threshold) / spread, ids, len(values)),
    )


class BestF1(NamedTuple):
    """The greatest F1 of each latent for each value over all thresholds.

    A latent says yes where it is at least as active as the threshold, which is over 0 for latents
    that are never negative.

    Args:
        f1: 0 where a latent never is active on the value.
        thresholds: Infinite there.
        information: Of what the latent says there and whether the vector has the value, in bits.
    """

    f1: Float64[Tensor, "latent value"]
    thresholds: Float64[Tensor, "latent value"]
    information: Float64[Tensor, "latent value"]


def best_f1(active: ActiveLatents, labels: Labels) -> BestF1:
    """The greatest F1 of each latent for each value over all thresholds.

    Args:
        active: The latents.
        labels: What is known about each vector.

    >>> labels = Labels.of("digit", ["one", "one", "two"])
    >>> best_f1(ActiveLatents.of(torch.tensor([[2.0], [1.0], [0.5]])), labels).f1
    tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    totals = torch.bincount(labels.ids[labels.ids >= 0], minlength=len(labels.values))
    parts = []
    for first, last in runs_of_latents(active.offsets):
        entries = slice(int(active.offsets[first]), int(active.offsets[last]))
        ids = labels.ids[active.vectors[entries].long()]
        latent = torch.arange(last - first).repeat_interleave(active.n_active[first:last])
        known = ids >= 0
        parts.append(
            _best_f1(
                active.activations[entries][known], latent[known], ids[known], totals, last - first
            )
        )
    yes, right, thresholds = map(torch.cat, zip(*parts, strict=True))
    no = totals.sum() - yes
    counts = torch.stack([right, yes - right, totals - right, no - totals + right], dim=-1)
    return BestF1(
        2 * right.double() / (yes + totals).clamp(min=1),
        thresholds,
        mutual_information(counts.double().unflatten(-1, (2, 2))) / math.log(2),
    )


def _best_f1(
    activations: Float[Tensor, " entry"],
    latent: Int64[Tensor, " entry"],
    ids: Int64[Tensor, " entry"],
    totals: Int64[Tensor, " value"],
    n_latents: int,
) -> tuple[
    Int64[Tensor, "latent value"], Int64[Tensor, "latent value"], Float64[Tensor, "latent value"]
]:
    """How many vectors get a yes at the best threshold, how many of them rightly, and it.

    Of some latents, whose entries come as `ActiveLatents` has them. A threshold between two
    vectors of a value says no more of them than the upper one does, but yes to more others: only
    the activations of the value's own vectors are tried for it.
    """
    n_values, m = len(totals), len(latent)
    n = torch.bincount(latent, minlength=n_latents)
    new = torch.ones(m, dtype=torch.bool)
    new[1:] = (activations[1:] != activations[:-1]) | (latent[1:] != latent[:-1])
    starts = new.nonzero()[:, 0]  # equals say yes together
    n_yes = n.cumsum(0)[latent] - starts[new.cumsum(0) - 1]
    cell = latent * n_values + ids
    order = cell.argsort(stable=True)
    in_cell = torch.bincount(cell, minlength=n_latents * n_values)
    n_right = torch.empty(m, dtype=torch.int64)
    n_right[order] = in_cell.cumsum(0)[cell[order]] - torch.arange(m)
    # What is not listed is 0, and says yes with every threshold below 0.
    below = activations < 0
    n_yes = n_yes + below * (totals.sum() - n)[latent]
    n_right = n_right + below * (totals[ids] - in_cell[cell])
    f1 = 2 * n_right.double() / (n_yes + totals[ids])
    best = torch.zeros(n_latents * n_values, dtype=torch.float64)
    best.scatter_reduce_(0, cell, f1, "amax")
    place = torch.full(best.shape, -1)  # of equally good ones the last, which is most active
    is_best = (f1 == best[cell]).nonzero()[:, 0]
    place.scatter_reduce_(0, cell[is_best], is_best, "amax")
    shape, is_there = (n_latents, n_values), place >= 0
    yes, right, thresholds = torch.zeros_like(place), torch.zeros_like(place), best + torch.inf
    yes[is_there], right[is_there] = n_yes[place[is_there]], n_right[place[is_there]]
    thresholds[is_there] = activations[place[is_there]].double()
    best, yes, right = best.view(shape), yes.view(shape), right.view(shape)
    thresholds = thresholds.view(shape)
    if bool(below.any()):  # then 0 is a threshold as well
        n_below = torch.bincount(latent[below], minlength=n_latents)
        below_in_cell = torch.bincount(cell[below], minlength=n_latents * n_values)
        all_right = totals - below_in_cell.view(shape)
        all_yes = (totals.sum() - n_below)[:, None].expand(shape)
        is_better = 2 * all_right.double() / (all_yes + totals) > best
        is_better &= (n_below > 0)[:, None]
        yes, right = torch.where(is_better, all_yes, yes), torch.where(is_better, all_right, right)
        thresholds = thresholds.masked_fill(is_better, 0.0)
    return yes, right, thresholds


def _values_of_both(labels: Labels, judged: Labels) -> tuple[str, ...]:
    """The values that vectors of both sides have."""
    present = [
        {each.values[i] for i in each.ids.unique().tolist() if i >= 0} for each in (labels, judged)
    ]
    found = tuple(value for value in labels.values if value in present[0] & present[1])
    if not found:
        raise InputError(
            f"no value of {labels.name!r} is on both sides: {sorted(present[0])[:5]} choose and "
            f"{sorted(present[1])[:5]} judge."
        )
    return found


def _with_values(labels: Labels, values: Sequence[str]) -> Labels:
    """A label with these values in this order, and one for all others behind them."""
    place = {value: i for i, value in enumerate(values)}
    ids = torch.tensor([*(place.get(value, len(values)) for value in labels.values), -1])
    return Labels(labels.name, (*values, OTHER), ids[labels.ids])


def _dense(active: ActiveLatents, latents: Int64[Tensor, " value"]) -> Float64[Tensor, "vec value"]:
    """The activations of some latents, zeros included."""
    found = torch.zeros(active.n_vectors, len(latents), dtype=torch.float64)
    for i, latent in enumerate(latents.tolist()):
        start, end = active.offsets[latent : latent + 2].tolist()
        found[active.vectors[start:end].long(), i] = active.activations[start:end].double()
    return found


def _confusion(
    says: Bool[Tensor, "vec value"],
    margin: Float64[Tensor, "vec value"],
    ids: Int64[Tensor, " vec"],
    n_values: int,
) -> Int64[Tensor, "value value_and_none"]:
    told = margin.masked_fill(~says, -torch.inf).argmax(dim=1)
    told = torch.where(says.any(dim=1), told, n_values)
    listed = ids < n_values
    cell = ids[listed] * (n_values + 1) + told[listed]
    return torch.bincount(cell, minlength=n_values * (n_values + 1)).view(n_values, n_values + 1)
