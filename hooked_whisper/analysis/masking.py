"""Rows of attention: checked, and cut to the positions that count.

A 30 s window of a short recording is mostly padding, which would make up most
of every mean. Where it is known how many positions hold speech, only these
count, as queries and as keys: the rest is cut off, and each row is divided by
what is left, so that a statistic is that of the cut-out pattern. Queries that
do not count come out as NaN, which `torch.nanmean` and pandas leave out.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.errors import InputError

Count = int | Int[Tensor, "..."]
"""How many positions count: a number for all, or one for each recording."""

_SLACK = {torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""How far a row's sum may be from 1: rounding to half precision costs up to 0.002."""


@dataclass(frozen=True)
class Rows:
    """Attention from the queries that count to the keys that count, in float32.

    Args:
        p: Rows that sum to 1; those that do not count hold anything finite.
        counts: Which rows count; None is all of them.
        keys: Which keys count; None is all of them.
        n_query: Queries before cutting.
        n_key: Keys before cutting.
    """

    p: Float[Tensor, "*batch query key"]
    counts: Bool[Tensor, "*batch query"] | None
    keys: Bool[Tensor, "*recordings key"] | None
    n_query: int
    n_key: int

    def by_query(self, values: Float[Tensor, "*batch query"]) -> Float[Tensor, "*batch all_query"]:
        """A value for each query that there was; NaN for those that do not count."""
        if self.counts is not None:
            values = values.where(self.counts, torch.nan)
        return F.pad(values, (0, self.n_query - values.shape[-1]), value=torch.nan)

    def received(self) -> Float[Tensor, "*batch all_key"]:
        """What each key gets, averaged over the queries; NaN for keys that do not count."""
        if self.counts is None:
            got = self.p.mean(dim=-2)
        else:
            weight = self.counts.float() / self.counts.sum(dim=-1, keepdim=True)  # NaN if none
            got = (weight[..., None, :] @ self.p)[..., 0, :]
        if self.keys is not None:
            got = got.where(self.keys, torch.nan)
        return F.pad(got, (0, self.n_key - got.shape[-1]), value=torch.nan)


def read_rows(
    pattern: Tensor,
    n_positions: Count | None = None,
    n_tokens: Count | None = None,
    *,
    all_frames: bool = False,
    cross: bool = False,
    same_axis: bool = False,
) -> Rows:
    """Check a pattern, and cut it to what counts.

    Args:
        pattern: Probabilities; the recordings are on the first axis.
        n_positions: Encoder positions that hold speech.
        n_tokens: Decoder positions that count, for patterns of the decoder.
        all_frames: Count every encoder position all the same.
        cross: The keys are encoder positions and the queries tokens, for sure.
        same_axis: The statistic compares query and key, so that both must count the same thing.
    """
    check_pattern(pattern)
    if same_axis:
        _check_same_axis(pattern, n_positions is not None and n_tokens is not None)
    n_query, n_key = pattern.shape[-2:]
    query_limit, key_limit = _limits(pattern, n_positions, n_tokens, all_frames, cross)
    queries, last_query = _mask(query_limit, n_query, pattern.device)
    keys, last_key = _mask(key_limit, n_key, pattern.device)
    p = pattern[..., :last_query, :last_key].float()
    if keys is not None:
        p = p.where(keys[..., None, :], 0.0)
    counts = None
    if last_key < n_key or keys is not None or pattern.dtype != torch.float32:
        total = p.sum(dim=-1, keepdim=True)
        some = total > 0
        p = p / total.where(some, 1.0)
        # A row can have nothing left: every bit of its attention was on padding.
        if last_key < n_key or keys is not None:
            counts = some[..., 0]
    if queries is not None:
        counts = queries.expand(p.shape[:-1]) if counts is None else counts & queries
    return Rows(p, counts, keys, n_query, n_key)


def share_cut_off(
    pattern: Tensor, n_positions: Count, n_tokens: Count | None = None, *, all_frames: bool = False
) -> Float[Tensor, "*batch all_query"]:
    """What `read_rows` cuts off each row: the share of the keys that do not count."""
    check_pattern(pattern)
    n_query, n_key = pattern.shape[-2:]
    query_limit, _ = _limits(pattern, n_positions, n_tokens, all_frames)
    _, key_limit = _limits(pattern, n_positions, n_tokens)
    mask, last = _mask(key_limit, n_key, pattern.device)
    off = pattern[..., last:].sum(dim=-1, dtype=torch.float32)
    if mask is not None:
        off = off + pattern[..., :last].float().where(~mask[..., None, :], 0.0).sum(dim=-1)
    share = off / pattern.sum(dim=-1, dtype=torch.float32)
    mask, last = _mask(query_limit, n_query, pattern.device)
    share = share[..., :last] if mask is None else share[..., :last].where(mask, torch.nan)
    return F.pad(share, (0, n_query - last), value=torch.nan)


def _check_same_axis(pattern: Tensor, both_given: bool) -> None:
    """Refuse attention in which a query has no place among the keys."""
    n_query, n_key = pattern.shape[-2:]
    if both_given or n_query != n_key:
        raise InputError(
            f"the pattern has {n_query} queries and {n_key} keys"
            f"{', and both n_positions and n_tokens are given' if both_given else ''}: this "
            "statistic measures from query to key, which needs self-attention over all positions. "
            "For cross-attention see expected_seconds and time_alignment."
        )


