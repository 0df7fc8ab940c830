"""Pairs of runs for the tests of circuits, and a small model with large weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.interventions.examples import Example
from hooked_whisper.speech.mel import Mel


@pytest.fixture(scope="session")
def small_cfg() -> HookedWhisperConfig:
    """Unequal stacks, so that layers and heads of one are not those of the other."""
    return HookedWhisperConfig(
        n_mels=80,
        n_audio_ctx=24,
        n_audio_layers=2,
        n_audio_heads=3,
        n_text_ctx=16,
        n_text_layers=2,
        n_text_heads=2,
        d_model=12,
        d_vocab=53,
        model_name="circuit-random",
    )


@pytest.fixture(scope="session")
def small_model(small_cfg: HookedWhisperConfig, make_model: Any) -> Any:
    """Random, and far from linear; shared: a test must leave it as it was."""
    model = make_model(small_cfg)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.3 * noise)
    return model


def example_of(model: Any, seed: int, n_pos: int = 7, n_frames: int = 40) -> Example:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, model.cfg.n_mels, model.cfg.n_frames)
    values = torch.randn(shape, generator=generator).clamp(-1, 1)
    tokens = torch.randint(0, model.cfg.d_vocab, (1, n_pos), generator=generator)
    return Example(Mel(values, torch.tensor([n_frames])), tokens)


@pytest.fixture(scope="session")
def pair(small_model: Any) -> tuple[Example, Example]:
    """Other sound and other tokens."""
    return example_of(small_model, 1), example_of(small_model, 2)


@pytest.fixture(scope="session")
def short_pair(small_model: Any) -> tuple[Example, Example]:
    """Another length of text, the same tokens in both runs."""
    clean = example_of(small_model, 4, n_pos=4)
    return clean, example_of(small_model, 5, n_pos=4).with_tokens(clean.tokens)


def difference(logits: Tensor) -> Tensor:
    return logits[:, -2, 3] - logits[:, -2, 5]
