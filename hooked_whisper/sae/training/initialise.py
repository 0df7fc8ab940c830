"""What the first activations tell an autoencoder before it learns: their scale and their middle."""

import torch
from jaxtyping import Float
from torch import Tensor


def geometric_median(
    x: Float[Tensor, "batch width"], *, max_steps: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " width"]:
    """The point whose distances to all vectors have the least sum.

    Few far vectors move it little, unlike the mean.

    Args:
        x: Vectors.
        max_steps: Steps of the iteration at most.
        tolerance: Length of the step at which it stops, as a share of the mean distance.

    Source: Weiszfeld 1937.

    >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round(decimals=3)
    tensor([1.])
    """
    points = x.detach().double()
    median = points.mean(dim=0)
    for _ in range(max_steps):
        distance = (points - median).norm(dim=-1)
        weight = 1 / distance.clamp_min(1e-12 + 1e-9 * float(distance.mean()))
        moved = weight @ points / weight.sum()
        step = (moved - median).norm()
        median = moved
        if step <= tolerance * distance.mean():
            break
    return median.to(x.dtype)


def find_scale(x: Float[Tensor, "batch width"]) -> float:
    """What to multiply activations with so that their mean length is the root of their width.

    1 for activations that are all 0.
    """
    mean_length = float(x.detach().norm(dim=-1).double().mean())
    return x.shape[-1] ** 0.5 / mean_length if mean_length > 0 else 1.0


def first_b_dec(kind: str, target: Float[Tensor, "batch d_out"]) -> Float[Tensor, " d_out"]:
    """The decoder's bias at first.

    Args:
        kind: One of `TrainingConfig.INITS`.
        target: What is to be reconstructed.
    """
    if kind == "geometric_median":
        return geometric_median(target)
    return target.mean(dim=0) if kind == "mean" else torch.zeros_like(target[0])
