"""Parts of recordings on a page: sound and spectrogram are of the time that they say."""

from typing import Any

import torch

from hooked_whisper.data.windows import load_windows
from hooked_whisper.reports.examples import Excerpt, encode_excerpts
from hooked_whisper.reports.html import encode_mel
from hooked_whisper.speech.audio import encode_audio


def test_sound_and_spectrogram_are_those_of_the_part(digits_model: Any) -> None:
    samples = torch.randn(4 * 16_000) / 10
    windows = load_windows(digits_model, [(samples, 16_000)])
    (found,) = encode_excerpts(digits_model, windows, [Excerpt(0, 1.5, 2.25)], progress=False)
    assert (found["window"], found["start"], found["end"]) == (0, 1.5, 2.25)
    assert found["audio"] == encode_audio(samples[24_000:36_000])
    mel = digits_model.to_mel(samples, rate_hz=16_000).values[0]
    assert found["mel"] == encode_mel(mel[:, 150:225])