def _limits(
    pattern: Tensor,
    n_positions: Count | None,
    n_tokens: Count | None,
    all_frames: bool = False,
    cross: bool = False,
) -> tuple[Count | None, Count | None]:
    """How many of the queries and of the keys count, once it is sure that it fits the pattern."""
    *leading, n_query, n_key = pattern.shape
    cross = cross or (n_positions is not None and n_tokens is not None)
    if not cross and n_query != n_key and (n_positions is not None or n_tokens is not None):
        given, other = (
            ("n_tokens", "n_positions") if n_positions is None else ("n_positions", "n_tokens")
        )
        raise InputError(
            f"the pattern has {n_query} queries and {n_key} keys, but only {given} is given. For "
            f"cross-attention pass {other} too; n_tokens={n_query} counts every query."
        )
    queries_are_frames = not cross and n_positions is not None
    keys_are_frames = cross or n_positions is not None
    limits = []
    for size, are_frames in ((n_query, queries_are_frames), (n_key, keys_are_frames)):
        named = ("n_positions", n_positions) if are_frames else ("n_tokens", n_tokens)
        limit = _check_count(*named, size, tuple(leading))
        limits.append(None if all_frames and are_frames else limit)
    return limits[0], limits[1]


def check_pattern(pattern: Tensor) -> None:
    """Refuse what has too few axes for an attention pattern, or rows that are no probabilities."""
    _check_floats(pattern, "pattern", '[..., query, key], as cache["encoder", 0, "pattern"] is')
    rows = pattern.detach()
    sums = rows.sum(dim=-1, dtype=torch.float32)
    bad = ~((sums - 1).abs() <= _SLACK.get(rows.dtype, 1e-3))  # catches NaN too
    if rows.numel():
        bad |= rows.amin(dim=-1) < 0
    if not bool(bad.any()):
        return
    where = tuple(bad.nonzero()[0].tolist())
    row = rows[where]
    if bool(row.isnan().any()):
        what = f"holds NaN at key {int(row.isnan().nonzero()[0, 0])}"
    elif bool((row < 0).any()):
        key = int((row < 0).nonzero()[0, 0])
        what = f"holds {float(row[key]):.3g} at key {key}"
    else:
        what = f"sums to {float(sums[where]):.4g}"
    raise InputError(
        f"row {list(where)} of the pattern {what}; rows must be probabilities that sum to 1 over "
        f"the keys ({int(bad.sum())} of {bad.numel()} rows are not). Pass a hook_pattern, not "
        "scores, and one that no hook has zeroed."
    )


def _check_floats(values: Any, what: str, axes: str) -> None:
    """Refuse what is no tensor of plain floats with at least two axes."""
    is_plain = isinstance(values, Tensor) and values.layout == torch.strided and not values.is_meta
    if is_plain and values.ndim >= 2 and values.is_floating_point() and values.itemsize > 1:
        return
    found = type(values).__name__
    if isinstance(values, Tensor):
        found = f"{tuple(values.shape)}, {values.dtype}, {values.layout} on {values.device}"
    raise InputError(f"the {what} is {found}; it must be plain floats with axes {axes}.")


def _check_count(
    name: str, count: Count | None, size: int, leading: tuple[int, ...]
) -> Count | None:
    """How many count, as one number where it is one for all."""
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int | Tensor):
        raise InputError(f"{name} is {count!r}; it must be an integer or a tensor of integers.")
    if isinstance(count, Tensor):
        fits = not (count.is_floating_point() or count.dtype == torch.bool)
        if not fits or tuple(count.shape) != leading[: count.ndim]:
            raise InputError(
                f"{name} is {count.dtype} of shape {tuple(count.shape)}; it must be one integer "
                f"for each recording, {leading[:1]}, as mel.n_positions is."
            )
    if isinstance(count, int):
        low, high = count, count
    else:
        low, high = (int(count.min()), int(count.max())) if count.numel() else (0, 0)
    if not 0 <= low <= high <= size:
        raise InputError(f"{name} is {count}; this axis has {size} positions: 0 to {size} fit.")
    if low == high or isinstance(count, int):
        return low
    return count.view(*count.shape, *(1,) * (len(leading) - count.ndim))


def _mask(
    limit: Count | None, size: int, device: torch.device
) -> tuple[Bool[Tensor, "*recordings position"] | None, int]:
    """Which of the first positions count (None: all of these), and how many to look at."""
    if limit is None:
        return None, size
    if isinstance(limit, int) and (limit or not size):
        return None, limit
    if isinstance(limit, int):
        # One position stays, not counted: no statistic has to mind an axis without any.
        return _first(0, 1, device), 1
    last = int(limit.max())
    return _first(limit, last, device), last


def _first(limit: Count, size: int, device: torch.device) -> Bool[Tensor, "*recordings position"]:
    """Which of so many positions are the first ones of each recording, up to its limit."""
    if isinstance(limit, Tensor):
        limit = limit.to(device)[..., None]
    return torch.arange(size, device=device) < limit


def position_mask(
    values: Tensor, n_positions: Count | None, *, all_frames: bool = False
) -> Bool[Tensor, "*batch pos"] | None:
    """Which positions of `[*batch pos d_model]` count; None is all of them."""
    _check_floats(values, "stream", '[..., pos, d_model], as cache["encoder", 0, "resid_post"] is')
    *leading, n_pos, _ = values.shape
    limit = _check_count("n_positions", n_positions, n_pos, tuple(leading))
    if limit is None or all_frames:
        return None
    return _first(limit, n_pos, values.device).expand(values.shape[:-1])


def count_for_each(name: str, count: Count, size: int, n_recordings: int) -> list[int]:
    """How many of an axis's positions count, for each recording."""
    limit = _check_count(name, count, size, (n_recordings,))
    if isinstance(limit, Tensor):
        return [int(n) for n in limit.tolist()]
    return [size if limit is None else limit] * n_recordings
