"""Where a mean lies, by drawing what it is of again."""

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InterventionError


def bootstrap_interval(
    values: Float[Tensor, "item *place"],
    level: float | int = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, "*place"], Float[Tensor, "*place"]]:
    """Where the mean over items lies, by the bootstrap's percentiles; NaN where an item is NaN.

    Args:
        values: Numbers of each item, such as a recording.
        level: Share of resampled means between the two bounds.
        n_resamples: Times that the items are drawn again, with replacement.
        seed: Of the draws.

    Returns:
        The lower and the upper bound.

    Source: Efron 1979.
    """
    if not 0 < level < 1:
        raise InterventionError(f"level is {level}; it must lie between 0 and 1.")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (n_resamples, len(values)), generator=generator)
    weights = torch.zeros(n_resamples, len(values))
    weights.scatter_add_(1, draws, torch.ones(draws.shape) / len(values))
    means = (weights @ values.reshape(len(values), -1)).nan_to_num(nan=torch.inf)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2]), dim=0)
    shape, exists = values.shape[1:], ~values[0].isnan()
    nan = torch.full(shape, torch.nan)
    return (
        torch.where(exists, low.view(shape), nan),
        torch.where(exists, high.view(shape), nan),
    )
