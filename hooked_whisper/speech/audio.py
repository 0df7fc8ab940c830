"""Recordings as Whisper hears them, mono float32 at 16 kHz, and as browsers play them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.display import data_uri
from hooked_whisper.errors import AudioError, AudioLengthError, AudioRateError, InputError, describe
from hooked_whisper.speech.files import read_audio, shorten, shown

MIN_SAMPLES = 400
"""Samples of one window of Whisper's Fourier transform: 25 ms at 16 kHz."""
MIN_RATE_HZ = 1_000
MAX_RATE_HZ = 1_000_000
MAX_AMPLITUDE = 256.0
"""Full scale is 1; far above it, the samples are integers that were only cast to float."""

_KBPS = (8, 40, 160)
"""Bit rates of MP3 at 16 kHz: the lowest, the one used here, the highest."""


def load_audio(source: Any, rate_hz: Any = None) -> Float[Tensor, "sample"]:
    """One recording as mono float32 samples at 16 kHz, full scale 1.

    Channels are averaged, then the rate is converted by soxr (quality "HQ").
    Mono at 16 kHz passes unchanged. openai-whisper's own `load_audio` runs
    the ffmpeg program instead and rounds to 16 bits; this one needs neither.

    Args:
        source: A path to a file that libsndfile reads (WAV, FLAC, Ogg, MP3,
            AIFF, ...) or PyAV, which comes with `hooked-whisper[audio]` (M4A,
            AAC, WebM, MP4 and other videos' sound); or a NumPy array or
            tensor: `[sample]`, or `[channel, sample]` with one or two
            channels. Floats have full scale 1; int16 and int32 are divided by
            theirs. A pair `(samples, rate_hz)` is taken too.
        rate_hz: Samples per second; arrays and tensors need it. A file knows
            its own, and any other is an error.

    Returns:
        Samples on the CPU, detached from any graph.

    Raises:
        AudioFileError: No such file, a folder, no audio, cut off, or of a
            kind that needs PyAV, which is not installed.
        AudioRateError: The rate is missing, impossible, or not the file's.
        AudioLengthError: Less than 25 ms.
        AudioError: No samples, NaN or infinity, or an array that is no recording.

    >>> load_audio(np.zeros((2, 8000), np.int16), rate_hz=8000).shape
    torch.Size([16000])
    """
    if isinstance(source, tuple):
        source, rate_hz = _split_pair(source, rate_hz)
    if isinstance(source, str | Path):
        name = shown(source)
        samples, rate = read_audio(Path(source))
        _check_file_rate(name, rate, rate_hz)
    else:
        samples, rate = _as_channels(source), _check_rate(rate_hz)
        name = "audio"
    try:
        return torch.from_numpy(_to_mono_16khz(samples, rate, name))
    except MemoryError as error:
        raise AudioError(
            f"{name} is {samples.shape[1] / rate / 3600:.1f} h long, which does not fit into "
            "memory at 16 kHz. Cut it into pieces first."
        ) from error


def _split_pair(pair: tuple[Any, ...], rate_hz: Any) -> tuple[Any, Any]:
    """The samples and the rate of a pair, which no second rate may contradict."""
    if len(pair) != 2:
        raise AudioError(
            f"a tuple of {len(pair)} is no audio; a pair (samples, rate_hz) is. "
            "For several recordings pass a list: model.to_mel([first, second])."
        )
    samples, rate = pair
    if rate_hz is not None and rate_hz is not rate and _check_rate(rate_hz) != _check_rate(rate):
        raise AudioRateError(
            f"the pair says {shorten(rate)} Hz and rate_hz says {shorten(rate_hz)}; pass one."
        )
    return samples, rate


def _check_rate(rate_hz: Any) -> float:
    """The sampling rate as a number, or an error that says what a rate is."""
    if rate_hz is None:
        raise AudioRateError(
            "an array does not know its sampling rate. Pass it: model.to_mel(audio, rate_hz=16000)."
        )
    is_number = isinstance(rate_hz, int | float | np.integer | np.floating)
    if not is_number or isinstance(rate_hz, bool):
        raise AudioRateError(
            f"rate_hz is {shorten(rate_hz)}; it must be a number of samples per second."
        )
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:  # NaN too
        raise AudioRateError(
            f"rate_hz is {shorten(rate_hz)}; sampling rates from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz "
            "are allowed (not kHz)."
        )
    return float(rate_hz)


def _check_file_rate(name: str, rate: float, rate_hz: Any) -> None:
    """Refuse a rate that is none, and another than the file's."""
    _check_rate(rate)
    if rate_hz is not None and _check_rate(rate_hz) != rate:
        raise AudioRateError(
            f"{name} says {rate:g} Hz and rate_hz says {rate_hz}. Leave rate_hz out: the "
            "file's own rate is used."
        )


