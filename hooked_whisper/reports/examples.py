"""Which examples stand for a feature: where it is most active, and some from all of its range."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hooked_whisper.analysis.top_activations import greatest
from hooked_whisper.config import POSITION_S
from hooked_whisper.reports.excerpts import Excerpt
from hooked_whisper.reports.feature_activations import FeatureActivations, OneFeature

LEAST_APART_S = 0.2
"""Two of the greatest examples in one window are at least so far apart."""
N_BINS = 24
"""Bins of the histogram of a feature's values."""


@dataclass(frozen=True)
class FeatureExample:
    """A position at which a feature is active.

    Args:
        excerpt: What is played and drawn of it.
        position: Encoder position or token in the excerpt's window.
        value: How active the feature is there.
        interval: For a sample of the range, where its part of the range begins and
            ends, and the share of the active positions in it; () for the greatest.
        part: The number of the page's sound that holds the excerpt; -1 for none.
    """

    excerpt: Excerpt
    position: int
    value: float
    interval: tuple[float, ...] = ()
    part: int = -1

    @property
    def window(self) -> int:
        """The number of the window."""
        return self.excerpt.window


@dataclass(frozen=True)
class Range:
    """The values of a feature: from where to where, and how many in each of equal parts."""

    low: float
    high: float
    counts: tuple[int, ...]


def feature_examples(
    activations: FeatureActivations,
    feature: OneFeature,
    excerpt_of: Callable[[int, int], Excerpt],
    *,
    n_top: int,
    n_range: int,
    seed: int = 0,
) -> tuple[list[FeatureExample], Range]:
    """The examples of one feature, greatest first, then one from each part of its range.

    The greatest come from recordings of their own as long as there are such,
    the earlier one of equals. The range, from 0 (or a neuron's least value)
    to the peak, is cut into `n_range` intervals of equal width; one position
    is drawn from each that has any, and none that is shown already.

    Args:
        activations: What the feature is one of.
        feature: Where it is active.
        excerpt_of: The excerpt around a position of a window.
        n_top: Of the greatest, at most.
        n_range: Of the range, at most.
        seed: Of the draw.
    """
    vectors, values = feature
    if not len(values):
        return [], Range(0.0, 0.0, ())
    offsets = activations.offsets.numpy()
    windows = np.searchsorted(offsets, vectors, side="right") - 1
    positions = vectors - offsets[windows] + activations.first
    recordings = np.array([window.recording for window in activations.windows])[windows]

    def example(i: int, *interval: float) -> FeatureExample:
        excerpt = excerpt_of(int(windows[i]), int(positions[i]))
        return FeatureExample(excerpt, int(positions[i]), float(values[i]), interval)

    top = greatest(
        torch.from_numpy(np.where(values > 0, values, -np.inf)),
        torch.from_numpy(windows),
        torch.from_numpy(positions),
        n_top,
        round(LEAST_APART_S / POSITION_S),
        torch.from_numpy(recordings),
    )
    examples = [example(i) for i in top]
    low, high = min(0.0, float(values.min())), float(values.max())
    counts, _ = np.histogram(values, bins=N_BINS, range=(low, high) if high > low else None)
    edges = np.linspace(low, high, n_range + 1)
    generator = np.random.default_rng(seed)
    free = np.ones(len(values), dtype=bool)
    free[top] = False
    for a, b in zip(edges[:-1][::-1], edges[1:][::-1], strict=True):
        inside = (values > a) & (values <= b) if a > low else (values >= a) & (values <= b)
        drawn = np.flatnonzero(inside & free)
        if len(drawn):
            i = int(generator.choice(drawn))
            examples.append(example(i, float(a), float(b), float(inside.mean())))
    return examples, Range(low, high, tuple(counts.tolist()))
