"""k-sparse probes: what a linear probe tells that reads k features alone, for rising k."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from hooked_whisper.analysis.selectivity import Labels, auroc
from hooked_whisper.analysis.thresholds import precision_at_recall, threshold_of_best_f1
from hooked_whisper.display import box, table
from hooked_whisper.errors import InputError, check_number

if TYPE_CHECKING:
    import pandas

KS = (1, 2, 4, 8, 16, 32)
_MOST_STEPS, _TOLERANCE = 50, 1e-8


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """How well k features tell each value of a label from the others, for rising k.

    Args:
        name: The label.
        values: Its values, where the vectors that chose and those that judged have both.
        ks: How many features each probe reads.
        features: Those of each value, the most different first; the probe of k reads the first k.
        n: How many vectors that judged have each value.
        auroc: Of the probe, on the vectors that judged.
        precision: At the threshold with the greatest F1 on the vectors that chose.
        recall: At the same.
        precision_at_half: At the threshold, on the vectors that judged, with a recall of 0.5.
    """

    name: str
    values: tuple[str, ...]
    ks: tuple[int, ...]
    features: Int64[Tensor, "value feature"]
    n: Int64[Tensor, " value"]
    auroc: Float64[Tensor, "k value"]
    precision: Float64[Tensor, "k value"]
    recall: Float64[Tensor, "k value"]
    precision_at_half: Float64[Tensor, "k value"]

    @property
    def f1(self) -> Float64[Tensor, "k value"]:
        """The harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return torch.where(total > 0, 2 * self.precision * self.recall / total.clamp(min=1e-12), 0)

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each k: means over the values, each counted once."""
        import pandas

        columns = {
            "k": list(self.ks),
            "auroc": self.auroc.mean(dim=1).tolist(),
            "f1": self.f1.mean(dim=1).tolist(),
            "precision": self.precision.mean(dim=1).tolist(),
            "recall": self.recall.mean(dim=1).tolist(),
            "precision_at_half": self.precision_at_half.mean(dim=1).tolist(),
        }
        return pandas.DataFrame(columns)

    def __repr__(self) -> str:
        means = zip(self.ks, self.auroc.mean(dim=1).tolist(), strict=True)
        told = ", ".join(f"k {k} {mean:.3f}" for k, mean in means)
        return f"SparseProbe({self.name!r}: {len(self.values)} values; mean AUROC {told})"

    def _repr_html_(self) -> str:
        """The means for each k."""
        frame = self.to_dataframe()
        about = f"{len(self.values)} values, means over them"
        return box(
            f"Sparse probes of {self.name}", about, table(list(frame), frame.values.tolist())
        )


@torch.no_grad()
def sparse_probe(
    chosen_on: Float[Tensor, "vector feature"],
    labels: Labels,
    judged_on: Float[Tensor, "other_vector other_feature"],
    judged_labels: Labels,
    ks: Sequence[int] = KS,
    *,
    strength: float | int = 1.0,
) -> SparseProbe:
    """Logistic regressions on k features for each value of a label, judged on other vectors.

    For each value against the others, features are ranked by the difference of their means over
    their standard deviation, on `chosen_on`; a logistic regression is fitted there on the first k,
    scaled to unit variance, and judged on `judged_on`. The same rule for latents, neurons,
    dimensions or principal components makes them comparable; signs do not matter.

    Args:
        chosen_on: Features of some vectors: of some speakers.
        labels: Theirs; vectors without a value are left out.
        judged_on: The same features of others: of other speakers.
        judged_labels: Theirs.
        ks: How many features; more than there are is all of them.
        strength: Of the L2 penalty, 1/C of scikit-learn.

    Raises:
        InputError: Other features or labels on one side, no value that both have, or a k under 1.

    Source: Gurnee et al. 2023, "Finding Neurons in a Haystack"; features by the difference of
    means as in SAEBench (Karvonen et al. 2025).
    """
    _check(chosen_on, labels, judged_on, judged_labels, ks)
    check_number("strength", strength, InputError, 0)
    x, ids = chosen_on[labels.ids >= 0].double(), labels.ids[labels.ids >= 0]
    y = judged_on[judged_labels.ids >= 0].double()
    judged_ids = judged_labels.ids[judged_labels.ids >= 0]
    values, numbers = _values_of_both(labels, ids, judged_labels, judged_ids)
    n_features = x.shape[1]
    sizes = tuple(sorted({min(k, n_features) for k in ks}))
    mean, spread = x.mean(dim=0), x.std(dim=0)
    scale = torch.where(spread > 0, 1 / spread.clamp(min=1e-30), 0)
    found: list[list[tuple[float, ...]]] = []
    features = torch.zeros(len(values), sizes[-1], dtype=torch.int64)
    for row, (number, judged_number) in enumerate(numbers):
        is_value, is_judged = ids == number, judged_ids == judged_number
        difference = (x[is_value].mean(dim=0) - x[~is_value].mean(dim=0)) * scale
        features[row] = difference.abs().argsort(descending=True, stable=True)[: sizes[-1]]
        own, others = ((v[:, features[row]] - mean[features[row]]) for v in (x, y))
        own, others = own * scale[features[row]], others * scale[features[row]]
        found.append([])
        for k in sizes:
            weights = logistic_regression(own[:, :k], is_value, strength)
            score, judged = own[:, :k] @ weights[:-1], others[:, :k] @ weights[:-1]
            says = judged >= threshold_of_best_f1(score, is_value)
            right = float((says & is_judged).sum())
            area = auroc(judged[:, None].float(), Labels("", ("no", "yes"), is_judged.long()))
            precision, recall = right / max(1, int(says.sum())), right / int(is_judged.sum())
            half = float(precision_at_recall(judged, is_judged, 0.5))
            found[-1].append((float(area[0, 1]), precision, recall, half))
    by_k = torch.tensor(found, dtype=torch.float64).permute(2, 1, 0)
    n = torch.tensor([int((judged_ids == number).sum()) for _, number in numbers])
    return SparseProbe(labels.name, values, sizes, features, n, *by_k)


def logistic_regression(
    x: Float64[Tensor, "vector feature"], is_value: Bool[Tensor, " vector"], strength: float | int
) -> Float64[Tensor, " feature_and_bias"]:
    """The weights of a logistic regression with an L2 penalty, the bias, without one, last.

    Newton's method, halving steps that do not lower the loss.
    """
    ones = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    penalty = torch.full((ones.shape[1],), float(strength), dtype=torch.float64)
    penalty[-1] = 1e-12  # keeps it solvable where all features are constant
    sign = torch.where(is_value, 1.0, -1.0).double()

    def loss(weights: Tensor) -> Tensor:
        rest = -torch.nn.functional.logsigmoid(sign * (ones @ weights)).sum()
        return rest + (penalty * weights.square()).sum() / 2

    weights = ones.new_zeros(ones.shape[1])
    before = loss(weights)
    for _ in range(_MOST_STEPS):
        chance = torch.sigmoid(ones @ weights)
        gradient = ones.T @ (chance - is_value.double()) + penalty * weights
        curvature = (ones * (chance * (1 - chance))[:, None]).T @ ones + penalty.diag()
        step = torch.linalg.solve(curvature, gradient)
        now = loss(weights - step)
        while now > before and float(step.abs().max()) > _TOLERANCE:
            step = step / 2
            now = loss(weights - step)
        if now > before:
            break
        weights, gain, before = weights - step, before - now, now
        if gain <= _TOLERANCE * (1 + before.abs()):
            break
    return weights


def _check(
    chosen_on: Tensor, labels: Labels, judged_on: Tensor, judged_labels: Labels, ks: Sequence[int]
) -> None:
    if chosen_on.shape[1] != judged_on.shape[1] or labels.name != judged_labels.name:
        raise InputError(
            f"{chosen_on.shape[1]} features and the label {labels.name!r} choose, and "
            f"{judged_on.shape[1]} features and the label {judged_labels.name!r} judge; they must "
            "be the same."
        )
    for vectors, own in ((chosen_on, labels), (judged_on, judged_labels)):
        if len(vectors) != len(own):
            raise InputError(
                f"the label {own.name!r} is known for {len(own)} vectors, and there are "
                f"{len(vectors)}."
            )
    if not ks or min(ks) < 1:
        raise InputError(f"ks is {list(ks)}; it must be numbers of features, 1 or more.")


def _values_of_both(
    labels: Labels, ids: Tensor, judged: Labels, judged_ids: Tensor
) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """The values that vectors of both sides have, and their numbers on both."""
    there = {judged.values[i]: i for i in judged_ids.unique().tolist()}
    here = {labels.values[i]: i for i in ids.unique().tolist()}
    both = tuple(value for value in labels.values if value in here and value in there)
    if not both or len(here) < 2:
        raise InputError(
            f"no value of {labels.name!r} can be told: {sorted(here)[:5]} choose and "
            f"{sorted(there)[:5]} judge. Both sides need it, and another one."
        )
    return both, [(here[value], there[value]) for value in both]
