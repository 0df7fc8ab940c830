"""TopK autoencoders: the k largest latents of every vector, and an auxiliary loss for dead ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.base import SAE, Losses, SAEConfig


@dataclass(frozen=True)
class TopKConfig(SAEConfig):
    """A TopK autoencoder.

    Args:
        k: How many latents a vector keeps.
        rescale_acts_by_decoder_norm: Treat decoder rows as if they had length 1:
            latents are as long as what they write, as in SAELens.
        aux_loss_coefficient: Weight of the auxiliary loss that revives dead latents.
        aux_k: How many dead latents a vector gets in that loss; None is half of `d_in`.
    """

    architecture: ClassVar[str] = "topk"

    k: int = 32
    rescale_acts_by_decoder_norm: bool = False
    aux_loss_coefficient: float = 1 / 32
    aux_k: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.d_sae:
            raise SAEConfigError(f"k is {self.k}; an autoencoder of {self.d_sae} has no more.")


class TopKSAE(SAE):
    """Latents are the k largest pre-activations of a vector, as far as they are positive.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders".
    """

    Config = TopKConfig
    cfg: TopKConfig

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """The latents of activations."""
        pre = self.hook_sae_acts_pre(self._encoder_input(x) @ self.W_enc + self.b_enc)
        if self.cfg.rescale_acts_by_decoder_norm:
            pre = pre * self.W_dec.norm(dim=-1)
        top = pre.topk(self.cfg.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())

    def decode(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d_out"]:
        """The activations that latents stand for."""
        if self.cfg.rescale_acts_by_decoder_norm:
            latents = latents / self.W_dec.norm(dim=-1)
        return super().decode(latents)

    def losses(
        self,
        x: Float[Tensor, "batch d_in"],
        target: Float[Tensor, "batch d_out"] | None = None,
        *,
        warm_up: float = 1.0,
        dead: Bool[Tensor, " latent"] | None = None,
    ) -> Losses:
        """Squared error, and with dead latents the auxiliary loss (`"mse"`, `"aux"`)."""
        target = x if target is None else target
        latents = self.encode(x)
        recons = self.decode(latents)
        mse = (recons - target).square().sum(dim=-1).mean()
        is_active = latents > 0
        return Losses(
            total=mse,
            parts={"mse": mse.detach()},
            recons=recons.detach(),
            active=is_active.any(dim=0),
            l0=is_active.sum(dim=-1).float().mean(),
        )
