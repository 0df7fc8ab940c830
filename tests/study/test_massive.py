"""The study names massive activations, and tells that there are none."""

from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.data import AudioWindow
from hooked_whisper.errors import HookNameError
from hooked_whisper.speech import Mel
from hooked_whisper.study.residual import ResidualStreams, residual_section
from hooked_whisper.study.run import _encoder_hook
from hooked_whisper.study.windows import WindowRun


def told(x: torch.Tensor) -> tuple[Any, str]:
    """The section on a stream whose LayerNorm brings all vectors to one length."""
    streams = ResidualStreams(4)
    normed = x / x.norm(dim=-1, keepdim=True)
    for part in range(2):
        window = AudioWindow(part, "planted", 0.0, torch.zeros(320 * (50 - 10 * part)))
        run = WindowRun(window, Mel(torch.zeros(1, 8, 100), torch.tensor([100])))
        for (_, take), value in zip(streams.hooks(run), (x, normed), strict=True):
            take(value[part][None], hook=None)
    section = residual_section(streams)
    numbers = section.numbers["before"]["massive"]
    return numbers, " ".join(" ".join(finding.split()) for finding in section.findings)


def test_they_are_named_with_what_they_carry() -> None:
    x = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(0))
    x[0, [3, 30], 7] = 200.0
    x[1, 45, 7] = 200.0  # behind the sound
    numbers, text = told(x)
    assert (numbers["n"], numbers["n_positions"]) == (2, 90)
    assert numbers["dimensions"][0] == 7 and numbers["variance"] > 0.9
    assert "2 of 90 positions are massive before the LayerNorm" in text
    assert (
        f"carry {100 * numbers['variance']:.1f} % of the variance, mostly in dimensions 7," in text
    )
    assert "after it none is." in text


def test_where_there_are_none_it_says_so() -> None:
    numbers, text = told(torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(0)))
    assert (numbers["n"], numbers["variance"], numbers["dimensions"]) == (0, 0.0, [])
    assert "No position is massive before the LayerNorm" in text and "after it 0 are." in text


def test_real_models_are_read_behind_the_last_layernorm(
    tiny_model: HookedWhisper, digits_model: HookedWhisper
) -> None:
    assert _encoder_hook(tiny_model, None) == "encoder.ln_final.hook_normalized"
    assert _encoder_hook(digits_model, None) == "encoder.blocks.3.hook_resid_post"
    with pytest.raises(HookNameError, match=r"such as 'encoder\.ln_final"):
        _encoder_hook(tiny_model, "encoder.blocks.*.hook_resid_post")
