"""What a training adds to Adam: schedules, dead latents, the scale and the middle of the data."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.base import SAE

IN_LATENT_UNITS = ("b_enc", "b_gate", "b_mag", "threshold", "topk_threshold")
"""Weights that are added to latents or compared with them."""
UNTOUCHED = ("W_dec", "r_mag")
"""Directions and ratios, which no scale changes."""


def lr_share(
    step: int, n_steps: int, warm_up: float | int = 0.0, decay: float | int = 0.0
) -> float:
    """How much of the learning rate a step, from 0, gets: a linear rise, then a linear fall.

    They take these shares of the steps. No step gets 0.

    >>> [lr_share(step, 6, warm_up=0.5, decay=0.5) for step in range(6)]
    [0.3333333333333333, 0.6666666666666666, 1.0, 1.0, 0.6666666666666666, 0.3333333333333333]
    """
    left = n_steps - step
    n_decay = round(decay * n_steps)
    return min(warm_up_share(step, n_steps, warm_up), left / n_decay if n_decay else 1.0)


def warm_up_share(step: int, n_steps: int, warm_up: float | int) -> float:
    """How far a linear rise over the first share of the steps has come, 0 to 1.

    >>> [warm_up_share(step, 4, 0.5) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    n_warm_up = round(warm_up * n_steps)
    return min(1.0, (step + 1) / n_warm_up) if n_warm_up else 1.0


class DeadLatents:
    """Counts, for each latent, the activations since it was last active.

    Args:
        d_sae: Number of latents.
        after_vectors: From how many on a latent counts as dead.
    """

    def __init__(self, d_sae: int, after_vectors: int) -> None:
        self.after_vectors = after_vectors
        self.n_since_active: Int64[Tensor, " latent"] = torch.zeros(d_sae, dtype=torch.int64)

    def update(self, active: Bool[Tensor, " latent"], n_vectors: int) -> None:
        """Count a batch of so many vectors, in which some latents were active."""
        self.n_since_active.add_(n_vectors).masked_fill_(active, 0)

    @property
    def is_dead(self) -> Bool[Tensor, " latent"]:
        """Which latents count as dead."""
        return self.n_since_active >= self.after_vectors

    def share(self, n_vectors: int) -> float | None:
        """Share of the latents that count as dead; None after too few vectors for any to be."""
        return None if n_vectors < self.after_vectors else float(self.is_dead.float().mean())

    def never_active(self, n_vectors: int) -> float:
        """Share of the latents that were active on none of all vectors so far."""
        return float((self.n_since_active >= n_vectors).float().mean())


def geometric_median(
    x: Float[Tensor, "batch width"],
) -> Float[Tensor, " width"]:
    """The point whose distances to all vectors have the least sum.

    Few far vectors move it little, unlike the mean.

    Source: Weiszfeld 1937.

    >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round(decimals=3)
    tensor([1.])
    """
    points = x.detach().double()
    median = points.mean(dim=0)
    for _ in range(100):
        distance = (points - median).norm(dim=-1)
        weight = 1 / distance.clamp_min(1e-12 + 1e-9 * float(distance.mean()))
        moved = weight @ points / weight.sum()
        step = (moved - median).norm()
        median = moved
        if step <= 1e-6 * distance.mean():
            break
    return median.to(x.dtype)


def find_scale(x: Float[Tensor, "batch width"]) -> float:
    """What to multiply activations with so that their mean length is the root of their width."""
    mean_length = float(x.detach().norm(dim=-1).double().mean())
    return x.shape[-1] ** 0.5 / mean_length if mean_length > 0 else 1.0


def longest_norm(x: Float[Tensor, "batch width"], multiple: float | int) -> float:
    """The length over which vectors count as massive: so many times the batch's median."""
    return float(multiple * x.detach().norm(dim=-1).median())


def without_massive(
    x: Float[Tensor, "batch d_in"],
    target: Float[Tensor, "batch d_out"] | None,
    how: str | None,
    longest: float,
) -> tuple[Float[Tensor, "left d_in"], Float[Tensor, "left d_out"] | None]:
    """A batch as `TrainingConfig.massive_activations` wants it.

    A batch of massive vectors alone is taken as it is, so that a training ends as it should.
    """
    lengths = x.norm(dim=-1, keepdim=True)
    if how == "clip":
        return x * (longest / lengths).clamp(max=1), target
    usual = lengths[:, 0] <= longest
    if how != "exclude" or bool(usual.all()) or not bool(usual.any()):
        return x, target
    return x[usual], None if target is None else target[usual]


def first_b_dec(kind: str, target: Float[Tensor, "batch d_out"]) -> Float[Tensor, " d_out"]:
    """The decoder's bias at first, in one of the ways of `TrainingConfig.INITS`."""
    if kind == "geometric_median":
        return geometric_median(target)
    return target.mean(dim=0) if kind == "mean" else torch.zeros_like(target[0])


@torch.no_grad()
def fold_scale_(sae: SAE, scale_in: float, scale_out: float) -> None:
    """Make an autoencoder of scaled activations one of the activations as they are.

    All activation functions here are positively homogeneous, so that latents can be
    brought into the units of what is written: decoder rows keep their lengths, tied
    encoders stay tied, and latents come out `1 / scale_out` times as large.

    Args:
        sae: Trained on `scale_in * x` to give `scale_out * target`.
        scale_in: What the inputs were multiplied with.
        scale_out: What the targets were multiplied with; the same but for transcoders.
    """
    named = {**dict(sae.named_parameters()), **dict(sae.named_buffers())}
    known = ("W_enc", "b_dec", "W_skip", "log_threshold", *IN_LATENT_UNITS, *UNTOUCHED)
    if unknown := [name for name in named if name not in known]:
        raise TrainingError(
            f"it is not known how {unknown[0]!r} of a {type(sae).__name__} changes with the scale "
            "of the activations. Train with normalize=False."
        )
    for name, value in named.items():
        if name in ("W_enc", "W_skip"):
            value.mul_(scale_in / scale_out)
        elif name == "log_threshold":
            value.sub_(torch.tensor(scale_out).log().to(value))
        elif name == "b_dec" or name in IN_LATENT_UNITS:
            value.div_(scale_out)


def seed_of_step(seed: int, step: int) -> int:
    """A seed of one step, far from those of other steps and seeds."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63
