"""What the tests of the model share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hooked_whisper.config import HookedWhisperConfig


@pytest.fixture(scope="session")
def small_cfg(tiny_cfg: HookedWhisperConfig) -> HookedWhisperConfig:
    """Smaller than `tiny_cfg`, for loops over every hook name; no two sizes are equal."""
    return replace(tiny_cfg, n_audio_ctx=10, n_text_ctx=9, n_text_layers=2, n_mels=7, d_vocab=53)


@pytest.fixture(scope="session")
def with_flags(
    small_cfg: HookedWhisperConfig, make_model: Callable[..., Any]
) -> Callable[..., Any]:
    """`with_flags("use_attn_in", ...)`: a shared small model with these flags on.

    A single flag gets one layer a stack: its hooks are the same in every layer.
    """
    models: dict[tuple[str, ...], Any] = {}

    def make(*flags: str) -> Any:
        if flags not in models:
            layers = {"n_audio_layers": 1, "n_text_layers": 1} if len(flags) == 1 else {}
            cfg = replace(small_cfg, **layers, **dict.fromkeys(flags, True))
            models[flags] = make_model(cfg)
        return models[flags]

    return make
