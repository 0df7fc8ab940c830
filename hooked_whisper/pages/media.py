"""Sound, spectrograms and curves as text that stands in a page."""

import base64
import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.errors import InputError

PALETTE = "cividis"
"""The colours of every spectrogram: readable in greyscale and by the colour-blind."""

_MP3_KBPS = {
    8000: (8, 16, 24, 32, 40, 48, 56, 64),
    16000: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    44100: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
"""Bit rates that MPEG audio layer III has from a sampling rate on."""


def encode_audio(
    samples: Float[Tensor, " sample"], rate_hz: int = SAMPLE_RATE_HZ, *, kbps: int = 32
) -> str:
    """A recording as a data URI that every browser plays: MP3, 4 kB a second at 32 kbit/s.

    MP3 is what Chromium, Firefox and Safari all play; Ogg needs a Safari of
    2025. The bit rate is constant, so that a browser finds a time in it.

    Args:
        samples: Mono, full scale 1; louder ones are clipped.
        rate_hz: Samples per second: a rate of MP3, as 16,000 is.
        kbps: Thousands of bits per second, the nearest that MP3 has.

    Raises:
        InputError: No samples, or a rate that MP3 does not have.
    """
    import soundfile

    if not len(samples):
        raise InputError("there are no samples to write down as sound.")
    rates = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
    if rate_hz not in rates:
        raise InputError(f"rate_hz is {rate_hz}; MP3 has {', '.join(map(str, rates))}.")
    family = 8000 if rate_hz < 16000 else 16000 if rate_hz < 32000 else 44100
    allowed = _MP3_KBPS[family]
    nearest = min(allowed, key=lambda each: abs(each - kbps))
    # libsndfile takes the place between the highest rate (0) and the lowest (1).
    level = (allowed[-1] - nearest) / (allowed[-1] - allowed[0])
    file = io.BytesIO()
    soundfile.write(
        file,
        samples.detach().float().cpu().clamp(-1, 1).numpy(),
        rate_hz,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=level,
    )
    return data_uri("audio/mpeg", file.getvalue())


def encode_mel(mel: Float[Tensor, "mel frame"], *, quality: int = 60) -> str:
    """A log-mel spectrogram as the data URI of an image, a pixel for each frame and band.

    Low bands are at the bottom; dark is quiet. WebP, about 2 kB a second.

    Args:
        mel: One recording's: `mel.values[0, :, :n_frames]`.
        quality: Of WebP, 0 to 100.

    Raises:
        InputError: No frames.
    """
    if not mel.numel():
        raise InputError(f"the mel has shape {tuple(mel.shape)}; there is nothing to draw.")
    values = mel.detach().float().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    return encode_image((values[::-1] - low) / ((high - low) or 1.0), quality=quality)


def encode_image(values: Any, *, quality: int = 60) -> str:
    """A matrix of numbers from 0 to 1 as the data URI of an image, the first row on top.

    Args:
        values: `[row column]`, a tensor or an array.
        quality: Of WebP, 0 to 100; 100 keeps every pixel as it is.
    """
    from PIL import Image

    colours = np.asarray(palette())
    places = (np.asarray(values, dtype=np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    picture = Image.fromarray(colours[places])
    picture.save(file, "WEBP", quality=quality, lossless=quality >= 100, method=4)
    return data_uri("image/webp", file.getvalue())


def encode_values(
    values: Float[Tensor, "..."], low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """Numbers as one byte each, which `hw.values` of `page.js` reads.

    Args:
        values: In any number of axes, which become one.
        low: What the byte 0 stands for; None is the least of them.
        high: What 255 stands for; None is the greatest.

    Returns:
        `low`, `high` and `bytes` in base64. A number comes back within
        (high - low) / 510.
    """
    flat = values.detach().double().cpu().flatten()
    if not bool(torch.isfinite(flat).all()):
        raise InputError("values that are NaN or infinite cannot be written as bytes.")
    low = (float(flat.min()) if len(flat) else 0.0) if low is None else float(low)
    high = (float(flat.max()) if len(flat) else 0.0) if high is None else float(high)
    scaled = (flat - low) / ((high - low) or 1.0) * 255
    raw = scaled.round().clamp(0, 255).to(torch.uint8).numpy().tobytes()
    return {"low": low, "high": high, "bytes": base64.b64encode(raw).decode()}


def palette() -> list[list[int]]:
    """Red, green and blue, 0 to 255, of 256 steps from low to high."""
    import matplotlib

    colours = matplotlib.colormaps[PALETTE](np.arange(256), bytes=True)
    return colours[:, :3].tolist()


def data_uri(kind: str, raw: bytes) -> str:
    """Bytes as an address that holds them.

    >>> data_uri("text/plain", b"hello")
    'data:text/plain;base64,aGVsbG8='
    """
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"
