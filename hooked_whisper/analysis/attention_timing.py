"""Attention in time: when each token looks, in what order, and at what sound.

`n_positions`, `n_tokens` and `all_frames` mean what they do in `attention`.
In these functions keys are encoder positions always, so that `n_positions`
alone will do where all tokens count. Encoder position t is centred on the
time t / 50 s.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.analysis.masking import Count, Rows, read_rows
from hooked_whisper.config import FRAMES_PER_POSITION, POSITIONS_PER_SECOND
from hooked_whisper.errors import InputError

Place = Literal["expected", "argmax"]


@dataclass(frozen=True)
class TimeAlignment:
    """How well the times at which tokens look fit the times at which their words are spoken.

    NaN where a token does not count or has no word.

    Args:
        expected_s: When each token looks: the mean time under its row, in seconds.
        error_s: This less the middle of the word, in seconds: over 0 is too late.
        in_word: The share of attention within the word.
        correlation: Pearson's, over the tokens, between `expected_s` and the words'
            middles; NaN under two tokens, or where all look at the same time.
    """

    expected_s: Float[Tensor, "*batch query"]
    error_s: Float[Tensor, "*batch query"]
    in_word: Float[Tensor, "*batch query"]
    correlation: Float[Tensor, "*batch"]


def expected_seconds(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
    place: Place = "expected",
) -> Float[Tensor, "*batch query"]:
    """When each query looks, in seconds: the mean time under its row.

    Args:
        pattern, n_positions, n_tokens, all_frames: See the module.
        place: `"argmax"` for the time of the row's largest instead.

    >>> pattern = torch.zeros(2, 1500)
    >>> pattern[0, 50] = pattern[1, 100] = 1
    >>> expected_seconds(pattern)
    tensor([1., 2.])
    """
    _check_place(place)
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, cross=True)
    return rows.by_query(attended_position(rows.p, by=place) / POSITIONS_PER_SECOND)


def monotonicity(
    pattern: Float[Tensor, "*batch query key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
    place: Place = "expected",
    least_step: float = 0.5,
) -> Float[Tensor, "*batch"]:
    """Whether attention moves on with the text: 1 always forward, -1 always back.

    Of the steps from one token to the next, the share in which the place
    looked at moves on, less the share in which it goes back. A head that
    stays where it is gets 0, not 1: standing still is no alignment.

    Args:
        pattern, n_positions, n_tokens, all_frames: See the module; pass the queries
            that write text.
        place: Where a query looks: the mean under its row, or the row's largest.
        least_step: A shorter step, in positions of 0.02 s, is none.

    Returns:
        One number for each head; NaN under two tokens.

    >>> monotonicity(torch.eye(5))
    tensor(1.)
    """
    _check_place(place)
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, cross=True)
    return monotonicity_score(rows.by_query(attended_position(rows.p, by=place)), least_step)


def time_alignment(
    pattern: Float[Tensor, "*batch query key"],
    words_s: Float[Tensor, "*recordings query 2"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> TimeAlignment:
    """How far, in seconds, the times at which tokens look are from those of their words.

    Args:
        pattern: Cross-attention. The query that writes a word is the one
            before it: of tokens that end in n words, `pattern[..., -n - 1 : -1, :]`.
        words_s: Start and end of each query's word, in seconds; NaN for a
            query that writes no word. The axes before `query` are the first of the pattern's.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Raises:
        InputError: Words that do not fit the pattern, or end before they start.
    """
    _check_words(words_s, pattern)
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, cross=True)
    words_s = _beside(words_s.float(), pattern.ndim - words_s.ndim, axes=2)
    start_s, end_s = words_s.unbind(dim=-1)
    has_word = (start_s + end_s).isfinite()
    middle_s = (start_s + end_s) / 2
    expected_s = rows.by_query(attended_position(rows.p, by="expected") / POSITIONS_PER_SECOND)
    expected_s = expected_s.where(has_word, torch.nan)
    return TimeAlignment(
        expected_s=expected_s,
        error_s=expected_s - middle_s,
        in_word=_share_in_words(rows, start_s, end_s).where(has_word, torch.nan),
        correlation=pearson(expected_s, middle_s.expand_as(expected_s)),
    )


def frame_energy(
    mel: Float[Tensor, "*batch mel frame"],
) -> Float[Tensor, "*batch position"]:
    """How loud each encoder position is: the mean log-mel of its two frames.

    In the units of Whisper's log-mel, `mel.values`: 1 is a factor of 10,000 in power.
    """
    n_frames = mel.shape[-1]
    if n_frames % FRAMES_PER_POSITION:
        raise InputError(
            f"the mel has {n_frames} frames; an encoder position is {FRAMES_PER_POSITION} of them."
        )
    by_frame = mel.float().mean(dim=-2)
    return by_frame.unflatten(-1, (-1, FRAMES_PER_POSITION)).mean(dim=-1)


def correlation_with_energy(
    pattern: Float[Tensor, "*batch query key"],
    energy: Float[Tensor, "*recordings key"],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> Float[Tensor, "*batch"]:
    """Pearson's correlation, over the keys, of attention received and how loud they are.

    Args:
        pattern: The encoder's attention, or cross-attention with `n_tokens`.
        energy: `frame_energy(mel)`, or any other number for each key. The axes
            before `key` are the first of the pattern's.
        n_positions, n_tokens, all_frames: What counts; see the module.

    Returns:
        One number for each head; NaN where attention or energy is the same at all keys.

    Raises:
        InputError: An energy that does not fit the pattern.
    """
    _check_energy(energy, pattern)
    received = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames).received()
    energy = _beside(energy.float(), pattern.ndim - 1 - energy.ndim, axes=1)
    return pearson(received, energy.expand_as(received))


def pearson(
    x: Float[Tensor, "*batch value"], y: Float[Tensor, "*batch value"]
) -> Float[Tensor, "*batch"]:
    """Pearson's correlation over the last axis, where neither is NaN.

    NaN where fewer than two are left, or where one of them does not vary.
    """
    known = ~(x.isnan() | y.isnan())
    x, y = _centred(x, known), _centred(y, known)
    together = (x * y).sum(dim=-1)
    return together / (x.square().sum(dim=-1) * y.square().sum(dim=-1)).sqrt()


def _centred(x: Tensor, known: Bool[Tensor, "*batch value"]) -> Float[Tensor, "*batch value"]:
    """x less its mean, in units of its largest deviation; NaN where there is none."""
    x = x.where(known, 0.0)
    scale = x.abs().amax(dim=-1, keepdim=True)
    mean = x.sum(dim=-1, keepdim=True) / known.sum(dim=-1, keepdim=True)
    x = (x - mean).where(known, 0.0)
    deviation = x.abs().amax(dim=-1, keepdim=True)
    # What is under float32's precision is rounding, which would correlate with anything.
    return x / deviation.where(deviation > 1e-6 * scale, torch.nan)


def attended_position(
    p: Float[Tensor, "*batch query key"], *, by: Place
) -> Float[Tensor, "*batch query"]:
    """Where each row looks, in positions: the mean under it, or its largest."""
    if by == "argmax":
        return p.argmax(dim=-1).float()
    return p @ torch.arange(p.shape[-1], dtype=torch.float32, device=p.device)


def monotonicity_score(
    positions: Float[Tensor, "*batch query"], least_step: float = 0.5
) -> Float[Tensor, "*batch"]:
    """The share of steps from one position to the next that go on, less that which go back."""
    steps = positions.diff(dim=-1)
    signs = steps.sign().where(steps.abs() >= least_step, 0.0 * steps)  # NaN stays NaN
    return signs.nanmean(dim=-1)


def _share_in_words(
    rows: Rows,
    start_s: Float[Tensor, "*recordings query"],
    end_s: Float[Tensor, "*recordings query"],
) -> Float[Tensor, "*batch query"]:
    n_query, n_key = rows.p.shape[-2:]
    first, after = (
        (time_s[..., :n_query, None].nan_to_num() * POSITIONS_PER_SECOND).round()
        for time_s in (start_s, end_s)
    )
    key = torch.arange(n_key, device=rows.p.device)
    return rows.by_query(rows.p.where((key >= first) & (key < after), 0.0).sum(dim=-1))


def _beside(value: Tensor, n_missing: int, axes: int) -> Tensor:
    """The value with axes of 1 where the pattern has more, such as heads."""
    for _ in range(n_missing):
        value = value.unsqueeze(-axes - 1)
    return value


def _check_place(place: str) -> None:
    if place not in get_args(Place):
        raise InputError(f"place is {place!r}; it can be one of {list(get_args(Place))}.")


def _check_words(words_s: Tensor, pattern: Tensor) -> None:
    shape, n_query = tuple(words_s.shape), pattern.shape[-2]
    if shape[-2:] != (n_query, 2) or shape[:-2] != tuple(pattern.shape[: max(0, len(shape) - 2)]):
        raise InputError(
            f"words_s is {shape} and the pattern {tuple(pattern.shape)}; words_s needs a start and "
            f"an end for each query: [..., {n_query}, 2]."
        )
    if bool((wrong := words_s[..., 0] > words_s[..., 1]).any()):
        where = tuple(wrong.nonzero()[0].tolist())
        start, end = words_s[where].tolist()
        raise InputError(
            f"the word of query {list(where)} starts at {start:g} s and ends at {end:g} s; pass "
            "starts first, then ends."
        )


def _check_energy(energy: Tensor, pattern: Tensor) -> None:
    shape, n_key = tuple(energy.shape), pattern.shape[-1]
    if shape[-1:] != (n_key,) or shape[:-1] != tuple(pattern.shape[: len(shape) - 1]):
        raise InputError(
            f"the energy is {shape} and the pattern {tuple(pattern.shape)}; it needs one number "
            f"for each of the {n_key} keys. Make it with frame_energy(mel.values)."
        )
    if not bool(energy.isfinite().all()):
        raise InputError("the energy holds NaN or infinity; make it with frame_energy(mel.values).")
