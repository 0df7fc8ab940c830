"""Training data for the digits model: sequences of spoken digits, drawn at random."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SPLITS = {"train": range(10, 50), "validation": range(5, 10)}
SPEEDS = (0.88, 0.94, 1.0, 1.06, 1.12)

RATE_HZ = 16_000
N_POSITIONS = 1500
SAMPLES_PER_POSITION = 320
WINDOW_SAMPLES = N_POSITIONS * SAMPLES_PER_POSITION


@dataclass(frozen=True)
class Recording:
    """One spoken digit at 16 kHz, as it is and at the other speeds."""

    speaker: str
    digit: int
    index: int
    at_speed: tuple[np.ndarray, ...]

    @property
    def file_name(self) -> str:
        """The file's name in the Free Spoken Digit Dataset."""
        return f"{self.digit}_{self.speaker}_{self.index}.wav"


@dataclass
class Piece:
    """A recording where it is heard in the window."""

    recording: Recording
    start: int
    samples: np.ndarray

    @property
    def end(self) -> int:
        """First sample after the recording."""
        return self.start + len(self.samples)


@dataclass
class Window:
    """What is heard in one 30 s window, before it is rendered.

    `clip` holds the samples from which to which the audio file runs. Outside it the window is
    padded: with silence, as `to_mel` does, or with zeros in the mel, as `transcribe` does.
    """

    pieces: list[Piece] = field(default_factory=list)
    noise: tuple[np.ndarray, float] | None = None
    clip: tuple[int, int] = (0, WINDOW_SAMPLES)
    zero_mel_after_clip: bool = False

    @property
    def digits(self) -> list[int]:
        """The digits in the order in which they are spoken."""
        return [piece.recording.digit for piece in self.pieces]

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(WORDS[digit] for digit in self.digits)

    @property
    def end_s(self) -> float:
        """End of the speech, in seconds from the window's start."""
        return max((piece.end for piece in self.pieces), default=0) / RATE_HZ


Bank = dict[tuple[str, int], list[Recording]]


def load_bank(folder: Path, indices: Iterable[int], speeds: tuple[float, ...] = SPEEDS) -> Bank:
    """The recordings of a split by (speaker, digit), resampled from 8 to 16 kHz."""
    import soundfile
    import soxr

    bank: Bank = {}
    for speaker in SPEAKERS:
        for digit in range(10):
            for index in indices:
                path = folder / f"{digit}_{speaker}_{index}.wav"
                samples, rate_hz = soundfile.read(path, dtype="float32")
                resampled = tuple(
                    soxr.resample(samples, rate_hz * speed, RATE_HZ).astype(np.float32)
                    for speed in speeds
                )
                recording = Recording(speaker, digit, index, resampled)
                bank.setdefault((speaker, digit), []).append(recording)
    return bank


def noise_pool(rng: np.random.Generator, n_clips: int = 48) -> list[np.ndarray]:
    """Steady noises of 32 s and unit loudness: white to brown, some band-limited, some humming."""
    n_samples = 32 * RATE_HZ
    frequency = np.fft.rfftfreq(n_samples, 1 / RATE_HZ)
    pool = []
    for _ in range(n_clips):
        spectrum = np.fft.rfft(rng.standard_normal(n_samples))
        spectrum /= np.maximum(frequency, 20.0) ** rng.uniform(0.0, 1.2)
        if rng.random() < 0.4:
            spectrum[frequency > rng.choice([3400.0, 4000.0, 6000.0])] = 0
        if rng.random() < 0.2:
            spectrum[frequency < rng.uniform(80.0, 400.0)] = 0
        samples = np.fft.irfft(spectrum)
        samples /= samples.std()
        if rng.random() < 0.25:
            time_s = np.arange(n_samples) / RATE_HZ
            mains_hz = rng.choice([50.0, 60.0, 100.0, 120.0, rng.uniform(200.0, 1500.0)])
            for harmonic in range(1, rng.integers(2, 6)):
                samples += rng.uniform(0.2, 1.5) * np.sin(
                    2 * np.pi * mains_hz * harmonic * time_s + rng.uniform(0, 2 * np.pi)
                )
        pool.append((samples / samples.std()).astype(np.float32))
    return pool


def draw_pauses(rng: np.random.Generator, n_gaps: int) -> np.ndarray:
    """Samples of silence between digits: mostly short, at times up to several seconds."""
    style = rng.random()
    if style < 0.25:
        pauses_s = rng.uniform(0.02, 0.2, n_gaps)
    elif style < 0.75:
        pauses_s = rng.uniform(0.05, 0.7, n_gaps)
    elif style < 0.92:
        pauses_s = rng.uniform(0.3, 2.0, n_gaps)
    else:
        pauses_s = rng.uniform(0.5, 5.0, n_gaps)
    return (pauses_s * RATE_HZ).astype(int)


