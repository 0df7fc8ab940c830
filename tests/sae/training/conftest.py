"""Synthetic activations: sums of a few known directions, far from the origin."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

D_IN, N_DIRECTIONS = 16, 24


@pytest.fixture(scope="session")
def directions() -> Tensor:
    """What the activations are made of, `[direction d_in]`, of length 1."""
    return normalize(torch.randn(N_DIRECTIONS, D_IN, generator=torch.Generator().manual_seed(3)))


@pytest.fixture(scope="session")
def sparse_batches(directions: Tensor) -> Callable[..., Iterator[Tensor]]:
    """`sparse_batches(n, size, seed)`: an iterator of n batches, the same for the same seed."""

    def batches(n: int, size: int = 64, seed: int = 0) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n):
            shape = (size, N_DIRECTIONS)
            is_on = torch.rand(shape, generator=generator) < 2 / N_DIRECTIONS
            strength = is_on * (0.5 + torch.rand(shape, generator=generator))
            yield 20 * (strength @ directions) + 5

    return batches
