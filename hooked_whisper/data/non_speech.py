"""Sounds without speech, made from a seed: noise of several colours, tones, clicks, silence."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.data.recordings import Recording
from hooked_whisper.errors import InputError, check_count, check_number

SHORTEST_S = 1.0
"""But for windows of under two."""
_COLOURS = {"white": 0, "pink": -1, "brown": -2, "blue": 1, "violet": 2}
"""Slope of the power spectrum: power goes with frequency to this power."""

_Samples = np.ndarray
_Maker = Callable[[int, Generator], _Samples]


def non_speech_sounds(n: int = 6, *, seed: int = 0, max_s: float | int = 30.0) -> list[Recording]:
    """Recordings in which nobody speaks, of ten kinds, each with its label `kind`.

    Noise (white, pink, brown, blue, violet), tones and chirps (`tone`, `chirp`), mains hum with
    its harmonics and a little noise (`hum`), clicks at random times (`clicks`), and zeros or
    noise at the last bit (`silence`). Lengths and levels are drawn: 1 s to `max_s`, -50 to
    -5 dB of full scale.

    Args:
        n: Of each kind.
        seed: The same seed makes the same sounds.
        max_s: The longest, in seconds.

    Raises:
        InputError: A number that is none of sounds, or of seconds.

    >>> [len(non_speech_sounds(2)), non_speech_sounds(1, seed=3)[0].labels["kind"]]
    [20, 'white']
    """
    check_count("n", n, 1, InputError)
    check_count("seed", seed, 0, InputError)
    check_number("max_s", max_s, InputError, 0.1)
    found = []
    for number, (kind, make) in enumerate(_MAKERS.items()):
        for i in range(n):
            rng = np.random.default_rng([seed, number, i])
            seconds = float(rng.uniform(min(SHORTEST_S, max_s / 2), max_s))
            samples = make(max(1, int(seconds * SAMPLE_RATE_HZ)), rng).astype(np.float32)
            audio = (samples, SAMPLE_RATE_HZ)
            found.append(Recording(f"{kind}-{seed}-{i}", audio, {"kind": kind}))
    return found


def _level(rng: Generator) -> float:
    return float(10 ** (rng.uniform(-50, -5) / 20))


def _noise(slope: int) -> _Maker:
    def make(n: int, rng: Generator) -> _Samples:
        spectrum = np.fft.rfft(rng.standard_normal(n))
        frequencies = np.fft.rfftfreq(n, 1 / SAMPLE_RATE_HZ)
        frequencies[0] = frequencies[min(1, len(frequencies) - 1)]
        noise = np.fft.irfft(spectrum * frequencies ** (slope / 2), n)
        return noise / np.abs(noise).max() * _level(rng)

    return make


def _times(n: int) -> _Samples:
    return np.arange(n) / SAMPLE_RATE_HZ


def _tone(n: int, rng: Generator) -> _Samples:
    return np.sin(2 * np.pi * rng.uniform(100, 4000) * _times(n)) * _level(rng)


def _chirp(n: int, rng: Generator) -> _Samples:
    low, high = rng.uniform(100, 6000, 2)
    t = _times(n)
    return np.sin(2 * np.pi * (low * t + (high - low) / 2 * t**2 / t.max())) * _level(rng)


def _hum(n: int, rng: Generator) -> _Samples:
    mains_hz, t = rng.choice([50, 60]), _times(n)
    waves = (np.sin(2 * np.pi * mains_hz * k * t + rng.uniform(0, 6)) / k for k in range(1, 6))
    return np.sum(list(waves), axis=0) / 2 * _level(rng) + 1e-4 * rng.standard_normal(n)


def _clicks(n: int, rng: Generator) -> _Samples:
    samples = np.zeros(n)
    n_clicks = 1 + rng.poisson(n / SAMPLE_RATE_HZ * rng.uniform(0.3, 5))
    samples[rng.integers(0, n, n_clicks)] = rng.uniform(0.1, 1, n_clicks)
    return samples


def _silence(n: int, rng: Generator) -> _Samples:
    return rng.choice([0.0, 3e-5]) * rng.standard_normal(n)


_MAKERS: dict[str, _Maker] = {
    **{name: _noise(slope) for name, slope in _COLOURS.items()},
    "tone": _tone,
    "chirp": _chirp,
    "hum": _hum,
    "clicks": _clicks,
    "silence": _silence,
}
