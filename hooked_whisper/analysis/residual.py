"""What a residual stream looks like: sizes, tails, directions, how many dimensions are in use.

Every function takes `[*batch pos d_model]`, the recordings first, in any
floating dtype, and computes in float32. `n_positions` says how many positions
of each recording hold speech (`mel.n_positions`, or the number of tokens for
the decoder); only these count unless `all_frames`. Functions of single
vectors give one number a position, NaN where it does not count; the others
pool the vectors of all recordings, and refuse (`InputError`) NaN and infinity
in them, counts that do not fit, and streams in which nothing counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.analysis.masking import Count, position_mask
from hooked_whisper.analysis.moments import Histogram
from hooked_whisper.errors import InputError, check_count, check_number

Per = Literal["all", "vector", "dimension"]


@dataclass(frozen=True)
class OutlierDimensions:
    """Dimensions that are far larger than the others, the largest first.

    Args:
        dimensions: Their places on d_model.
        rms: Root mean square of each, over the vectors.
        times: The same in units of the median dimension's.
    """

    dimensions: Int[Tensor, "found"]
    rms: Float[Tensor, "found"]
    times: Float[Tensor, "found"]


def speech_vectors(
    resid: Float[Tensor, "*batch pos d_model"],
    n_positions: Count | None = None,
    *,
    all_frames: bool = False,
) -> Float[Tensor, "vector d_model"]:
    """The vectors that count, of all recordings, in float32.

    >>> speech_vectors(torch.zeros(2, 5, 8), torch.tensor([3, 1])).shape
    torch.Size([4, 8])
    """
    counts = position_mask(resid, n_positions, all_frames=all_frames)
    vectors = resid.flatten(0, -2) if counts is None else resid[counts]
    if not len(vectors):
        given = n_positions.tolist() if isinstance(n_positions, Tensor) else n_positions
        raise InputError(
            f"no position counts: the stream is {tuple(resid.shape)} and n_positions {given}. "
            "Pass all_frames=True to count the padding."
        )
    if not bool((finite := vectors.isfinite()).all()):
        row, dimension = (~finite).nonzero()[0].tolist()
        raise InputError(
            f"the stream holds {float(vectors[row, dimension])} at dimension {dimension}, and "
            f"{int((~finite).sum())} such values in all. In float16, run the model in float32."
        )
    return vectors.float()


def residual_norm(
    resid: Float[Tensor, "*batch pos d_model"],
    n_positions: Count | None = None,
    *,
    all_frames: bool = False,
) -> Float[Tensor, "*batch pos"]:
    """The length of each vector (L2).

    >>> residual_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), n_positions=1)
    tensor([5., nan])
    """
    norm = resid.float().norm(dim=-1)
    counts = position_mask(resid, n_positions, all_frames=all_frames)
    return norm if counts is None else norm.where(counts, torch.nan)


def hoyer_sparsity(
    resid: Float[Tensor, "*batch pos d_model"],
    n_positions: Count | None = None,
    *,
    all_frames: bool = False,
) -> Float[Tensor, "*batch pos"]:
    """How few dimensions carry each vector: 1 is one of them, 0 all alike.

    (√n - |x|₁ / |x|₂) / (√n - 1) for n dimensions; 0.21 for n = 384 normal
    random numbers. NaN for a vector of zeros.

    Source: Hoyer 2004, "Non-negative Matrix Factorization with Sparseness Constraints".

    >>> hoyer_sparsity(torch.tensor([[0.0, 2.0, 0.0, 0.0], [1.0, -1.0, 1.0, 1.0]]))
    tensor([1., 0.])
    """
    x, root = resid.float(), math.sqrt(resid.shape[-1])
    if root == 1:
        raise InputError("the stream has 1 dimension; sparsity needs at least 2.")
    sparsity = (root - x.abs().sum(dim=-1) / x.norm(dim=-1)) / (root - 1)
    counts = position_mask(resid, n_positions, all_frames=all_frames)
    return sparsity if counts is None else sparsity.where(counts, torch.nan)


def share_below(
    resid: Float[Tensor, "*batch pos d_model"],
    threshold: float | int,
    n_positions: Count | None = None,
    *,
    of_rms: bool = False,
    all_frames: bool = False,
) -> float:
    """The share of numbers nearer to 0 than a threshold: how sparse the stream is.

    Args:
        threshold: What |x| is to be under.
        n_positions, all_frames: What counts; see the module.
        of_rms: Take the threshold in units of the stream's root mean square,
            so that streams of different size compare. Normal random numbers
            have 0.080 under 0.1.

    >>> share_below(torch.tensor([[0.0, 1.0, -0.1, 4.0]]), 0.5)
    0.5
    """
    if not threshold > 0:
        raise InputError(f"threshold is {threshold}; it must be over 0.")
    x = speech_vectors(resid, n_positions, all_frames=all_frames)
    limit = threshold * x.square().mean().sqrt() if of_rms else threshold
    return float((x.abs() < limit).float().mean())


def kurtosis(
    resid: Float[Tensor, "*batch pos d_model"],
    n_positions: Count | None = None,
    *,
    per: Per = "all",
    all_frames: bool = False,
) -> Float[Tensor, "*which"]:
    """How heavy the tails are: the excess kurtosis, 0 for a normal distribution.

    m₄ / m₂² - 3 with central moments m of the population.

    Args:
        n_positions, all_frames: What counts; see the module.
        per: `"all"`: one number for all values. `"dimension"`: one for each
            dimension, over the vectors. `"vector"`: one for each vector that
            counts, over its dimensions: it is high where a few dimensions
            stand out, which marks a privileged basis.

    Returns:
        NaN where nothing varies.

    Source: Elhage et al. 2023, "Privileged Bases in the Transformer Residual Stream".

    >>> kurtosis(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    tensor(-2.)
    """
    if per not in get_args(Per):
        raise InputError(f"per is {per!r}; it can be one of {list(get_args(Per))}.")
    x = speech_vectors(resid, n_positions, all_frames=all_frames)
    if per == "all":
        x = x.flatten()
    along = -1 if per == "vector" else 0
    x = x - x.mean(dim=along, keepdim=True)
    # In units of the largest deviation: fourth powers would overflow or vanish.
    x = x / x.abs().amax(dim=along, keepdim=True)
    return x.pow(4).mean(dim=along) / x.square().mean(dim=along).square() - 3


def participation_ratio(
    resid: Float[Tensor, "*batch pos d_model"],
    n_positions: Count | None = None,
    *,
    all_frames: bool = False,
) -> float:
    """How many directions the vectors use: (Σλ)² / Σλ² of their covariance's eigenvalues.

    1 where all lie on a line, d_model where they spread alike in all
    directions; never more than the number of vectors less one. NaN where
    nothing varies.

    Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".

    >>> round(participation_ratio(torch.eye(3) - 1 / 3), 4)
    2.0
    """
    x = speech_vectors(resid, n_positions, all_frames=all_frames)
    x = x - x.mean(dim=0)
    x = x / x.abs().max()
    # Trace and Frobenius norm of the covariance give the sums without its eigenvalues.
    covariance = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    return float(covariance.trace().square() / covariance.square().sum())


def outlier_dimensions(
    resid: Float[Tensor, "*batch pos d_model"],
    n_positions: Count | None = None,
    *,
    times: float | int = 6.0,
    all_frames: bool = False,
) -> OutlierDimensions:
    """The dimensions whose root mean square is many times the median dimension's.

    Args:
        n_positions, all_frames: What counts; see the module.
        times: How many times; 0 gives every dimension, ordered.

    Source: the phenomenon is Dettmers et al. 2022's (outlier features) and Sun et al. 2024's
        (massive activations), whose thresholds are those of language models.
    """
    check_number("times", times, InputError, 0)
    x = speech_vectors(resid, n_positions, all_frames=all_frames)
    rms = x.square().mean(dim=0).sqrt()
    relative = rms / rms.median()
    order = relative.argsort(descending=True)
    found = order[relative[order] >= times]
    return OutlierDimensions(found, rms[found], relative[found])


def residual_histogram(
    resid: Float[Tensor, "*batch pos d_model"],
    n_positions: Count | None = None,
    *,
    n_bins: int = 100,
    low: float | int | None = None,
    high: float | int | None = None,
    all_frames: bool = False,
) -> Histogram:
    """How the numbers of a stream are distributed.

    Args:
        n_positions, all_frames: What counts; see the module.
        n_bins: Bins of one width.
        low, high: The first and last edge; None is the least and the largest value.

    >>> residual_histogram(torch.tensor([[0.0, 0.1, 0.9, 1.0]]), n_bins=2).counts
    tensor([2, 2])
    """
    x = speech_vectors(resid, n_positions, all_frames=all_frames).flatten()
    check_count("n_bins", n_bins, 1, InputError)
    for name, edge in (("low", low), ("high", high)):
        if edge is not None:
            check_number(name, edge, InputError)
    low = float(x.min() if low is None else low)
    high = float(x.max() if high is None else high)
    if not low <= high:
        raise InputError(
            f"n_bins is {n_bins} from {low:g} to {high:g}; at least 1 bin, and low under high."
        )
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, n_bins + 1, device=x.device)
    return Histogram.of(x, edges)


def norm_by_layer(
    streams: Sequence[Tensor] | Float[Tensor, "layer *batch pos d_model"],
    n_positions: Count | None = None,
    *,
    all_frames: bool = False,
) -> Float[Tensor, "layer"]:
    """The mean length of a vector at each layer.

    Args:
        streams: The stream at each layer, `[*batch pos d_model]`:
            `cache.accumulated_resid(stack="encoder")`, or a list.
        n_positions, all_frames: What counts; see the module.
    """
    _check_streams(streams)
    vectors = (speech_vectors(stream, n_positions, all_frames=all_frames) for stream in streams)
    return torch.stack([of_layer.norm(dim=-1).mean() for of_layer in vectors])


def cosine_by_layer(
    streams: Sequence[Tensor] | Float[Tensor, "layer *batch pos d_model"],
    n_positions: Count | None = None,
    *,
    centred: bool = False,
    all_frames: bool = False,
) -> Float[Tensor, "layer other_layer"]:
    """How alike the stream's directions are at two layers: cosines, averaged over positions.

    Args:
        streams: As in `norm_by_layer`.
        n_positions, all_frames: What counts; see the module.
        centred: Take the mean vector of each layer off first. A few large
            dimensions, the same at every position, otherwise make everything look alike.
    """
    _check_streams(streams)
    directions = []
    for stream in streams:
        x = speech_vectors(stream, n_positions, all_frames=all_frames)
        x = x - x.mean(dim=0) if centred else x
        directions.append(torch.nn.functional.normalize(x, dim=-1))
    cosines = torch.ones(len(directions), len(directions), device=directions[0].device)
    for i, one in enumerate(directions):
        for j in range(i):
            cosines[i, j] = cosines[j, i] = (one * directions[j]).sum(dim=-1).mean()
    return cosines


def _check_streams(streams: Sequence[Tensor] | Tensor) -> None:
    if not len(streams):
        raise InputError('no streams; pass one a layer: cache.accumulated_resid(stack="encoder").')
    shapes = [tuple(stream.shape) for stream in streams]
    if odd := [i for i, shape in enumerate(shapes) if shape != shapes[0]]:
        raise InputError(
            f"stream {odd[0]} is {shapes[odd[0]]} and stream 0 {shapes[0]}; all of them must be of "
            "one shape, from one run."
        )
