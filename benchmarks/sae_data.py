"""Activations with a known structure, the same for whoever asks; needs torch only."""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize


class Activations:
    """Sums of a few of many directions, plus a mean and noise; about `sqrt(d_in)` long.

    Directions are as often in use as Zipf's law has it, roughly, and how much of
    one there is varies by an exponential distribution.

    Args:
        d_in: Width.
        n_directions: How many directions there are.
        n_active: How many a vector has.
        noise: Standard deviation of every element's noise.
        seed: Of everything.
    """

    def __init__(
        self,
        d_in: int = 384,
        n_directions: int = 2048,
        n_active: int = 24,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.seed, self.noise, self.n_active, self.d_in = seed, noise, n_active, d_in
        self.directions = normalize(torch.randn(n_directions, d_in, generator=generator), dim=-1)
        self.mean = 0.5 * torch.randn(d_in, generator=generator)
        self.frequencies = 1 / (20.0 + torch.arange(n_directions)).pow(0.7)
        # Exponential amounts a have a mean square of 2: so the sum of n is sqrt(d_in) long.
        self.length = (d_in / (2 * n_active)) ** 0.5

    def batch(self, number: int, size: int) -> Tensor:
        """Batch `number`: `[size, d_in]`."""
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + number)
        chosen = torch.multinomial(
            self.frequencies, size * self.n_active, replacement=True, generator=generator
        ).view(size, self.n_active)
        amounts = torch.empty(size, self.n_active).exponential_(generator=generator)
        vectors = embedding_bag(
            chosen, self.directions, mode="sum", per_sample_weights=self.length * amounts
        )
        noise = torch.randn(size, self.d_in, generator=generator)
        return vectors.add_(self.mean).add_(noise, alpha=self.noise)
