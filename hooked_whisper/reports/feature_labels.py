"""Which value of which label each feature tells best."""

from dataclasses import dataclass

import torch

from hooked_whisper.analysis.selectivity import selectivity
from hooked_whisper.reports.feature_activations import OTHER, Measured, position_labels
from hooked_whisper.reports.sites import FeatureSite

LEAST_COUNT = 3
"""A value that fewer positions have is told by chance."""
N_BEST = 3


@dataclass(frozen=True)
class Told:
    """What features tell.

    Args:
        labels: Names of labels and their values.
        best: For each feature the places in `labels` of the values that it
            tells best, with the AUROC and the information in bits, best first;
            none for features that are never active.
    """

    labels: list[tuple[str, str]]
    best: list[list[tuple[int, float, float]]]


def tell(measured: Measured, site: FeatureSite) -> Told | None:
    """What each feature tells best, over positions; None where nothing is known of them.

    AUROC is of the activation, the information of whether a feature is on: a
    latent that is not 0, a neuron over 0.
    """
    known = position_labels(measured, site)
    if not known:
        return None
    found = selectivity(measured.active, known)
    on = found if site.kind == "latent" else selectivity(measured.positive(), known)
    labels, aurocs, bits = [], [], []
    for each in found.labels.values():
        for place, value in enumerate(each.values):
            if value != OTHER and each.n[place] >= LEAST_COUNT:
                labels.append((each.name, value))
                aurocs.append(each.auroc[:, place])
                bits.append(on[each.name].information[:, place])
    if not labels:
        return None
    auroc = torch.stack(aurocs, dim=1).nan_to_num(nan=0.0)
    information = torch.stack(bits, dim=1)
    order = auroc.argsort(dim=1, descending=True, stable=True)[:, :N_BEST]
    is_active = measured.active.n_active > 0
    best = [
        [(i, float(auroc[row, i]), float(information[row, i])) for i in places]
        if is_active[row]
        else []
        for row, places in enumerate(order.tolist())
    ]
    return Told(labels, best)
