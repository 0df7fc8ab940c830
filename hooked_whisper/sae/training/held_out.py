"""Vectors that a training never sees, on which it is judged while it runs."""

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.base import SAE, SAEConfig
from hooked_whisper.sae.evaluation.reconstruction import VarianceMeter
from hooked_whisper.sae.training.sources import check_batch

AT_ONCE = 1024
"""Vectors that are judged together."""


class HeldOut(NamedTuple):
    """What an autoencoder is judged on while it trains.

    Args:
        x: Activations, as they are.
        target: What to reconstruct; None where it is the activations themselves.
    """

    x: Float[Tensor, "vector d_in"]
    target: Float[Tensor, "vector d_out"] | None = None


def held_out_vectors(sae: SAEConfig, given: Any) -> HeldOut:
    """Held-out vectors, once it is sure that an autoencoder can be judged on them.

    Raises:
        TrainingError: Fewer than two, of another width, or not finite.
    """
    paired = sae.is_transcoder
    x, target = check_batch(given, 0, sae.d_in, sae.d_out, paired=paired, of=" that are held out")
    if len(x) < 2:
        raise TrainingError(
            f"{len(x)} vectors are held out, and one alone has no variance. Hold out more "
            "recordings, or none."
        )
    return HeldOut(x, target)


@torch.no_grad()
def judge(
    sae: SAE, x: Float[Tensor, "vector d_in"], target: Float[Tensor, "vector d_out"] | None
) -> dict[str, float | None]:
    """What a line of the log says of held-out vectors, in use and not in training."""
    variance, n_active = VarianceMeter(), torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    for start in range(0, len(x), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        latents = sae.encode(x[part])
        variance.update((x if target is None else target)[part], sae.decode(latents))
        n_active += (latents != 0).sum(dim=0).cpu()
    numbers = variance.numbers()
    numbers |= {"l0": float(n_active.sum()) / max(1, len(x))}
    numbers |= {"never_active": float((n_active == 0).double().mean())}
    names = ("fvu", "fvu_without_massive", "fvu_normalized", "l0", "never_active")
    return {f"held_out_{n}": numbers[n] if isfinite(numbers[n]) else None for n in names}


class Best:
    """The weights with the least held-out FVU so far, and how many lines came since."""

    def __init__(self) -> None:
        self.line: dict[str, Any] | None = None
        self.weights: dict[str, Tensor] = {}
        self.n_worse = 0

    def see(self, line: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take in a line of the log, and the weights at that step."""
        fvu = line["held_out_fvu"]
        least = inf if self.line is None else self.line["held_out_fvu"]
        if fvu is None or fvu >= least:
            self.n_worse += 1
            return
        self.line, self.n_worse = line, 0
        self.weights = {name: value.detach().clone() for name, value in weights.items()}

    def to_dict(self) -> dict[str, Any]:
        """All but the weights, in values that JSON has."""
        return {"line": self.line, "n_worse": self.n_worse}

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> "Best":
        """What a checkpoint kept."""
        best = cls()
        if values is not None:
            best.line, best.n_worse = values["line"], values["n_worse"]
            kept = {name: value for name, value in tensors.items() if name.startswith("best.")}
            best.weights = {name.removeprefix("best."): value for name, value in kept.items()}
        return best
