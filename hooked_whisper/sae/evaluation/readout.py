"""What the best latent for each value of a label tells, on vectors that did not choose it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from hooked_whisper.analysis.selectivity import ActiveLatents, Labels, selectivity
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

    Raises:
        InputError: Other latents or labels on one side, or no value that both have.
    """
    if choose not in get_args(Choice):
        raise InputError(f'choose is {choose!r}; it can be "f1" or "auroc".')
    if chosen_on.d_sae != judged_on.d_sae or labels.name != judged_labels.name:
        raise InputError(
            f"{chosen_on.d_sae} latents and the label {labels.name!r} choose, and "
            f"{judged_on.d_sae} latents and the label {judged_labels.name!r} judge; they must be "
            "the same."
        )
    values = _values_of_both(labels, judged_labels)
    labels, judged_labels = _with_values(labels, values), _with_values(judged_labels, values)
    f1, thresholds = best_f1(chosen_on, labels)
    score = f1
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
        confusion=_confusion(says, (activations - threshold) / spread, ids, len(values)),
    )


def best_f1(
    active: ActiveLatents,
    labels: Labels,
    asked: Bool[Tensor, "latent value"] | None = None,
) -> tuple[Float64[Tensor, "latent value"], Float64[Tensor, "latent value"]]:
    """The greatest F1 of each latent for each value over all thresholds, and the threshold.

    A latent says yes where it is at least as active as the threshold, which is over 0 for latents
    that are never negative. 0, with an infinite threshold, where it never is active.

    Args:
        active: The latents.
        labels: What is known about each vector.
        asked: For which latents and values; None is all. The others are 0.

    >>> labels = Labels.of("digit", ["one", "one", "two"])
    >>> best_f1(ActiveLatents.of(torch.tensor([[2.0], [1.0], [0.5]])), labels)[0]
    tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    n_values = len(labels.values)
    best = torch.zeros(active.d_sae, n_values, dtype=torch.float64)
    thresholds = torch.full_like(best, torch.inf)
    totals = torch.bincount(labels.ids[labels.ids >= 0], minlength=n_values)
    for value in range(n_values):
        latents = torch.arange(active.d_sae)
        if asked is not None:
            latents = asked[:, value].nonzero()[:, 0]
        entries, latent = _entries_of(active, latents)
        ids = labels.ids[active.vectors[entries].long()]
        known = ids >= 0
        best[latents, value], thresholds[latents, value] = _best_f1(
            active.activations[entries][known].double(),
            latent[known],
            ids[known] == value,
            (int(totals[value]), int(totals.sum())),
            len(latents),
        )
    return best, thresholds


def _entries_of(
    active: ActiveLatents, latents: Int64[Tensor, " some"]
) -> tuple[Int64[Tensor, " entry"], Int64[Tensor, " entry"]]:
    """The entries of some latents, and the place of each one's latent among these."""
    counts = active.n_active[latents]
    begins = counts.cumsum(0) - counts
    latent = torch.arange(len(latents)).repeat_interleave(counts)
    return torch.arange(len(latent)) + (active.offsets[latents] - begins)[latent], latent


def _best_f1(
    activations: Float64[Tensor, " entry"],
    latent: Int64[Tensor, " entry"],
    is_value: Bool[Tensor, " entry"],
    totals: tuple[int, int],
    n_latents: int,
) -> tuple[Float64[Tensor, " latent"], Float64[Tensor, " latent"]]:
    """The greatest F1 of each latent for one value; entries come as `ActiveLatents` has them."""
    n_value, n_all = totals
    best = torch.zeros(n_latents, dtype=torch.float64)
    thresholds = torch.full_like(best, torch.inf)
    if not len(latent) or not n_value:
        return best, thresholds
    n = torch.bincount(latent, minlength=n_latents)
    ends = n.cumsum(0)
    hits = torch.cat([torch.zeros(1, dtype=torch.float64), is_value.double().cumsum(0)])
    place = torch.arange(len(latent))
    n_yes = (ends[latent] - place).double()
    n_right = hits[ends[latent]] - hits[place]
    # What is not listed is 0, and says yes with every threshold below 0.
    below = activations < 0
    n_yes += below * (n_all - n[latent])
    n_right += below * (n_value - (hits[ends] - hits[ends - n])[latent])
    f1 = 2 * n_right / (n_yes + n_value)
    first = torch.ones(len(latent), dtype=torch.bool)
    first[1:] = (activations[1:] != activations[:-1]) | (latent[1:] != latent[:-1])
    f1 = torch.where(first, f1, 0.0)  # equals say yes together
    best.scatter_reduce_(0, latent, f1, "amax")
    is_best = (f1 == best[latent]) & (f1 > 0)
    own = torch.full_like(best, -torch.inf)
    own.scatter_reduce_(0, latent[is_best], activations[is_best], "amax")
    return best, torch.where(own == -torch.inf, thresholds, own)


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
