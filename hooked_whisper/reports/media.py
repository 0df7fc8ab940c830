"""Spectrograms and curves as text that stands in a page."""

import base64
import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.display import data_uri
from hooked_whisper.errors import InputError

PALETTE = "cividis"
"""The colours of every spectrogram: readable in greyscale and by the colour-blind."""


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
