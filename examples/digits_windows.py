"""Windows as the model's input: thinned, rendered, as log-mels.

Whole windows are expensive and mostly empty, so most training runs on *thinned* windows:
every encoder position near speech is kept, and of the stationary background (silence, even
noise, padding) only a random sample. A kept background position stands for several; the
logarithm of that number is added to its attention scores, so that attention sums over the
window as if nothing had been left out. A window with all 1,500 positions is the special
case in which every weight is 1.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from digits_data import N_POSITIONS, SAMPLES_PER_POSITION, WORDS, Window
from jaxtyping import Float, Int64
from torch import Tensor

BACKGROUND = len(WORDS)
"""Class of an encoder position in which no digit is spoken."""


def active_positions(window: Window, margin: int = 4) -> np.ndarray:
    """Which of the 1,500 positions a thinned window must keep: speech and every edge."""
    active = np.zeros(N_POSITIONS, dtype=bool)
    active[:2] = active[-2:] = True
    spans = [(piece.start, piece.end) for piece in window.pieces]
    spans += [(edge, edge) for edge in window.clip]
    for start, end in spans:
        first = max(0, start // SAMPLES_PER_POSITION - margin)
        active[first : end // SAMPLES_PER_POSITION + margin + 1] = True
    return active


def thin(window: Window, n_keep: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions to keep, and the logarithm of how many positions each stands for.

    The background inside the audio file and the padding outside it are sampled apart.
    """
    active = active_positions(window)
    position = np.arange(N_POSITIONS)
    inside = (position * SAMPLES_PER_POSITION >= window.clip[0]) & (
        position * SAMPLES_PER_POSITION < window.clip[1]
    )
    groups = [position[~active & inside], position[~active & ~inside]]
    budget = n_keep - int(active.sum())
    total = sum(map(len, groups))
    log_weights = np.zeros(N_POSITIONS, dtype=np.float32)
    keep = active.copy()
    for number, group in enumerate(groups):
        share = round(budget * len(group) / total) if total else 0
        share = min(max(share, 8), budget - 8) if 0 < len(group) < total else share
        share = min(max(share, 0), len(group))
        if number == 1:  # rounding must not change the length of the batch
            share = min(n_keep - int(keep.sum()), len(group))
        chosen = rng.choice(group, share, replace=False)
        keep[chosen] = True
        if share:
            log_weights[chosen] = np.log(len(group) / share)
    spare = n_keep - int(keep.sum())
    if spare > 0:
        keep[rng.choice(np.flatnonzero(~keep), spare, replace=False)] = True
    kept = np.flatnonzero(keep)
    return kept, log_weights[kept]


def joined_sample(sample: int, place: np.ndarray) -> int:
    """Where a sample of the window is in the joined audio; its position must be kept."""
    position, offset = divmod(sample, SAMPLES_PER_POSITION)
    return int(place[position]) + offset


def render(window: Window, positions: np.ndarray) -> np.ndarray:
    """The audio of the kept positions, joined; all 1,500 give the whole window."""
    place = np.searchsorted(positions, np.arange(N_POSITIONS + 1)) * SAMPLES_PER_POSITION
    audio = np.zeros(len(positions) * SAMPLES_PER_POSITION, dtype=np.float32)
    if window.noise is not None:
        samples, level = window.noise
        first, last = (joined_sample(edge, place) for edge in window.clip)
        audio[first:last] = samples[first:last] * np.float32(level)
    for piece in window.pieces:
        start = joined_sample(piece.start, place)
        audio[start : start + len(piece.samples)] += piece.samples
    return audio


@cache
def _mel_matrices() -> tuple[Tensor, Tensor]:
    """Windowed cosines and sines of the Fourier transform, and the mel filters for both."""
    from whisper.audio import mel_filters

    time, frequency = torch.arange(400.0), torch.arange(201.0)
    angle = torch.outer(time, frequency).double() % 400 * (2 * torch.pi / 400)
    waves = torch.cat([angle.cos(), angle.sin()], 1).float()
    filters = mel_filters("cpu", 80)
    return torch.hann_window(400)[:, None] * waves, torch.cat([filters, filters], 1).T


def log_mel(
    audio: Float[Tensor, "batch sample"], gain_db: Float[Tensor, "batch 1 mel"] | None = None
) -> Float[Tensor, "batch mel frame"]:
    """Whisper's log-mel spectrogram, each recording by its own maximum.

    A matrix product takes the place of the Fourier transform, because it is faster here.
    `gain_db` colours a recording as another microphone would.

    Source: `whisper.audio.log_mel_spectrogram`, which takes one maximum over a whole batch.
    """
    waves, filters = _mel_matrices()
    padded = torch.nn.functional.pad(audio[:, None], (200, 200), mode="reflect")[:, 0]
    frames = padded.unfold(-1, 400, 160)[:, :-1]
    power = (frames @ waves).square_() @ filters
    if gain_db is not None:
        power *= 10 ** (gain_db / 10)
    log_power = power.clamp_(min=1e-10).log10_()
    floor = log_power.amax((1, 2), keepdim=True) - 8.0
    return torch.maximum(log_power, floor).add_(4.0).div_(4.0).transpose(1, 2).contiguous()


@dataclass
class Batch:
    """Windows side by side, ready for the model; tokens are rows of the small vocabulary."""

    mel: Float[Tensor, "batch mel frame"]
    positions: Int64[Tensor, "batch pos"]
    log_weights: Float[Tensor, "batch pos"]
    position_digits: Int64[Tensor, "batch pos"]
    position_ordinals: Int64[Tensor, "batch pos"]
    """Which digit of the sequence is spoken, from 0 on; -1 in the background."""


def make_batch(
    windows: list[Window], n_keep: int, rng: np.random.Generator, augment: bool = True
) -> Batch:
    """Render windows at `n_keep` positions each, with a random colouring and masked bands."""
    kept, log_weights = zip(*(thin(window, n_keep, rng) for window in windows), strict=True)
    audio = np.stack([render(w, p) for w, p in zip(windows, kept, strict=True)])
    gain_db = None
    if augment:
        anchors = rng.normal(0, 2.5, (len(windows), 6))
        grid = np.linspace(0, 5, 80)
        gains = np.stack([np.interp(grid, np.arange(6), row) for row in anchors])
        gain_db = torch.from_numpy(gains.astype(np.float32))[:, None]
    mel = log_mel(torch.from_numpy(audio), gain_db)
    positions = np.stack(kept)
    frames = (positions[..., None] * 2 + np.arange(2)).reshape(len(windows), -1)
    labels = np.full(positions.shape, BACKGROUND)
    ordinals = np.full(positions.shape, -1)
    for row, window in enumerate(windows):
        if augment and rng.random() < 0.4:
            width, low = rng.integers(2, 12), rng.integers(0, 70)
            mel[row, low : low + width] = mel[row].amin()
        if window.zero_mel_after_clip:
            mel[row, :, torch.from_numpy(frames[row] >= window.clip[1] // 160)] = 0.0
        sample = positions[row] * SAMPLES_PER_POSITION + SAMPLES_PER_POSITION // 2
        for ordinal, piece in enumerate(window.pieces):
            spoken = (sample >= piece.start) & (sample < piece.end)
            labels[row, spoken] = piece.recording.digit
            ordinals[row, spoken] = ordinal
    return Batch(
        mel,
        torch.from_numpy(positions),
        torch.from_numpy(np.stack(log_weights)),
        torch.from_numpy(labels),
        torch.from_numpy(ordinals),
    )
