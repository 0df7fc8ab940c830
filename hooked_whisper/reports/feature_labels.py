"""Which value of which label each feature tells best."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hooked_whisper.analysis.selectivity import Labels, selectivity
from hooked_whisper.config import POSITION_S
from hooked_whisper.reports.feature_activations import FeatureActivations, token_names
from hooked_whisper.reports.sites import FeatureSite
from hooked_whisper.speech.labels import values_of_steps

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
            tells best, with the AUROC and the information in bits, best first;
            none for features that are never active.
    """

    labels: list[tuple[str, str]]
    best: list[list[tuple[int, float, float]]]


def feature_labels(activations: FeatureActivations, site: FeatureSite) -> FeatureLabels:
    """What each feature tells best, over positions; no labels where nothing is known of them.

    AUROC is of the activation, the information of whether a feature is on: a
    latent that is not 0, a neuron over 0.
    """
    active = activations.active
    known = position_labels(activations, site)
    labels, aurocs, bits = [], [], []
    if known:
        found = selectivity(active, known)
        on = found if site.kind == "latent" else selectivity(activations.positive(), known)
        for label in found.labels.values():
            for i, value in enumerate(label.values):
                if value != OTHER and label.n[i] >= LEAST_COUNT:
                    labels.append((label.name, value))
                    aurocs.append(label.auroc[:, i])
                    bits.append(on[label.name].information[:, i])
    best: list[list[tuple[int, float, float]]] = [[] for _ in activations.chosen]
    if labels:
        auroc, information = (
            torch.stack(aurocs, dim=1).nan_to_num(nan=0.0),
            torch.stack(bits, dim=1),
        )
        order = auroc.argsort(dim=1, descending=True, stable=True)[:, :N_BEST]
        for row in (active.n_active > 0).nonzero()[:, 0].tolist():
            best[row] = [
                (i, float(auroc[row, i]), float(information[row, i])) for i in order[row].tolist()
            ]
    return FeatureLabels(labels, best)


def position_labels(activations: FeatureActivations, site: FeatureSite) -> list[Labels]:
    """What is known about each position that counts, as labels that can be told.

    Of the recordings: their labels, where some but not all share a value. Of
    encoder positions: labels that change in time, and whether a word is said.
    Of tokens: the one that is read, and the one that comes next.
    """
    windows, lengths = activations.windows, activations.n_positions
    labels: list[Labels] = []
    if site.stack == "decoder":
        labels += _token_labels(site, activations)
    else:
        sized = list(zip(windows, lengths, strict=True))
        for name in dict.fromkeys(name for window in windows for name in window.spans):
            timed: list[str | None] = []
            for window, n in sized:
                timed += values_of_steps(window.spans.get(name, ()), n, POSITION_S)
            labels += _labels(name, timed)
        if any(window.words for window in windows):
            sound: list[str | None] = []
            for window, n in sized:
                words = values_of_steps(window.words, n, POSITION_S)
                # Where no word is known of a window, nobody knows whether one is said.
                said = ["speech" if word else "silence" for word in words]
                sound += said if window.words else [None] * n
            labels += _labels("sound", sound)
    timed_names = {label.name for label in labels}
    for name in dict.fromkeys(name for window in windows for name in window.labels):
        values = [window.labels.get(name) for window in windows]
        counts = Counter(value for value in values if value is not None)
        if len(counts) > 1 and max(counts.values()) > 1 and name not in timed_names:
            labels += _labels(
                name, [value for value, n in zip(values, lengths, strict=True) for _ in range(n)]
            )
    return labels


def _token_labels(site: FeatureSite, activations: FeatureActivations) -> list[Labels]:
    read, following = [], []
    for tokens in activations.tokens:
        names = token_names(site.model, tokens)[activations.first :]
        read += names
        following += [*names[1:], "(end)"] if names else []
    return [*_labels("token", read), *_labels("next token", following)]


def _labels(name: str, values: Sequence[Any]) -> list[Labels]:
    """A label of every position, none if all are the same; rare values become one."""
    texts = [None if value is None else str(value) for value in values]
    counts = Counter(text for text in texts if text is not None)
    if len(counts) < 2:
        return []
    if len(counts) > MOST_VALUES:
        kept = {text for text, _ in counts.most_common(MOST_VALUES)}
        texts = [text if text is None or text in kept else OTHER for text in texts]
    return [Labels.of(name, texts)]
