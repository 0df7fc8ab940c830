"""Which value of which label each feature tells best."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hooked_whisper.analysis.selectivity import Labels, selectivity
from hooked_whisper.data.position_labels import position_labels
from hooked_whisper.reports.feature_activations import FeatureActivations, token_names
from hooked_whisper.reports.sites import FeatureSite
from hooked_whisper.sae.evaluation.readout import best_f1

LEAST_COUNT = 3
"""A value that fewer positions have is told by chance."""
N_BEST = 3
MOST_VALUES = 200
"""Values of a label that are told apart: the most frequent ones; the rest are `OTHER`."""
OTHER = "(other)"


@dataclass(frozen=True)
class FeatureLabels:
    """What features tell.

    Args:
        labels: Names of labels and their values.
        best: For each feature the numbers in `labels` of the values that it
            tells best, with the AUROC, the information in bits and the F1; the
            most bits first; none for features that are never active.
    """

    labels: list[tuple[str, str]]
    best: list[list[tuple[int, float, float, float]]]


def feature_labels(activations: FeatureActivations, site: FeatureSite) -> FeatureLabels:
    """What each feature tells best, over positions; no labels where nothing is known of them.

    AUROC is of the activation; F1 and information are at the threshold of the greatest F1.
    """
    active = activations.active
    known = _labels_of(activations, site)
    columns = {name for window in activations.windows for name in window.labels}
    labels, told = [], []
    for number, label in enumerate(known):
        n = torch.bincount(label.ids[label.ids >= 0], minlength=len(label.values))
        n_recordings = _n_recordings(label, activations)
        # What one recording alone has is told by whatever tells this recording.
        least = 2 if label.name in columns or int(n_recordings.max()) > 1 else 1
        for i, value in enumerate(label.values):
            if value != OTHER and n[i] >= LEAST_COUNT and n_recordings[i] >= least:
                labels.append(("sound" if label.name == "silence" else label.name, value))
                told.append((number, i))
    best: list[list[tuple[int, float, float, float]]] = [[] for _ in activations.chosen]
    if not labels:
        return FeatureLabels(labels, best)
    found = selectivity(active, known)
    best_of = [best_f1(active, label) for label in known]
    auroc = torch.stack([found[known[of].name].auroc[:, i] for of, i in told], dim=1)
    auroc = auroc.nan_to_num(nan=0.0)
    bits = torch.stack([best_of[of].information[:, i] for of, i in told], dim=1)
    f1 = torch.stack([best_of[of].f1[:, i] for of, i in told], dim=1)
    # Not by AUROC, which among hundreds of values is greatest for one of the rarest.
    order = bits.argsort(dim=1, descending=True, stable=True)[:, :N_BEST]
    for row in (active.n_active > 0).nonzero()[:, 0].tolist():
        best[row] = [
            (i, float(auroc[row, i]), float(bits[row, i]), float(f1[row, i]))
            for i in order[row].tolist()
        ]
    return FeatureLabels(labels, best)


def _labels_of(activations: FeatureActivations, site: FeatureSite) -> list[Labels]:
    """What is known about each position that counts, as labels that can be told.

    Of encoder positions: what `data.position_labels` knows, but for the place of a word in its
    text. Of tokens: the one that is read, the one that comes next, and the recording's columns.
    """
    known = position_labels(activations.windows, activations.n_positions)
    if site.stack == "decoder":
        timed = {name for window in activations.windows for name in window.spans}
        timed |= {"word", "silence"}
        known = [label for label in known if label.name not in timed]
        known = [*_token_labels(site, activations), *known]
    kept = (_frequent(label) for label in known if label.name != "position")
    return [label for label in kept if len(label.values) > 1]


def _token_labels(site: FeatureSite, activations: FeatureActivations) -> list[Labels]:
    read, following = [], []
    for tokens in activations.tokens:
        names = token_names(site.model, tokens)[activations.first :]
        read += names
        following += [*names[1:], "(end)"] if names else []
    return [Labels.of("token", read), Labels.of("next token", following)] if read else []


def _frequent(label: Labels) -> Labels:
    """A label with the values that are most frequent; the others become one."""
    counts = torch.bincount(label.ids[label.ids >= 0], minlength=len(label.values))
    if len(counts) <= MOST_VALUES:
        return label
    kept = counts.argsort(descending=True, stable=True)[:MOST_VALUES].sort().values
    place = torch.full((len(counts) + 1,), MOST_VALUES)
    place[kept] = torch.arange(MOST_VALUES)
    place[-1] = -1  # what has no value is -1, the last place
    return Labels(label.name, (*(label.values[i] for i in kept.tolist()), OTHER), place[label.ids])


def _n_recordings(label: Labels, activations: FeatureActivations) -> Tensor:
    """In how many recordings each value of a label is."""
    numbers = torch.tensor([window.recording for window in activations.windows])
    of_position = numbers.repeat_interleave(torch.tensor(activations.n_positions))
    known = label.ids >= 0
    pairs = torch.stack([label.ids[known], of_position[known]], dim=1).unique(dim=0)
    return torch.bincount(pairs[:, 0], minlength=len(label.values))
