"""ReLU autoencoders with an L1 penalty; SAELens calls them "standard"."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.sae.base import SAE, Losses, SAEConfig, TrainBatch
from hooked_whisper.sae.losses import relu_losses


@dataclass(frozen=True)
class ReLUConfig(SAEConfig):
    """A ReLU autoencoder.

    Args:
        l1_coefficient: Weight of the penalty: the sum of the latents, each times
            the length of its decoder row.
        tied: The encoder is the decoder's transpose, as in FREUD and Reid 2023.
    """

    architecture: ClassVar[str] = "standard"
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("l1_coefficient",)

    l1_coefficient: float | int = 1.0
    tied: bool = False


class ReLUSAE(SAE):
    """Latents are whatever is positive.

        f = relu((x - b_dec) W_enc + b_enc),  loss = |x - recons|^2 + l1 * sum_i f_i |W_dec_i|

    Source: Bricken et al. 2023, "Towards Monosemanticity"; the penalty with decoder
    lengths from Anthropic's update of April 2024.
    """

    Config = ReLUConfig
    cfg: ReLUConfig

    def _make_encoder(self, generator: torch.Generator | None) -> None:
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae))
        if not self.cfg.tied:
            self.W_enc = nn.Parameter(self.first_length * self.W_dec.detach().T.contiguous())

    def __getattr__(self, name: str) -> Any:
        # Looked up last, where parameters are too: a tied encoder is a view, not a parameter.
        if name == "W_enc" and self.cfg.tied:
            return self.W_dec.T
        return super().__getattr__(name)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        return torch.relu(self._pre_activations(x))

    def _losses(self, batch: TrainBatch) -> Losses:
        """Squared error and L1 penalty (`"mse"`, `"l1"`)."""
        with torch.no_grad():
            inputs = self._encoder_input(batch.x)
        return relu_losses(self, inputs, batch.target, batch.warm_up * self.cfg.l1_coefficient)
