"""Gated autoencoders: which latents are active, and how much, are decided apart."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.sae.base import SAE, Losses, SAEConfig, TrainBatch
from hooked_whisper.sae.losses import squared_error


@dataclass(frozen=True)
class GatedConfig(SAEConfig):
    """A gated autoencoder.

    Args:
        l1_coefficient: Weight of the penalty on the gates.
    """

    architecture: ClassVar[str] = "gated"
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("l1_coefficient",)

    l1_coefficient: float | int = 1.0


class GatedSAE(SAE):
    """Latents are magnitudes behind gates; both read the same directions.

        g = (x - b_dec) W_enc + b_gate
        f = H(g) relu((x - b_dec) W_enc exp(r_mag) + b_mag)
        loss = |x - recons|^2 + l1 * sum_i relu(g_i) |W_dec_i| + |x - relu(g) W_dec' - b_dec'|^2

    H is the step function; primed weights are held fixed. It has no `b_enc`.

    Source: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse
    autoencoders", sections 3.2 and 3.3; the penalty with decoder lengths as in SAELens.
    """

    Config = GatedConfig
    cfg: GatedConfig

    b_gate: Float[Tensor, " latent"]
    b_mag: Float[Tensor, " latent"]
    r_mag: Float[Tensor, " latent"]

    def _make_encoder(self, generator: torch.Generator | None) -> None:
        self.W_enc = nn.Parameter(self.first_length * self.W_dec.detach().T.contiguous())
        for name in ("b_gate", "b_mag", "r_mag"):
            setattr(self, name, nn.Parameter(torch.zeros(self.cfg.d_sae)))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        read = self._encoder_input(x) @ self.W_enc
        magnitudes = self.hook_sae_acts_pre(read * self.r_mag.exp() + self.b_mag)
        return torch.relu(magnitudes) * (read + self.b_gate > 0)

    def _losses(self, batch: TrainBatch) -> Losses:
        """Squared error, penalty, error by the gates alone (`"mse"`, `"l1"`, `"aux"`)."""
        read = self._encoder_input(batch.x) @ self.W_enc
        gates = torch.relu(read + self.b_gate)
        latents = torch.relu(read * self.r_mag.exp() + self.b_mag) * (gates > 0)
        recons = self.decode(latents)
        by_gates = self._denormalize(gates @ self.W_dec.detach() + self.b_dec.detach())
        penalty = (gates.mean(dim=0) * self.W_dec.norm(dim=-1)).sum()
        parts = {
            "mse": squared_error(recons, batch.target),
            "l1": batch.warm_up * self.cfg.l1_coefficient * penalty,
            "aux": squared_error(by_gates, batch.target),
        }
        is_active = latents.detach() > 0
        return Losses.of(parts, recons, is_active.any(dim=0), is_active.sum() / len(batch.x))
