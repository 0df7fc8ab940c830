"""BatchTopK autoencoders: k latents a vector on average, chosen in the whole batch.

With Matryoshka, the first of the latents alone have to do, at several widths.
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from math import inf
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.distributed import ProcessGroup
from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.architectures.jumprelu import JumpReLUConfig, JumpReLUSAE
from hooked_whisper.sae.architectures.topk import TopKConfig, TopKSAE
from hooked_whisper.sae.base import SAE, SAEConfig
from hooked_whisper.sae.losses import Errors, squared_error
from hooked_whisper.sae.selection import Selected, Selection, select_top_of_batch
from hooked_whisper.sae.sparse import decode_selected


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
    the running mean of the smallest active latent of each training batch, as in SAELens.
    Where SAELens begins with 0, it begins with the first batch's; and as a running mean of
    0.01 a step lags behind the weights, `train_sae` sets it anew for each line of the log and at
    the end, to what leaves `k` latents a vector in the last batch, by the weights of then. Until
    there is one, `encode` too takes the batch's largest.

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
        pre = self._scaled_pre_activations(x)
        if self.topk_threshold >= 0:
            return torch.relu(pre) * (pre > self.topk_threshold)
        n = self.cfg.k * pre[..., 0].numel()
        top = pre.flatten().topk(n, sorted=False)
        flat = torch.zeros_like(pre).flatten()
        return flat.scatter(0, top.indices, top.values.relu()).view_as(pre)

    def _select(self, inputs: Float[Tensor, "batch d_in"], ranks: ProcessGroup | None) -> Selected:
        scale = self._scale_of_latents
        n = self.cfg.k * len(inputs)
        values, selection = select_top_of_batch(inputs, self.W_enc, self.b_enc, n, scale, ranks)
        if torch.is_grad_enabled():
            self._follow(values if scale is None else values * scale[selection.indices], ranks)
        return values, selection

    @torch.no_grad()
    def _follow(self, values: Float[Tensor, " entry"], ranks: ProcessGroup | None) -> None:
        """Move the threshold towards a batch's smallest active latent."""
        least = values.min().to(self.topk_threshold.dtype) if len(values) else None
        if ranks is not None:
            found = ranks.minimum(inf if least is None else float(least))
            least = None if found == inf else self.topk_threshold.new_tensor(found)
        if least is None:
            return
        rate = torch.where(self.topk_threshold < 0, 1.0, self.cfg.topk_threshold_lr)
        self.topk_threshold += rate * (least - self.topk_threshold)

    @torch.no_grad()
    def calibrate_(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Set the threshold to the smallest active latent of a batch with these weights."""
        scale, n = self._scale_of_latents, self.cfg.k * len(x)
        inputs = self._encoder_input(x)
        values, selection = select_top_of_batch(inputs, self.W_enc, self.b_enc, n, scale, None)
        if len(values):
            values = values if scale is None else values * scale[selection.indices]
            self.topk_threshold.copy_(values.min())

    def inference(self) -> SAE:
        """A JumpReLU autoencoder with the same latents."""
        cfg = self.cfg
        kept = {each.name: getattr(cfg, each.name) for each in fields(SAEConfig)}
        kept["unit_norm_decoder"] |= cfg.rescale_acts_by_decoder_norm
        kept["metadata"] = {**cfg.metadata, "training_architecture": cfg.architecture, "k": cfg.k}
        result = JumpReLUSAE(JumpReLUConfig(**kept)).to(self.device, self.dtype)
        scale = self._scale_of_latents
        scale = torch.ones_like(self.b_enc) if scale is None else scale
        with torch.no_grad():
            result.W_enc.copy_(self.W_enc * scale)
            result.b_enc.copy_(self.b_enc * scale)
            result.W_dec.copy_(self.W_dec / scale[:, None])
            result.b_dec.copy_(self.b_dec)
            result.threshold.fill_(max(0.0, float(self.topk_threshold)))
        return result.train(self.training)


@dataclass(frozen=True)
class MatryoshkaConfig(BatchTopKConfig):
    """A Matryoshka BatchTopK autoencoder.

    Args:
        matryoshka_widths: How many latents each level has, rising, the last one `d_sae`
            (added where it is missing). Empty is an eighth, a quarter, half and all.
    """

    architecture: ClassVar[str] = "matryoshka_batchtopk"

    matryoshka_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = tuple(self.matryoshka_widths)
        if not widths:
            widths = tuple(sorted({max(1, self.d_sae // part) for part in (8, 4, 2)}))
        if widths[-1] != self.d_sae:
            widths = (*widths, self.d_sae)
        rising = all(a < b for a, b in pairwise(widths))
        if not rising or any(type(width) is not int or width < 1 for width in widths):
            raise SAEConfigError(
                f"matryoshka_widths is {self.matryoshka_widths}; it must be rising positive "
                f"integers of at most {self.d_sae}, the number of latents."
            )
        object.__setattr__(self, "matryoshka_widths", widths)


class MatryoshkaSAE(BatchTopKSAE):
    """A BatchTopK autoencoder whose first latents reconstruct by themselves too.

        loss = sum over widths m of |x - (f[:m] W_dec[:m] + b_dec)|^2

    `"mse"` among the losses is the error of all latents, `"mse_{m}"` of the first m.

    Source: Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse
    autoencoders"; the plain sum over levels as in SAELens.
    """

    Config = MatryoshkaConfig
    cfg: MatryoshkaConfig

    def _errors(
        self,
        values: Float[Tensor, " entry"],
        selection: Selection,
        target: Float[Tensor, "batch d_out"],
    ) -> Errors:
        errors = {}
        start, recons, partial = 0, target, self.b_dec
        for width in self.cfg.matryoshka_widths:
            level, kept = selection.between(start, width)
            partial = partial + decode_selected(values[kept], self.W_dec, level)
            recons = self._denormalize(partial)
            name = "mse" if width == self.cfg.d_sae else f"mse_{width}"
            errors[name] = squared_error(recons, target)
            start = width
        return errors, recons
