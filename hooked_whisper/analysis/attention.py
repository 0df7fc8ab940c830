"""What an attention head does, from its pattern: one number for each query or each key.

Every function takes any number of batch axes, the recordings first, in any
floating dtype, and computes in float32. Three arguments are common to all:

    n_positions   encoder positions of each recording that hold speech,
                  `mel.n_positions`; an integer, or a tensor of the first batch
                  axis. Only these count, as queries and as keys, and each row
                  is divided by what it has on them: what comes out is what the
                  cut-out pattern gives. None counts every position.
    n_tokens      decoder positions that count, for the decoder's patterns. In
                  cross-attention queries are tokens and keys are encoder
                  positions: pass both.
    all_frames    count every encoder position, the padding too.

Queries that do not count come out as NaN, which `nanmean` leaves out.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.masking import Count, read_rows, share_cut_off
from hooked_whisper.errors import InputError

Rows = Float[Tensor, "*batch query key"]
Scores = Float[Tensor, "*batch query"]


def attention_entropy(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """How widely each query spreads its attention, in nats.

    0 when a query reads one key; ln(key) when it reads all alike (7.313
    for Whisper's 1500 audio frames: divide by it to compare lengths).

    Args:
        pattern: Probabilities from a `hook_pattern`; every row over
            `key` sums to 1, and masked keys hold 0.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Returns:
        float32 entropies. Gradients stay finite at masked keys.

    Raises:
        InputError: A row holds a negative or NaN, or does not sum to 1; counts that do not fit.

    Source: Shannon 1948.

    >>> attention_entropy(torch.full((1, 4), 0.25))
    tensor([1.3863])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames)
    return rows.by_query(row_entropy(rows.p))


def mean_distance(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """How far from itself each query looks, in positions: the mean of |key - query|.

    An encoder position is 0.02 s, a decoder position a token. Of self-attention;
    the rest is as in `attention_entropy`.

    >>> mean_distance(torch.full((3, 3), 1 / 3))
    tensor([1.0000, 0.6667, 1.0000])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(row_distance(rows.p))


def diagonal_width(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """How wide the band is in which each query looks, in positions.

    The standard deviation of key - query around the row's own mean: a head
    that looks at exactly one key has width 0, however far away this is. How
    much a head would lose by being held to ±k positions is another question:
    see `diagonal_half_width`. Arguments are `mean_distance`'s.

    >>> diagonal_width(torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    tensor([1., 0., 0.])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(row_width(rows.p))


def diagonal_half_width(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    share: float = 0.9,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """The least k such that keys within ±k positions hold a share of each query's attention.

    What a restriction to ±k positions would leave. Has no gradient. `share` is over 0 and up
    to 1; the other arguments are `mean_distance`'s.

    Source: the restriction is Reid 2023's.

    >>> diagonal_half_width(torch.eye(3).roll(1, dims=0))
    tensor([2., 1., 1.])
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share}; it must be over 0 and at most 1, for instance 0.9.")
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(row_half_width(rows.p, share))


def previous_token_score(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """The share of each query's attention on the position before it.

    NaN for the first query, which has none before it. Arguments are `mean_distance`'s.

    >>> previous_token_score(torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    tensor([ nan, 0.7500])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(previous_key_mass(rows.p))


def current_token_score(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """The share of each query's attention on its own position.

    Arguments are `mean_distance`'s.

    >>> current_token_score(torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    tensor([1.0000, 0.2500])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(own_key_mass(rows.p))


def start_token_score(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """The share of each query's attention on the first key.

    In the decoder this is `<|startoftranscript|>`, which the first query can
    only look at; in the encoder and in cross-attention the first 20 ms.
    Arguments are `attention_entropy`'s.

    >>> start_token_score(torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    tensor([1.0000, 0.7500])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames)
    return rows.by_query(first_key_mass(rows.p))


def attention_received(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch key"]:
    """The share of all attention that each key gets: the mean over the queries.

    Adds up to 1 over the keys that count; the others come out as NaN. Arguments
    are `attention_entropy`'s.

    >>> attention_received(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.7500, 0.2500])
    """
    return read_rows(pattern, n_positions, n_tokens, all_frames=all_frames).received()


def share_on_padding(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """The share of each query's attention on encoder positions after the speech.

    What the other statistics cut off by default.

    Args:
        pattern: Attention to encoder positions: the encoder's own, or cross-attention.
        n_positions, n_tokens: What counts; see the module.
        all_frames: Also tell of the queries in the padding.

    >>> share_on_padding(torch.full((4, 4), 0.25), n_positions=3)
    tensor([0.2500, 0.2500, 0.2500,    nan])
    """
    return share_cut_off(pattern, n_positions, n_tokens, all_frames=all_frames)


# One number for each row; the rows are checked and cut already. `head_table` uses them too.


def row_entropy(p: Rows) -> Scores:
    """-Σ p ln p, in nats; 0 ln 0 is 0, and has the gradient 0."""
    return 0.0 - (p * p.where(p > 0, 1.0).log()).sum(dim=-1)


def row_distance(p: Rows) -> Scores:
    """Σ p |key - query|, in positions."""
    offsets = _positions(p, -1) - _positions(p, -2)[:, None]
    return (p * offsets.abs()).sum(dim=-1)


def row_width(p: Rows) -> Scores:
    """The standard deviation of key - query, in positions."""
    keys = _positions(p, -1)
    # Around the mean, not as a difference of squares: these lose a narrow diagonal to rounding.
    spread = (keys - (p @ keys)[..., None]).square()
    variance = (p * spread).sum(dim=-1)
    wide = variance > 0  # the root's gradient is infinite at 0
    return variance.where(wide, 1.0).sqrt().where(wide, 0.0)


def row_half_width(p: Rows, share: float) -> Scores:
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


def previous_key_mass(p: Rows) -> Scores:
    """The share on key q - 1; NaN for the first query, which has none."""
    nothing = torch.full_like(p[..., :1, 0], torch.nan)
    return torch.cat([nothing, p.diagonal(offset=-1, dim1=-2, dim2=-1)], dim=-1)


def own_key_mass(p: Rows) -> Scores:
    """The share on key q."""
    return p.diagonal(dim1=-2, dim2=-1)


def first_key_mass(p: Rows) -> Scores:
    """The share on key 0."""
    return p[..., 0]


SELF_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_distance": row_distance,
    "diagonal_width": row_width,
    "half_width_90": lambda p: row_half_width(p, 0.9),
    "previous_token": previous_key_mass,
    "current_token": own_key_mass,
}
"""What the table of all heads holds of self-attention only, by column."""


def _positions(p: Tensor, axis: int) -> Float[Tensor, "position"]:
    return torch.arange(p.shape[axis], dtype=torch.float32, device=p.device)
