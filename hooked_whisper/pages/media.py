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

_KBPS = (8, 40, 160)
"""Bit rates of MP3 at 16 kHz: the lowest, the one used here, the highest."""


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


def encode_mel(mel: Float[Tensor, "mel frame"], *, quality: int = 75) -> str:
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


def encode_image(values: Any, *, quality: int = 75) -> str:
    """A matrix of numbers from 0 to 1 as the data URI of an image, the first row on top.

    Args:
        values: `[row column]`, a tensor or an array.
        quality: Of WebP, 0 to 100; 100 keeps every pixel as it is.
    """
    from PIL import Image

    colours = np.asarray(palette(), dtype=np.uint8)
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
