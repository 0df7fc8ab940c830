"""Spectrograms and curves come back out of a page as they went in."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.reports.html import encode_image, encode_mel, encode_values


def raw(uri: str, kind: str) -> io.BytesIO:
    """The bytes of a data URI."""
    head, body = uri.split(",", 1)
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(body))


def picture(uri: str) -> Any:
    """The image of a data URI as an array."""
    from PIL import Image

    return np.asarray(Image.open(raw(uri, "image/webp")).convert("RGB"))


def test_a_spectrogram_has_low_bands_below_and_a_pixel_a_frame() -> None:
    mel = torch.full((80, 120), -1.0)
    mel[:10, 60:] = 1.0
    found = picture(encode_mel(mel))
    assert found.shape == (80, 120, 3)
    bright = found.sum(axis=2)
    assert bright[75, 100] > 450 > 200 > bright[5, 100] and bright[75, 20] < 200


def test_colours_are_those_of_the_palette() -> None:
    import matplotlib

    found = picture(encode_image(torch.tensor([[0.0, 0.5, 1.0]]), quality=100))
    wanted = matplotlib.colormaps["cividis"]([0.0, 0.5, 1.0], bytes=True)[:, :3]
    assert np.abs(found[0].astype(int) - wanted.astype(int)).max() <= 3


def test_an_empty_spectrogram_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(80, 0\)"):
        encode_mel(torch.zeros(80, 0))


@pytest.mark.parametrize("bounds", [(None, None), (-3.0, 5.0)], ids=["own", "given"])
def test_values_come_back_within_half_a_step(bounds: tuple[Any, Any]) -> None:
    values = torch.linspace(-2, 3, 57).view(3, 19)
    found = encode_values(values, *bounds)
    steps = np.frombuffer(base64.b64decode(found["bytes"]), dtype=np.uint8)
    step = (found["high"] - found["low"]) / 255
    back = found["low"] + steps * step
    assert np.abs(back - values.flatten().numpy()).max() <= step / 2 + 1e-6


def test_values_that_are_all_the_same_or_none() -> None:
    assert encode_values(torch.full((2,), 4.0)) == {"low": 4.0, "high": 4.0, "bytes": "AAA="}
    assert encode_values(torch.zeros(0))["bytes"] == ""
    with pytest.raises(InputError, match="NaN or infinite"):
        encode_values(torch.tensor([1.0, float("nan")]))