def _as_channels(source: Any) -> np.ndarray:
    """Samples in memory as floats `[channel sample]`, full scale 1."""
    if isinstance(source, Tensor):
        samples = _to_numpy(source)
    elif isinstance(source, np.ndarray):
        samples = source
    else:
        raise AudioError(
            f"{describe(source)} is no audio; a path, a NumPy array or a tensor is, and a list "
            "of them is a batch: model.to_mel(samples, rate_hz=16000)."
        )
    if samples.ndim not in (1, 2):
        raise AudioError(
            f"audio has shape {samples.shape}; it must be [sample] or [channel, sample]. "
            "For several recordings pass a list: model.to_mel([first, second], rate_hz=...)."
        )
    if samples.size == 0:
        raise AudioError(f"audio is empty: its shape is {samples.shape}.")
    if samples.ndim == 2 and samples.shape[0] > 2:
        hint = (
            "Its axes look like [sample, channel]: pass audio.T."
            if samples.shape[1] <= 2
            else "For several recordings pass a list: model.to_mel(list(audio), rate_hz=...)."
        )
        raise AudioError(
            f"audio has shape {samples.shape}; two axes are [channel, sample] with one or two "
            f"channels. {hint}"
        )
    return np.atleast_2d(_scale(samples))


def _to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor's values on the CPU, as an array."""
    if tensor.dtype is torch.bfloat16:  # which NumPy lacks
        tensor = tensor.float()
    try:
        return tensor.numpy(force=True)
    except (RuntimeError, TypeError) as error:  # meta, sparse, quantized, ...
        raise AudioError(
            f"audio is a tensor of {tensor.dtype} on {tensor.device} ({tensor.layout}) whose "
            "values cannot be read; pass a dense float tensor."
        ) from error


def _scale(samples: np.ndarray) -> np.ndarray:
    """Samples of any accepted dtype as float32 with full scale 1."""
    if samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):
        # In float64: exact for int16, and rounded once for int32.
        full_scale = -float(np.iinfo(samples.dtype).min)
        return (samples / full_scale).astype(np.float32)
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            f"audio has dtype {samples.dtype}; floats with full scale 1, int16 and int32 are "
            "allowed. Scale other samples to [-1, 1] first."
        )
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
        return samples.astype(np.float32, copy=False)


def _to_mono_16khz(samples: np.ndarray, rate_hz: float, name: str) -> np.ndarray:
    """Checked `[channel sample]` floats as one channel at 16 kHz."""
    if samples.size == 0:
        raise AudioError(f"{name} is empty: it has no samples.")
    finite = np.isfinite(samples)
    if not finite.all():
        channel, sample = np.argwhere(~finite)[0]
        raise AudioError(
            f"{name} has {int((~finite).sum())} samples that are NaN or infinite, the first at "
            f"{sample / rate_hz:.3f} s ({samples[channel, sample]}). Every sample must be finite."
        )
    peak = float(np.abs(samples).max())
    if peak > MAX_AMPLITUDE:
        raise AudioError(
            f"{name} reaches {peak:g}; full scale of float samples is 1. If these were 16-bit "
            "integers, divide them by 32768."
        )
    mono = samples[0] if len(samples) == 1 else samples.mean(axis=0, dtype=np.float32)
    mono = np.array(mono, order="C")  # a copy: the result shares no memory with the caller's
    if rate_hz != SAMPLE_RATE_HZ:
        import soxr

        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    if len(mono) < MIN_SAMPLES:
        raise AudioLengthError(
            f"{name} is {samples.shape[1] / rate_hz * 1000:.4g} ms long; at least "
            f"{MIN_SAMPLES / SAMPLE_RATE_HZ * 1000:g} ms are needed. Is its rate of {rate_hz:g} Hz "
            "right?"
        )
    return mono


def encode_audio(samples: Float[Tensor, " sample"], rate_hz: int = SAMPLE_RATE_HZ) -> str:
    """A recording as a data URI that every browser plays: MP3, 5 kB a second.

    MP3 is what Chromium, Firefox and Safari all play; Ogg needs a Safari of
    2025. The bit rate is constant, so that a browser finds a time in it, and
    high enough for the frame in which the encoder writes down its own delay:
    without that, all would sound 0.07 s late.

    Args:
        samples: Mono, full scale 1; louder ones are clipped.
        rate_hz: Samples per second; 16,000.

    Raises:
        InputError: No samples, or another rate.
    """
    import soundfile

    if not len(samples):
        raise InputError("there are no samples to write down as sound.")
    if rate_hz != SAMPLE_RATE_HZ:
        raise InputError(
            f"rate_hz is {rate_hz}; pages hold sound at {SAMPLE_RATE_HZ} Hz. Read it with "
            "load_audio, which converts it."
        )
    low, kbps, high = _KBPS
    file = io.BytesIO()
    soundfile.write(
        file,
        samples.detach().float().cpu().clamp(-1, 1).numpy(),
        rate_hz,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=(high - kbps) / (high - low),  # 0 is the highest rate, 1 the lowest
    )
    return data_uri("audio/mpeg", file.getvalue())
