"""BatchTopK autoencoders: k latents a vector on average, chosen in the whole batch."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.architectures.jumprelu import JumpReLUConfig, JumpReLUSAE
from hooked_whisper.sae.architectures.topk import TopKConfig, TopKSAE
from hooked_whisper.sae.base import SAE, Losses
from hooked_whisper.sae.selection import Selection, select_top_of_batch


@dataclass(frozen=True)
class BatchTopKConfig(TopKConfig):
    """A BatchTopK autoencoder.

    Args:
        k: How many latents a vector keeps on average.
        topk_threshold_lr: How fast the threshold follows the batches' smallest active latents.
    """

    architecture: ClassVar[str] = "batchtopk"

    topk_threshold_lr: float | int = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.topk_threshold_lr <= 1:
            raise SAEConfigError(
                f"topk_threshold_lr is {self.topk_threshold_lr}; it must be over 0 and at most 1."
            )


class BatchTopKSAE(TopKSAE):
    """Latents are the `k * batch` largest pre-activations of a batch, as far as they are positive.

    In use, latents over a threshold are active, so that no vector depends on others:
    the running mean of the smallest active latent of each training batch. It
    begins with the first batch's. Until there is one, `encode` too takes the batch's largest.

    Source: Bussmann et al. 2024, "BatchTopK sparse autoencoders".
    """

    Config = BatchTopKConfig
    cfg: BatchTopKConfig

    topk_threshold: Float[Tensor, ""]

    def __init__(self, cfg: BatchTopKConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(cfg, generator)
        # In float64: each batch adds a hundredth of a small number. Negative: no batch yet.
        self.register_buffer("topk_threshold", torch.tensor(-1.0, dtype=torch.float64))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """The latents of activations."""
        pre = self._scaled_pre_activations(x)
        if self.topk_threshold >= 0:
            return torch.relu(pre) * (pre > self.topk_threshold)
        n = self.cfg.k * pre[..., 0].numel()
        top = pre.flatten().topk(n, sorted=False)
        flat = torch.zeros_like(pre).flatten()
        return flat.scatter(0, top.indices, top.values.relu()).view_as(pre)

    def losses(
        self,
        x: Float[Tensor, "batch d_in"],
        target: Float[Tensor, "batch d_out"] | None = None,
        *,
        warm_up: float = 1.0,
        dead: Bool[Tensor, " latent"] | None = None,
    ) -> Losses:
        """Squared error and auxiliary loss as TopK's; the threshold follows this batch."""
        return super().losses(x, target, warm_up=warm_up, dead=dead)

    def _select(
        self, inputs: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, " entry"], Selection]:
        scale = self._scale_of_latents
        n = self.cfg.k * len(inputs)
        values, selection = select_top_of_batch(
            inputs, self.W_enc, self.b_enc, n, scale, self.ranks
        )
        if torch.is_grad_enabled():
            self._follow(values if scale is None else values * scale[selection.indices])
        return values, selection

    @torch.no_grad()
    def _follow(self, values: Float[Tensor, " entry"]) -> None:
        """Move the threshold towards a batch's smallest active latent."""
        least = values.min().to(self.topk_threshold.dtype) if len(values) else None
        if self.ranks is not None:
            found = self.ranks.minimum(inf if least is None else float(least))
            least = None if found == inf else self.topk_threshold.new_tensor(found)
        if least is None:
            return
        rate = torch.where(self.topk_threshold < 0, 1.0, self.cfg.topk_threshold_lr)
        self.topk_threshold += rate * (least - self.topk_threshold)

    def inference(self) -> SAE:
        """A JumpReLU autoencoder with the same latents."""
        cfg = self.cfg
        result = JumpReLUSAE(
            JumpReLUConfig(
                d_in=cfg.d_in,
                d_sae=cfg.d_sae,
                hook_name=cfg.hook_name,
                apply_b_dec_to_input=cfg.apply_b_dec_to_input,
                normalize_activations=cfg.normalize_activations,
                unit_norm_decoder=cfg.unit_norm_decoder or cfg.rescale_acts_by_decoder_norm,
                metadata={**cfg.metadata, "training_architecture": cfg.architecture, "k": cfg.k},
            )
        ).to(self.device, self.dtype)
        scale = self._scale_of_latents
        scale = torch.ones_like(self.b_enc) if scale is None else scale
        with torch.no_grad():
            result.W_enc.copy_(self.W_enc * scale)
            result.b_enc.copy_(self.b_enc * scale)
            result.W_dec.copy_(self.W_dec / scale[:, None])
            result.b_dec.copy_(self.b_dec)
            result.threshold.fill_(max(0.0, float(self.topk_threshold)))
        return result.train(self.training)
