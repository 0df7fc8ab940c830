"""Which latents have not been active for long."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class DeadLatents:
    """Counts, for each latent, the activations since it was last active.

    Args:
        d_sae: Number of latents.
        after_vectors: From how many on a latent counts as dead.
        device: Where to count.
    """

    def __init__(
        self, d_sae: int, after_vectors: int, device: torch.device | str | None = None
    ) -> None:
        self.after_vectors = after_vectors
        self.n_since_active: Int64[Tensor, " latent"] = torch.zeros(
            d_sae, dtype=torch.int64, device=device
        )

    def update(self, active: Bool[Tensor, " latent"], n_vectors: int) -> None:
        """Count a batch.

        Args:
            active: Which latents were active anywhere in it.
            n_vectors: Its size.
        """
        self.n_since_active.add_(n_vectors).masked_fill_(active, 0)

    @property
    def is_dead(self) -> Bool[Tensor, " latent"]:
        """Which latents count as dead."""
        return self.n_since_active >= self.after_vectors

    @property
    def share(self) -> float:
        """Share of the latents that count as dead."""
        return float(self.is_dead.float().mean())
