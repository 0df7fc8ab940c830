"""Sound, spectrograms and curves come back out of a page as they went in."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.digits import recordings
from hooked_whisper.errors import InputError
from hooked_whisper.pages.media import encode_audio, encode_image, encode_mel, encode_values
from hooked_whisper.speech.audio import load_audio


def raw(uri: str, kind: str) -> io.BytesIO:
    """The bytes of a data URI."""
    head, body = uri.split(",", 1)
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(body))


def decoded(samples: torch.Tensor) -> Any:
    """What a player makes of a recording in a page."""
    import soundfile

    found, rate_hz = soundfile.read(raw(encode_audio(samples), "audio/mpeg"), dtype="float32")
    assert rate_hz == 16000
    return found


def test_sound_is_small_and_keeps_its_time() -> None:
    samples = load_audio(recordings()[1].path)
    found = decoded(samples)
    assert len(found) == len(samples), "the encoder's delay is written in the file, and taken away"
    assert np.corrcoef(found, samples.numpy())[0, 1] > 0.99
    assert len(encode_audio(samples)) < 8000 * len(samples) / 16000 + 1000


@pytest.mark.parametrize("n", [1, 400, 16000], ids=["one sample", "25 ms", "1 s"])
def test_any_length_can_be_played(n: int) -> None:
    assert len(decoded(torch.full((n,), 3.0))) == n


def test_no_sound_is_refused() -> None:
    with pytest.raises(InputError, match="there are no samples"):
        encode_audio(torch.zeros(0))
    with pytest.raises(InputError, match="rate_hz is 8000; pages hold sound at 16000 Hz"):
        encode_audio(torch.zeros(10), 8000)


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
