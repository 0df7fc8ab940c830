"""Transcoders: they read one hook point and write what another one holds."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from hooked_whisper.errors import SAEConfigError, SAEError
from hooked_whisper.sae.base import SAE, Losses, SAEConfig, TrainBatch
from hooked_whisper.sae.losses import relu_losses, selected_losses
from hooked_whisper.sae.selection import select_top_k


@dataclass(frozen=True)
class TranscoderConfig(SAEConfig):
    """A transcoder.

    Args:
        d_out: Width of what it writes.
        hook_name_out: Where what it writes belongs.
        k: Keep the k largest latents; None keeps all that are positive.
        l1_coefficient: Weight of the L1 penalty; counts without k.
    """

    architecture: ClassVar[str] = "transcoder"
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("l1_coefficient",)

    apply_b_dec_to_input: bool = False
    d_out: int = 0
    hook_name_out: str | None = None
    k: int | None = None
    l1_coefficient: float | int = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.apply_b_dec_to_input:
            raise SAEConfigError(
                "apply_b_dec_to_input is True; a transcoder's decoder bias belongs to what it "
                "writes, and can't be subtracted from what it reads."
            )
        if self.k is not None and (type(self.k) is not int or not 1 <= self.k <= self.d_sae):
            raise SAEConfigError(f"k is {self.k!r}; it can be 1 to {self.d_sae}, or None.")


@dataclass(frozen=True)
class SkipTranscoderConfig(TranscoderConfig):
    """A transcoder with a linear path around its latents."""

    architecture: ClassVar[str] = "skip_transcoder"


class Transcoder(SAE):
    """Latents of one hook point, decoded to another.

        f = relu(x W_enc + b_enc), or its k largest;   recons = f W_dec + b_dec

    Source: Dunefsky et al. 2024, "Transcoders find interpretable LLM feature circuits".
    """

    Config = TranscoderConfig
    cfg: TranscoderConfig

    def _make_encoder(self, generator: torch.Generator | None) -> None:
        directions = torch.randn(self.cfg.d_sae, self.cfg.d_in, generator=generator)
        self.W_enc = nn.Parameter(normalize(directions, dim=-1).T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        pre = self._pre_activations(x)
        if self.cfg.k is None:
            return torch.relu(pre)
        top = pre.topk(self.cfg.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())

    def _losses(self, batch: TrainBatch) -> Losses:
        """Squared error, and without k the L1 penalty (`"mse"`, `"l1"`)."""
        with torch.no_grad():
            inputs = self._encoder_input(batch.x)
        around = self._around(batch.x)
        rest = batch.target if around is None else batch.target - around
        if self.cfg.k is None:
            l1 = batch.warm_up * self.cfg.l1_coefficient
            losses = relu_losses(self, inputs, rest, l1)
        else:
            selected = select_top_k(inputs, self.W_enc, self.b_enc, self.cfg.k)
            losses = selected_losses(self, inputs, rest, *selected)
        if around is None:
            return losses
        return losses._replace(recons=losses.recons + around.detach())

    def _around(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        """What goes around the latents."""
        return None

    def _denormalize(self, recons: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        # What it writes was not normalised; only what it reads is.
        return recons


class SkipTranscoder(Transcoder):
    """A transcoder with a linear path around its latents: `recons += x W_skip^T`.

    `decode` adds what `encode` last read, so that the two together are `forward`.

    Source: Paulo et al. 2025, "Transcoders beat sparse autoencoders for interpretability".
    """

    Config = SkipTranscoderConfig
    cfg: SkipTranscoderConfig

    W_skip: Float[Tensor, "d_out d_in"]

    def __init__(self, cfg: SkipTranscoderConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(cfg, generator)
        self.W_skip = nn.Parameter(torch.zeros(cfg.d_out, cfg.d_in))
        self._read: Tensor | None = None

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        self._read = x
        return super().encode(x)

    def decode(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d_out"]:
        """What latents, and the activations that were encoded last, stand for.

        Raises:
            SAEError: No activations of this shape were encoded before.
        """
        if self._read is None or self._read.shape[:-1] != latents.shape[:-1]:
            last = "nothing" if self._read is None else tuple(self._read.shape[:-1])
            raise SAEError(
                "a skip transcoder adds a linear path from what it read. Latents of shape "
                f"{tuple(latents.shape[:-1])} came in, and what was encoded last was {last}. "
                "Call encode on their activations first."
            )
        return super().decode(latents) + self._around(self._read)

    def _around(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return x.to(self.dtype) @ self.W_skip.T

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_read": None}
