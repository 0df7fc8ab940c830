"""TopK autoencoders: the k largest latents of every vector, and an auxiliary loss for dead ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.distributed import ProcessGroup
from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.base import SAE, Losses, SAEConfig, TrainBatch
from hooked_whisper.sae.losses import selected_losses, squared_error, squared_errors
from hooked_whisper.sae.selection import Selected, select_top_k


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
    aux_loss_coefficient: float | int = 1 / 32
    aux_k: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.d_sae:
            raise SAEConfigError(
                f"k is {self.k}, but there are {self.d_sae} latents; k can be 1 to {self.d_sae}."
            )
        if self.aux_k is not None and (type(self.aux_k) is not int or self.aux_k < 1):
            raise SAEConfigError(f"aux_k is {self.aux_k!r}; it must be a positive integer or None.")


class TopKSAE(SAE):
    """Latents are the k largest pre-activations of a vector, as far as they are positive.

        f = relu(top_k((x - b_dec) W_enc + b_enc)),   recons = f W_dec + b_dec
        loss = |x - recons|^2 + c * s * |e - z W_dec|^2

    where e is x - recons, held fixed, z the `aux_k` largest pre-activations among
    the dead latents (negative ones too, as in SAELens), c `aux_loss_coefficient`, and
    s the number of dead latents over `aux_k`, at most 1.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.3 and
    appendix A.2; s from EleutherAI's trainer.
    """

    Config = TopKConfig
    cfg: TopKConfig

    @property
    def first_length(self) -> float:
        """The k largest of random directions reconstruct about the right length."""
        return 1.0

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        pre = self._scaled_pre_activations(x)
        top = pre.topk(self.cfg.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())

    def decode(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d_out"]:
        if self.cfg.rescale_acts_by_decoder_norm:
            latents = latents / self.W_dec.norm(dim=-1)
        return super().decode(latents)

    def _losses(self, batch: TrainBatch) -> Losses:
        """Squared error, and with dead latents the auxiliary loss (`"mse"`, `"aux"`)."""
        with torch.no_grad():
            inputs = self._encoder_input(batch.x)
        values, selection = self._select(inputs, batch.ranks)
        # Divided by the decoder's lengths again when they are decoded, scaled latents are
        # plain ones: the scale changes which are the largest, and nothing else.
        losses = selected_losses(
            self, inputs, batch.target, values, selection, errors=type(self)._errors
        )
        dead = batch.dead
        if dead is not None and self.cfg.aux_loss_coefficient and bool(dead.any()):
            aux = self._aux_loss(inputs, (batch.target - losses.recons).detach(), dead)
            parts = {**losses.parts, "aux": aux.detach()}
            losses = losses._replace(total=losses.total + aux, parts=parts)
        return losses

    def _scaled_pre_activations(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch latent"]:
        """Pre-activations as they are compared with each other."""
        pre = self._pre_activations(x)
        return pre if self._scale_of_latents is None else pre * self._scale_of_latents

    @property
    def _scale_of_latents(self) -> Float[Tensor, " latent"] | None:
        return self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None

    _errors = squared_errors

    def _select(self, inputs: Float[Tensor, "batch d_in"], ranks: ProcessGroup | None) -> Selected:
        """Which latents stay, and their pre-activations."""
        scale = self._scale_of_latents
        return select_top_k(inputs, self.W_enc, self.b_enc, self.cfg.k, scale)

    def _aux_loss(
        self,
        inputs: Float[Tensor, "batch d_in"],
        residual: Float[Tensor, "batch d_out"],
        dead: Bool[Tensor, " latent"],
    ) -> Float[Tensor, ""]:
        """How badly dead latents explain what the others left over."""
        which = dead.nonzero().squeeze(-1)
        aux_k = self.cfg.aux_k or max(1, self.cfg.d_in // 2)
        W_dec = self.W_dec.index_select(0, which)
        if self.cfg.apply_b_dec_to_input:  # the same input, with a gradient for what was taken off
            inputs = inputs + (self.b_dec.detach() - self.b_dec)
        pre = inputs @ self.W_enc.index_select(1, which) + self.b_enc[which]
        if len(which) > aux_k:
            scale = self._scale_of_latents
            compared = pre.detach() if scale is None else pre.detach() * scale[which]
            kept = torch.zeros_like(pre).scatter(1, compared.topk(aux_k, sorted=False).indices, 1)
            pre = pre * kept
        recons = pre @ W_dec
        if self._scale is not None:
            recons = recons * self._scale.factor
        weight = self.cfg.aux_loss_coefficient * min(1.0, len(which) / aux_k)
        return weight * squared_error(recons, residual)
