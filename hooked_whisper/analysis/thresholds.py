"""Where to say yes: thresholds of a score, and what they come to."""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor


def threshold_of_best_f1(
    score: Float[Tensor, " vector"], is_value: Bool[Tensor, " vector"]
) -> float:
    """From which score on a yes has the greatest F1 on these vectors."""
    ordered, order = score.sort(descending=True)
    right = is_value[order].cumsum(0).double()
    f1 = 2 * right / (torch.arange(1, len(score) + 1) + is_value.sum())
    is_last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    return float(ordered[f1.where(is_last, -1).argmax()])  # equals say yes together


def precision_at_recall(
    score: Float[Tensor, " vector"], is_value: Bool[Tensor, " vector"], recall: float
) -> Float64[Tensor, ""]:
    """The precision where so great a share of the vectors with the value gets a yes.

    The most active vectors get it; of those that are alike, as many as are missing, by lot: the
    expected precision, which for a latent that is seldom active is near that of all vectors.

    >>> score, is_value = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, True])
    >>> precision_at_recall(score, is_value, 0.5), precision_at_recall(score, is_value, 1.0)
    (tensor(1., dtype=torch.float64), tensor(0.6667, dtype=torch.float64))
    """
    ordered, order = score.sort(descending=True)
    ends = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    right = torch.cat([torch.zeros(1), is_value[order].cumsum(0)[ends]]).double()
    yes = torch.cat([torch.zeros(1), ends + 1]).double()
    wanted = recall * right[-1]
    at = int(torch.searchsorted(right, wanted))  # the first run that reaches it
    share = (wanted - right[at - 1]) / (right[at] - right[at - 1])
    return wanted / (yes[at - 1] + share * (yes[at] - yes[at - 1]))
