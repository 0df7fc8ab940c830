"""Which stretches of sound stand in a page: each once, and no more than there is room for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np

from hooked_whisper.config import FRAMES_PER_SECOND, SAMPLE_RATE_HZ
from hooked_whisper.data.windows import AudioWindow, mel_of
from hooked_whisper.display import progress_bar
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.media import encode_mel
from hooked_whisper.speech.audio import encode_audio

WHOLE_S = 10.0
"""Windows of at most this length are kept whole."""
BYTES_PER_S = 9_500
"""What a second takes in the file: sound and spectrogram, in base64."""
_GRID_HZ = 50
_JOIN_S = 0.5
"""Stretches that are no further apart become one."""


@dataclass(frozen=True)
class Part:
    """A stretch of a window.

    Args:
        window: The number of the window.
        start_s: Where it begins in it.
        end_s: Where it ends.
    """

    window: int
    start_s: float
    end_s: float


class Room:
    """Takes stretches of sound as long as there is room for them.

    Args:
        windows: What was listened to.
        seconds: How much sound there is room for.
    """

    def __init__(self, windows: Sequence[AudioWindow], seconds: float | int) -> None:
        self.windows = windows
        self.left_s = float(seconds)
        self._kept: dict[int, Any] = {}

    def take(self, window: int, start_s: float, end_s: float) -> bool:
        """Keep a stretch of a window; False where there is no room left for it."""
        heard = self.windows[window]
        n = ceil(heard.seconds * _GRID_HZ)
        kept = self._kept.get(window, np.zeros(n, dtype=bool))
        wanted = slice(max(0, floor(start_s * _GRID_HZ)), ceil(end_s * _GRID_HZ))
        if heard.seconds <= WHOLE_S:
            wanted = slice(0, n)
        new = (~kept[wanted]).sum() / _GRID_HZ
        if new > self.left_s:
            return False
        self.left_s -= new
        kept[wanted] = True
        self._kept[window] = kept
        return True

    def parts(self) -> list[Part]:
        """What is kept, as stretches without gaps."""
        found = []
        for window, kept in sorted(self._kept.items()):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], kept.astype(int), [0]])))
            runs: list[list[int]] = []
            for start, end in edges.reshape(-1, 2).tolist():
                if runs and start - runs[-1][1] <= _JOIN_S * _GRID_HZ:
                    runs[-1][1] = end
                else:
                    runs.append([start, end])
            length = self.windows[window].seconds
            found += [Part(window, a / _GRID_HZ, min(length, b / _GRID_HZ)) for a, b in runs]
        return found


def part_of(parts: Sequence[Part], window: int, start_s: float, end_s: float) -> int | None:
    """The number of the part that holds a stretch of a window; None where none does."""
    for number, each in enumerate(parts):
        if each.window == window and each.start_s <= start_s + 1e-9:
            if end_s <= each.end_s + 1e-9:
                return number
    return None


def encode_parts(
    model: HookedWhisper,
    windows: Sequence[AudioWindow],
    parts: Iterable[Part],
    progress: bool = True,
) -> list[dict[str, Any]]:
    """The parts as the page holds them: times, sound, and the model's own spectrogram."""
    found, known, mel = [], -1, None
    for part in progress_bar(list(parts), desc="sounds", unit="part", show=progress):
        if part.window != known:
            known, mel = part.window, mel_of(model, [windows[part.window]]).values[0]
        samples = windows[part.window].samples
        first, end = round(part.start_s * SAMPLE_RATE_HZ), round(part.end_s * SAMPLE_RATE_HZ)
        frames = slice(
            round(part.start_s * FRAMES_PER_SECOND), ceil(part.end_s * FRAMES_PER_SECOND)
        )
        assert mel is not None
        found.append(
            {
                "window": part.window,
                "start": round(part.start_s, 4),
                "end": round(part.end_s, 4),
                "audio": encode_audio(samples[first:end]),
                "mel": encode_mel(mel[:, frames]),
            }
        )
    return found
