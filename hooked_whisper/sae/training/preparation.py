"""How activations are brought to what an autoencoder is trained on, and the result back."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.distributed import ProcessGroup
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.optim import (
    find_scale,
    fold_scale_,
    longest_norm,
    without_massive,
)


class Prepared(NamedTuple):
    """Vectors in float32, where the weights are, scaled; and what to reconstruct, if other."""

    x: Float[Tensor, "vector d_in"]
    target: Float[Tensor, "vector d_out"] | None


class Preparation:
    """The scale of activations and the length over which they are massive, by the first batch.

    Args:
        cfg: How the autoencoder is trained.
        sae: The autoencoder that is trained.
    """

    def __init__(self, cfg: TrainingConfig, sae: SAE) -> None:
        self.cfg, self.sae = cfg, sae
        self.scale_in = self.scale_out = 1.0
        self.longest = 0.0

    def begin(self, x: Tensor, target: Tensor | None, ranks: ProcessGroup) -> None:
        """Find everything by the first batch; the first rank's holds for all."""
        x = self._here(x)
        self.longest = longest_norm(x, self.cfg.max_activation_norm_multiple)
        x, target = self._of_usual_length(x, None if target is None else self._here(target))
        if self.cfg.normalize and not self.cfg.sae.scales_each:
            self.scale_in, self.scale_out = (
                find_scale(x),
                find_scale(x if target is None else target),
            )
        found = (self.scale_in, self.scale_out, self.longest)
        self.scale_in, self.scale_out, self.longest = ranks.broadcast_object(found)

    def __call__(self, x: Tensor, target: Tensor | None) -> Prepared:
        """Vectors as the autoencoder gets them."""
        target = None if target is None else self._here(target)
        x, target = self._of_usual_length(self._here(x), target)
        return Prepared(x * self.scale_in, None if target is None else target * self.scale_out)

    def _here(self, x: Tensor) -> Tensor:
        return x.to(self.sae.device, torch.float32)

    def _of_usual_length(self, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Vectors as `cfg.massive_activations` wants them."""
        how = self.cfg.massive_activations
        if how == "normalize":
            return self.sae._normalize(x), target
        return without_massive(x, target, how, self.longest)

    def undo_(self, sae: SAE) -> None:
        """Make a trained autoencoder one of the activations as they are."""
        if (self.scale_in, self.scale_out) != (1.0, 1.0):
            fold_scale_(sae, self.scale_in, self.scale_out)
        changes: dict[str, Any] = {}
        if self.cfg.normalize and sae.cfg.normalize_activations == "expected_average_only_in":
            changes["normalize_activations"] = "none"  # as it is folded in now
        if self.cfg.massive_activations == "clip":
            changes["max_activation_norm"] = self.longest
        sae.cfg = replace(sae.cfg, **changes)
