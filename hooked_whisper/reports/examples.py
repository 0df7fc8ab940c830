"""Which examples stand for a feature, and the excerpts of sound around them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
import torch

from hooked_whisper.analysis.top_activations import greatest
from hooked_whisper.config import (
    FRAMES_PER_SECOND,
    POSITION_S,
    POSITIONS_PER_SECOND,
    SAMPLE_RATE_HZ,
)
from hooked_whisper.data.windows import AudioWindow, mel_of
from hooked_whisper.display import progress_bar
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.feature_activations import FeatureActivations, OneFeature
from hooked_whisper.reports.html import encode_mel
from hooked_whisper.speech.audio import encode_audio

LEAST_APART_S = 0.2
"""Two of the greatest examples in one window are at least so far apart."""
N_BINS = 24
"""Bins of the histogram of a feature's values."""
WHOLE_S = 10.0
"""Windows of at most this length are kept whole."""
BYTES_PER_S = 9_500
"""What a second takes in the file: sound and spectrogram, in base64."""
_JOIN_S = 0.5
"""Stretches that are no further apart become one."""


@dataclass(frozen=True)
class Excerpt:
    """A stretch of a window.

    Args:
        window: The number of the window.
        start_s: Where it begins in it.
        end_s: Where it ends.
    """

    window: int
    start_s: float
    end_s: float

    def holds(self, other: "Excerpt") -> bool:
        """Whether another one lies in it."""
        return (
            self.window == other.window
            and self.start_s <= other.start_s + 1e-9
            and other.end_s <= self.end_s + 1e-9
        )


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


class ExcerptBudget:
    """Takes excerpts as long as there is room for their sound.

    Args:
        windows: What the excerpts are of.
        seconds: How much sound there is room for.
    """

    def __init__(self, windows: Sequence[AudioWindow], seconds: float | int) -> None:
        self.windows = windows
        self.left_s = float(seconds)
        self._kept: dict[int, Any] = {}

    def take(self, excerpt: Excerpt) -> bool:
        """Keep the sound of an excerpt; False where there is no room left for it, or no sound."""
        window = self.windows[excerpt.window]
        if window.samples is None:  # it came as a mel
            return False
        n = ceil(window.seconds * POSITIONS_PER_SECOND)
        kept = self._kept.get(excerpt.window, np.zeros(n, dtype=bool))
        start = max(0, floor(excerpt.start_s * POSITIONS_PER_SECOND))
        wanted = slice(start, ceil(excerpt.end_s * POSITIONS_PER_SECOND))
        if start >= n:
            return False
        if window.seconds <= WHOLE_S:
            wanted = slice(0, n)
        new_s = (~kept[wanted]).sum() / POSITIONS_PER_SECOND
        if new_s > self.left_s:
            return False
        self.left_s -= new_s
        kept[wanted] = True
        self._kept[excerpt.window] = kept
        return True

    def excerpts(self) -> list[Excerpt]:
        """What is kept, as excerpts without gaps, in order."""
        found = []
        for number, kept in sorted(self._kept.items()):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], kept.astype(int), [0]])))
            runs: list[list[int]] = []
            for start, end in edges.reshape(-1, 2).tolist():
                if runs and start - runs[-1][1] <= _JOIN_S * POSITIONS_PER_SECOND:
                    runs[-1][1] = end
                else:
                    runs.append([start, end])
            length_s = self.windows[number].seconds
            for start, end in runs:
                end_s = min(length_s, end / POSITIONS_PER_SECOND)
                found.append(Excerpt(number, start / POSITIONS_PER_SECOND, end_s))
        return found


def encode_excerpts(
    model: HookedWhisper,
    windows: Sequence[AudioWindow],
    excerpts: Sequence[Excerpt],
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Excerpts as the page holds them: times, sound, and the model's own spectrogram."""
    found = []
    number, mel = -1, None
    for excerpt in progress_bar(excerpts, desc="sounds", unit="part", show=progress):
        window = windows[excerpt.window]
        assert window.samples is not None
        if mel is None or excerpt.window != number:
            number, mel = excerpt.window, mel_of(model, [window]).values[0]
        start_s, end_s = excerpt.start_s, excerpt.end_s
        samples = slice(round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ))
        frames = slice(round(start_s * FRAMES_PER_SECOND), ceil(end_s * FRAMES_PER_SECOND))
        found.append(
            {
                "window": excerpt.window,
                "start": round(start_s, 4),
                "end": round(end_s, 4),
                "audio": encode_audio(window.samples[samples]),
                "mel": encode_mel(mel[:, frames]),
            }
        )
    return found
