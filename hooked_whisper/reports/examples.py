"""Which moments stand for a feature: its greatest, and some from all of its range."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hooked_whisper.reports.feature_activations import POSITION_S, Activations, Measured

LEAST_APART_S = 0.2
"""Two moments of a feature in one recording are at least so far apart."""
N_BINS = 24
"""Bins of the histogram of a feature's values."""


@dataclass(frozen=True)
class Moment:
    """A position at which a feature is active.

    Args:
        window: The number of the window.
        position: Encoder position or token in the window.
        value: How active the feature is there.
        low: For a sample of the range, where its interval begins; None for the greatest.
        high: Where it ends.
        share: Share of the active positions that lie in it.
    """

    window: int
    position: int
    value: float
    low: float | None = None
    high: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Range:
    """The values of a feature: from where to where, and how many in each of equal parts."""

    low: float
    high: float
    counts: tuple[int, ...]


def moments_of(
    measured: Measured, active: Activations, n_top: int, n_range: int, seed: int = 0
) -> tuple[list[Moment], Range]:
    """The moments of one chosen feature, greatest first, then one from each part of its range.

    The greatest come from recordings of their own as long as there are such,
    the earlier one of equals. The range, from 0 (or a neuron's least value)
    to the peak, is cut into `n_range` intervals of equal width; one position
    is drawn from each that has any, and none that is shown already.

    Args:
        measured: What was listened to.
        active: The feature's activations.
        n_top: Of the greatest, at most.
        n_range: Of the range, at most.
        seed: Of the draw.
    """
    vectors, values = active
    if not len(values):
        return [], Range(0.0, 0.0, ())
    offsets = measured.offsets.numpy()
    windows = np.searchsorted(offsets, vectors, side="right") - 1
    positions = vectors - offsets[windows] + measured.first
    recordings = np.array([each.recording for each in measured.windows])[windows]
    order = np.lexsort((vectors, -values))
    order = order[values[order] > 0]
    taken = _greatest(order, recordings, windows, positions, n_top)
    top = [_moment(i, windows, positions, values) for i in taken]
    low, high = min(0.0, float(values.min())), float(values.max())
    counts, _ = np.histogram(values, bins=N_BINS, range=(low, high) if high > low else None)
    edges = np.linspace(low, high, n_range + 1)
    generator = np.random.default_rng(seed)
    rest = []
    free = np.ones(len(values), dtype=bool)
    free[taken] = False
    for a, b in zip(edges[:-1][::-1], edges[1:][::-1], strict=True):
        inside = (values > a) & (values <= b) if a > low else (values >= a) & (values <= b)
        drawn = np.flatnonzero(inside & free)
        if len(drawn):
            i = int(generator.choice(drawn))
            share = float(inside.mean())
            rest.append(_moment(i, windows, positions, values, float(a), float(b), share))
    return [*top, *rest], Range(low, high, tuple(counts.tolist()))


def _greatest(order: Any, recordings: Any, windows: Any, positions: Any, n: int) -> list[int]:
    """The first entries of an order, from as many recordings as there are, then apart in time."""
    _, first = np.unique(recordings[order], return_index=True)
    taken = order[np.sort(first)[:n]].tolist()
    if len(taken) == n:
        return taken
    apart = round(LEAST_APART_S / POSITION_S)
    for i in order.tolist():
        if len(taken) == n:
            break
        if all(
            windows[i] != windows[j] or abs(int(positions[i]) - int(positions[j])) >= apart
            for j in taken
        ):
            taken.append(i)
    return sorted(taken, key=order.tolist().index)


def _moment(i: int, windows: Any, positions: Any, values: Any, *interval: float) -> Moment:
    return Moment(int(windows[i]), int(positions[i]), float(values[i]), *interval)


def curve(measured: Measured, active: Activations, window: int, first: int, end: int) -> Any:
    """A feature's activations at positions `first` to `end` of a window, zeros included."""
    vectors, values = active
    start = int(measured.offsets[window]) - measured.first
    a, b = np.searchsorted(vectors, [start + first, start + end])
    found = np.zeros(end - first, dtype=np.float32)
    found[vectors[a:b] - start - first] = values[a:b]
    return found


def around(moment: Moment, measured: Measured, seconds: float) -> tuple[float, float]:
    """The time of an encoder moment and so many seconds on each side, within its window."""
    middle = (moment.position + 0.5) * POSITION_S
    length = measured.windows[moment.window].seconds
    return max(0.0, middle - seconds), min(length, middle + seconds)


def words_at(moments: Sequence[Moment], measured: Measured) -> list[str]:
    """The words that are said at encoder moments, where one is known."""
    found = []
    for moment in moments:
        middle = (moment.position + 0.5) * POSITION_S
        for start, end, word in measured.windows[moment.window].words or ():
            if start <= middle < end:
                found.append(word)
                break
    return found
