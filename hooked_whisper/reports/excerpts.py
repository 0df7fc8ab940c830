"""Which stretches of sound stand in a page: each once, and no more than there is room for."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np

from hooked_whisper.config import FRAMES_PER_SECOND, POSITIONS_PER_SECOND, SAMPLE_RATE_HZ
from hooked_whisper.data.windows import AudioWindow, mel_of
from hooked_whisper.display import progress_bar
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.media import encode_mel
from hooked_whisper.speech.audio import encode_audio

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
