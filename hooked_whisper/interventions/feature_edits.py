"""Setting, scaling and adding to single values: latents of an autoencoder, neurons, heads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hooked_whisper.errors import InterventionError
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.edits import HookPair, SiteEdit
from hooked_whisper.interventions.sites import Part, Site
from hooked_whisper.model.whisper import HookedWhisper


@dataclass(frozen=True, eq=False)
class _WithNumber(SiteEdit):
    """An edit by one number."""

    site: Site

    def _number(self) -> float | int:
        raise NotImplementedError

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        if not torch.isfinite(torch.tensor(float(self._number()))):
            raise InterventionError(
                f"{type(self).__name__} is given {self._number()}; it must be a finite number."
            )
        return super().hooks(model)


@dataclass(frozen=True, eq=False)
class Clamp(_WithNumber):
    """Set values to a number, whatever they were: a latent that is not active becomes so.

    Args:
        site: Which values, for instance `Site(name, latent=7, window_s=(0.5, 1.0))`.
        to: The number.

    Source: feature clamping in Templeton et al. 2024, "Scaling Monosemanticity".
    """

    to: float | int = 0.0

    def _number(self) -> float | int:
        return self.to

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        return torch.full_like(old, self.to)


@dataclass(frozen=True, eq=False)
class Scale(_WithNumber):
    """Multiply values with a number; what is 0 stays 0.

    Args:
        site: Which values.
        factor: The number; 0 ablates, negative turns them round.
    """

    factor: float | int = 1.0

    def _number(self) -> float | int:
        return self.factor

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        return old * self.factor


@dataclass(frozen=True, eq=False)
class Add(_WithNumber):
    """Add a number to values; for a vector of its own for each place, see `Steer`.

    Args:
        site: Which values.
        amount: The number.
    """

    amount: float | int = 0.0

    def _number(self) -> float | int:
        return self.amount

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        return old + self.amount
