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

import torch  # noqa: F401  (for the doctests)
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis import scores
from hooked_whisper.analysis.masking import Count, read_rows, share_cut_off
from hooked_whisper.errors import InputError


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
    return rows.by_query(scores.entropy(rows.p))


def mean_distance(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """How far from itself each query looks, in positions: the mean of |key - query|.

    An encoder position is 0.02 s, a decoder position a token.

    Args:
        pattern: Self-attention.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Raises:
        InputError: As `attention_entropy`; cross-attention, where query and key have no distance.

    >>> mean_distance(torch.full((3, 3), 1 / 3))
    tensor([1.0000, 0.6667, 1.0000])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(scores.distance(rows.p))


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
    see `diagonal_half_width`.

    Args:
        pattern: Self-attention.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Raises:
        InputError: As `mean_distance`.

    >>> diagonal_width(torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    tensor([1., 0., 0.])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(scores.width(rows.p))


def diagonal_half_width(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    share: float = 0.9,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """The least k such that keys within ±k positions hold a share of each query's attention.

    What a restriction to ±k positions would leave. Has no gradient.

    Args:
        pattern: Self-attention.
        share: How much of the attention, over 0 and up to 1.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Raises:
        InputError: As `mean_distance`; an impossible share.

    Source: the restriction is Reid 2023's.

    >>> diagonal_half_width(torch.eye(3).roll(1, dims=0))
    tensor([2., 1., 1.])
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share}; it must be over 0 and at most 1, for instance 0.9.")
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(scores.half_width(rows.p, share))


def previous_token_score(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """The share of each query's attention on the position before it.

    NaN for the first query, which has none before it.

    Args:
        pattern: Self-attention.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Raises:
        InputError: As `mean_distance`.

    >>> previous_token_score(torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    tensor([ nan, 0.7500])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(scores.on_previous(rows.p))


def current_token_score(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch query"]:
    """The share of each query's attention on its own position.

    Args:
        pattern: Self-attention.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Raises:
        InputError: As `mean_distance`.

    >>> current_token_score(torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    tensor([1.0000, 0.2500])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, same_axis=True)
    return rows.by_query(scores.on_current(rows.p))


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

    Args:
        pattern: Any attention.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Raises:
        InputError: As `attention_entropy`.

    >>> start_token_score(torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    tensor([1.0000, 0.7500])
    """
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames)
    return rows.by_query(scores.on_start(rows.p))


def attention_received(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch key"]:
    """The share of all attention that each key gets: the mean over the queries.

    Adds up to 1 over the keys that count; the others come out as NaN.

    Args:
        pattern: Any attention.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Raises:
        InputError: As `attention_entropy`.

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

    Raises:
        InputError: As `attention_entropy`.

    >>> share_on_padding(torch.full((4, 4), 0.25), n_positions=3)
    tensor([0.2500, 0.2500, 0.2500,    nan])
    """
    return share_cut_off(pattern, n_positions, n_tokens, all_frames=all_frames)
