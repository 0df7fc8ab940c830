"""Autoencoders of random weights, with nothing but what is needed of one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hooked_whisper.speech.mel import Mel


class PlainSAE(nn.Module):
    """ReLU latents of random weights: no configuration, no base class."""

    def __init__(self, d_in: int, d_sae: int, d_out: int | None = None, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / shape[0] ** 0.5, False)

        self.W_enc, self.W_dec = draw(d_in, d_sae), draw(d_sae, d_out or d_in)
        self.b_enc, self.b_dec = draw(d_sae), draw(d_out or d_in)

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.b_dec


@pytest.fixture(scope="session")
def plain_sae() -> Callable[..., Any]:
    """`plain_sae(d_in, d_sae, d_out=None, seed=0)`: a random autoencoder."""
    return PlainSAE


@pytest.fixture
def short_mel(tiny_mel: Tensor) -> Mel:
    """The two recordings of `tiny_mel`, with 11 and 17 of their 30 positions of speech."""
    return Mel(tiny_mel, torch.tensor([21, 34]))
