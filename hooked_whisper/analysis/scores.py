"""One number for each row of attention; the rows are checked and cut already.

Shared by the functions of `attention` and by the table of all heads.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "*batch query key"]
Scores = Float[Tensor, "*batch query"]


def entropy(p: Rows) -> Scores:
    """-Σ p ln p, in nats; 0 ln 0 is 0, and has the gradient 0."""
    return 0.0 - (p * p.where(p > 0, 1.0).log()).sum(dim=-1)


def distance(p: Rows) -> Scores:
    """Σ p |key - query|, in positions."""
    return (p * _offsets(p).abs()).sum(dim=-1)


def width(p: Rows) -> Scores:
    """The standard deviation of key - query, in positions."""
    keys = _positions(p, -1)
    # Around the mean, not as a difference of squares: these lose a narrow diagonal to rounding.
    spread = (keys - (p @ keys)[..., None]).square()
    variance = (p * spread).sum(dim=-1)
    wide = variance > 0  # the root's gradient is infinite at 0
    return variance.where(wide, 1.0).sqrt().where(wide, 0.0)


def half_width(p: Rows, share: float) -> Scores:
    """The least k such that keys within ±k positions of the query hold a share of the row."""
    n_query, n_key = p.shape[-2:]
    up_to = p.detach().cumsum(dim=-1)
    query = torch.arange(n_query, device=p.device).expand(p.shape[:-1])
    low = torch.zeros_like(query)
    high = torch.full_like(query, max(n_query, n_key))
    for _ in range(max(n_query, n_key).bit_length() + 1):
        k = (low + high) // 2
        first, last = query - k, (query + k).clamp(max=n_key - 1)
        upper = up_to.gather(-1, last[..., None])[..., 0]
        lower = up_to.gather(-1, (first - 1).clamp(min=0, max=n_key - 1)[..., None])[..., 0]
        enough = upper - lower.where(first > 0, 0.0) >= share - 1e-6
        low, high = torch.where(enough, low, k + 1).minimum(high), torch.where(enough, k, high)
    return high.float()


def on_previous(p: Rows) -> Scores:
    """The share on key q - 1; NaN for the first query, which has none."""
    nothing = torch.full_like(p[..., :1, 0], torch.nan)
    return torch.cat([nothing, p.diagonal(offset=-1, dim1=-2, dim2=-1)], dim=-1)


def on_current(p: Rows) -> Scores:
    """The share on key q."""
    return p.diagonal(dim1=-2, dim2=-1)


def on_start(p: Rows) -> Scores:
    """The share on key 0."""
    return p[..., 0]


def place(p: Rows, *, by: str) -> Scores:
    """Where each query looks, in positions: the mean under its row, or the row's largest."""
    if by == "argmax":
        return p.argmax(dim=-1).float()
    return p @ _positions(p, -1)


def moves_on(places: Scores, least_step: float = 0.5) -> Float[Tensor, "*batch"]:
    """The share of steps from one place to the next that go on, less that which go back."""
    steps = places.diff(dim=-1)
    signs = steps.sign().where(steps.abs() >= least_step, 0.0 * steps)  # NaN stays NaN
    return signs.nanmean(dim=-1)


SELF_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_distance": distance,
    "diagonal_width": width,
    "half_width_90": lambda p: half_width(p, 0.9),
    "previous_token": on_previous,
    "current_token": on_current,
}
"""What the table of all heads holds of self-attention only, by column."""


def _positions(p: Tensor, axis: int) -> Float[Tensor, "position"]:
    return torch.arange(p.shape[axis], dtype=torch.float32, device=p.device)


def _offsets(p: Tensor) -> Float[Tensor, "query key"]:
    return _positions(p, -1) - _positions(p, -2)[:, None]