def draw_clip(rng: np.random.Generator, start: int, end: int) -> tuple[tuple[int, int], bool]:
    """Where the audio file runs around speech from `start` to `end`, and the kind of padding."""
    kind = rng.random()
    if kind < 0.4:
        return (0, WINDOW_SAMPLES), False
    first = 0 if kind < 0.85 else max(0, start - int(rng.uniform(0, RATE_HZ)))
    tail = rng.uniform(0.0, 0.1) if rng.random() < 0.3 else rng.uniform(0.0, 1.5)
    last = min(WINDOW_SAMPLES, end + int(tail * RATE_HZ))
    return (first, last), first == 0 and bool(rng.random() < 0.65)


def draw_noise(
    rng: np.random.Generator, pool: list[np.ndarray], speech_rms: float | None
) -> tuple[np.ndarray, float]:
    """A stretch of noise, and how loud: 3 to 42 dB under the speech, or anyhow without speech."""
    clip = pool[rng.integers(len(pool))]
    offset = rng.integers(len(clip) - WINDOW_SAMPLES)
    if speech_rms is None:
        level = 10 ** rng.uniform(-5.0, -0.7)
    else:
        level = speech_rms * 10 ** (-rng.triangular(3.0, 22.0, 42.0) / 20)
    return clip[offset : offset + WINDOW_SAMPLES], level


def draw_window(
    rng: np.random.Generator,
    bank: Bank,
    pool: list[np.ndarray],
    n_digits: int | None = None,
    augment: bool = True,
    speaker_chances: tuple[float, ...] | None = None,
) -> Window:
    """One window at random: 1 to 5 digits of one speaker (0: no speech) anywhere in the 30 s."""
    if n_digits is None:
        n_digits = int(rng.choice(6, p=[0.07, 0.15, 0.16, 0.18, 0.21, 0.23]))
    if n_digits == 0:
        length = WINDOW_SAMPLES if rng.random() < 0.5 else int(rng.uniform(0.1, 30) * RATE_HZ)
        noise = draw_noise(rng, pool, None) if rng.random() < 0.8 else None
        return Window([], noise, (0, length), bool(rng.random() < 0.7))

    if speaker_chances is None:
        speaker = SPEAKERS[rng.integers(len(SPEAKERS))]
    else:
        speaker = SPEAKERS[rng.choice(len(SPEAKERS), p=speaker_chances)]
    digits = rng.integers(10, size=n_digits)
    if rng.random() < 0.1:  # the same digit again: the hardest thing to count
        digits[rng.integers(n_digits) :] = digits[0]
    chosen = []
    for digit in digits:
        recordings = bank[speaker, int(digit)]
        recording = recordings[rng.integers(len(recordings))]
        speed = rng.integers(len(recording.at_speed)) if augment else SPEEDS.index(1.0)
        samples = recording.at_speed[speed if len(recording.at_speed) > 1 else 0]
        chosen.append((recording, samples * np.float32(10 ** (rng.uniform(-6, 6) / 20))))
    loudness = 10 ** (rng.uniform(-14, 20) / 20)
    peak = max(float(np.abs(samples).max()) for _, samples in chosen)
    loudness = min(loudness, 0.99 / peak)
    pauses = draw_pauses(rng, n_digits)
    n_speech = sum(len(samples) for _, samples in chosen)
    room = WINDOW_SAMPLES - n_speech - pauses[1:].sum()
    if room < 0:
        pauses //= 8
        room = WINDOW_SAMPLES - n_speech - pauses[1:].sum()
    where = rng.random()
    spread = rng.uniform(0, room) if where < 0.6 else rng.uniform(0, min(room, 1.5 * RATE_HZ))
    at = int(room - spread if where > 0.9 else spread)
    pieces = []
    for (recording, samples), pause in zip(chosen, [*pauses[1:], 0], strict=True):
        pieces.append(Piece(recording, at, samples * np.float32(loudness)))
        at = pieces[-1].end + int(pause)
    rms = float(np.sqrt(np.mean(np.concatenate([p.samples for p in pieces]) ** 2)))
    noise = draw_noise(rng, pool, rms) if rng.random() < 0.6 else None
    clip, zero_mel = draw_clip(rng, pieces[0].start, pieces[-1].end)
    return Window(pieces, noise, clip, zero_mel)
