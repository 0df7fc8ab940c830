"""JumpReLU autoencoders: each latent has a threshold of its own, under which it is 0."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.base import SAE, Losses, SAEConfig, TrainBatch
from hooked_whisper.sae.losses import squared_error


@dataclass(frozen=True)
class JumpReLUConfig(SAEConfig):
    """A JumpReLU autoencoder; names as in SAELens.

    Args:
        jumprelu_init_threshold: Where every threshold begins.
        jumprelu_bandwidth: Width of the kernel that gives thresholds a gradient.
        l0_coefficient: Weight of the number of active latents.
        pre_act_loss_coefficient: Weight of the loss that lifts dead latents'
            pre-activations to their thresholds (Anthropic, January 2025); None or 0 is none.
    """

    architecture: ClassVar[str] = "jumprelu"
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        "jumprelu_init_threshold",
        "l0_coefficient",
        "pre_act_loss_coefficient",
    )

    jumprelu_init_threshold: float | int = 0.01
    jumprelu_bandwidth: float | int = 0.05
    l0_coefficient: float | int = 1.0
    pre_act_loss_coefficient: float | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jumprelu_bandwidth <= 0:
            raise SAEConfigError(
                f"jumprelu_bandwidth is {self.jumprelu_bandwidth}; it must be over 0."
            )


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel: 1 within half a bandwidth of the threshold."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


class _JumpReLU(torch.autograd.Function):
    """z H(z - t); d/dt is -(t / e) K((z - t) / e), with bandwidth e and kernel K."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = _near(pre, threshold, ctx.bandwidth).mul_(gradient)
        t_grad = near.flatten(0, -2).sum(dim=0) * (-threshold / ctx.bandwidth)
        return gradient * (pre > threshold), t_grad, None


class _Step(torch.autograd.Function):
    """H(z - t), summed over latents; d/dt is -(1 / e) K((z - t) / e)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).sum(dim=-1).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = _near(pre, threshold, ctx.bandwidth)
        return None, -(gradient @ near) / ctx.bandwidth, None


class JumpReLUSAE(SAE):
    """Latents are the pre-activations over their thresholds.

        f = z H(z - t),  z = (x - b_dec) W_enc + b_enc
        loss = |x - recons|^2 + l0 * sum_i H(z_i - t_i)

    H is the step function. Its gradient is 0 nearly everywhere; thresholds get the
    straight-through estimate with a rectangle kernel, encoders none from the penalty.

    Source: Rajamanoharan et al. 2024, "Jumping ahead", sections 2 and 3. Their threshold
    is exp of a parameter; here it is the parameter, kept at 0 or more, as in SAELens.
    """

    Config = JumpReLUConfig
    cfg: JumpReLUConfig

    threshold: Float[Tensor, " latent"]

    def __init__(self, cfg: JumpReLUConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(cfg, generator)
        self.threshold = nn.Parameter(torch.full((cfg.d_sae,), float(cfg.jumprelu_init_threshold)))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        pre = self._pre_activations(x)
        return torch.relu(pre) * (pre > self.threshold)

    def _losses(self, batch: TrainBatch) -> Losses:
        """Squared error, L0 penalty, pre-activation loss (`"mse"`, `"l0"`, `"pre_act"`)."""
        bandwidth = self.cfg.jumprelu_bandwidth
        pre = self._encoder_input(batch.x) @ self.W_enc + self.b_enc
        threshold = self.threshold.to(pre.dtype)
        latents: Tensor = _JumpReLU.apply(pre, threshold, bandwidth)
        recons = self.decode(latents)
        l0 = _Step.apply(pre, threshold, bandwidth).mean()
        parts = {
            "mse": squared_error(recons, batch.target),
            "l0": batch.warm_up * self.cfg.l0_coefficient * l0,
        }
        dead = batch.dead
        if dead is not None and self.cfg.pre_act_loss_coefficient and bool(dead.any()):
            below = (threshold - pre).relu() * (dead * self.W_dec.norm(dim=-1))
            parts["pre_act"] = self.cfg.pre_act_loss_coefficient * below.sum(dim=-1).mean()
        return Losses.of(parts, recons, (latents.detach() != 0).any(dim=0), l0)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Unit decoder rows, and thresholds of at least 0."""
        super().constrain_()
        self.threshold.clamp_(min=0)
