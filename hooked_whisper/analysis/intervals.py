"""How sure a share or a mean is, from the samples that it was taken over."""

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InterventionError


def share_interval(n_true: int, n: int) -> tuple[float, float]:
    """Where a share lies, with 95 % confidence, after `n_true` of `n`; NaN of none.

    Unlike the bootstrap's it is no point where none or all are true.

    Source: Wilson 1927, the score interval.

    >>> share_interval(0, 36)
    (0.0, 0.0964...)
    """
    if not n:
        return float("nan"), float("nan")
    z2 = 1.959964**2
    middle = (n_true + z2 / 2) / (n + z2)
    half = (z2 * (n_true * (n - n_true) / n + z2 / 4)) ** 0.5 / (n + z2)
    low = 0.0 if n_true == 0 else middle - half
    return low, 1.0 if n_true == n else middle + half


def bootstrap_weights(
    n: int, n_resamples: int = 2000, seed: int = 0
) -> Float[Tensor, "resample sample"]:
    """How much each of `n` samples counts in each bootstrap: rows that sum to 1.

    Source: Efron 1979.

    >>> bootstrap_weights(3, 1000).sum(dim=1).allclose(torch.ones(1000))
    True
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(n, (n_resamples, n), generator=generator)
    weights = torch.zeros(n_resamples, n)
    return weights.scatter_add_(1, draws, torch.ones(draws.shape) / n)


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
    weights = bootstrap_weights(len(values), n_resamples, seed)
    means = (weights @ values.reshape(len(values), -1)).nan_to_num(nan=torch.inf)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2]), dim=0)
    shape, exists = values.shape[1:], ~values[0].isnan()
    nan = torch.full(shape, torch.nan)
    return (
        torch.where(exists, low.view(shape), nan),
        torch.where(exists, high.view(shape), nan),
    )
