"""Each statistic equals its formula, written as a plain loop over one head's rows."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hooked_whisper.analysis.attention import (
    attention_entropy,
    attention_received,
    current_token_score,
    diagonal_half_width,
    diagonal_width,
    mean_distance,
    previous_token_score,
    share_on_padding,
    start_token_score,
)
from hooked_whisper.errors import InputError

Statistic = Callable[..., Tensor]


def entropy_loop(row: list[float], q: int) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def distance_loop(row: list[float], q: int) -> float:
    return sum(p * abs(k - q) for k, p in enumerate(row))


def width_loop(row: list[float], q: int) -> float:
    mean = sum(p * (k - q) for k, p in enumerate(row))
    return math.sqrt(sum(p * (k - q - mean) ** 2 for k, p in enumerate(row)))


def half_width_loop(row: list[float], q: int) -> float:
    for k in range(len(row) + 1):
        if sum(row[max(0, q - k) : q + k + 1]) >= 0.9:
            return k
    raise AssertionError("the whole row holds everything")


def previous_loop(row: list[float], q: int) -> float:
    return row[q - 1] if q else math.nan


LOOPS: dict[str, tuple[Statistic, Callable[[list[float], int], float]]] = {
    "entropy": (attention_entropy, entropy_loop),
    "distance": (mean_distance, distance_loop),
    "width": (diagonal_width, width_loop),
    "half width": (diagonal_half_width, half_width_loop),
    "previous": (previous_token_score, previous_loop),
    "current": (current_token_score, lambda row, q: row[q]),
    "start": (start_token_score, lambda row, q: row[0]),
}
per_query = pytest.mark.parametrize(("statistic", "loop"), LOOPS.values(), ids=LOOPS.keys())
every = pytest.mark.parametrize(
    "statistic",
    [*(each for each, _ in LOOPS.values()), attention_received],
    ids=[*LOOPS, "received"],
)


def random_pattern(*shape: int, causal: bool = False) -> Tensor:
    scores = 2 * torch.randn(*shape)
    if causal:
        scores = scores + torch.full(shape[-2:], -torch.inf).triu(1)
    return scores.softmax(dim=-1)


def assert_same(got: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, atol=atol, rtol=0, equal_nan=True)


def loop_over(pattern: Tensor, loop: Callable[[list[float], int], float]) -> Tensor:
    """The loop over every row of every batch axis."""
    flat = pattern.double().flatten(0, -3) if pattern.ndim > 2 else pattern.double()[None]
    values = [[loop(row, q) for q, row in enumerate(each)] for each in flat.tolist()]
    return torch.tensor(values, dtype=torch.float32).reshape(pattern.shape[:-1])


@per_query
@pytest.mark.parametrize("shape", [(6, 6), (2, 5, 5), (2, 3, 7, 7), (2, 1, 3, 4, 4)], ids=str)
def test_it_is_the_formula_with_any_batch_axes(
    statistic: Statistic, loop: Callable[[list[float], int], float], shape: tuple[int, ...]
) -> None:
    pattern = random_pattern(*shape)
    assert_same(statistic(pattern), loop_over(pattern, loop))


@per_query
def test_it_is_the_formula_under_a_causal_mask(
    statistic: Statistic, loop: Callable[[list[float], int], float]
) -> None:
    pattern = random_pattern(2, 9, 9, causal=True)
    assert_same(statistic(pattern), loop_over(pattern, loop))


@per_query
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_gives_float32_close_to_the_formula(
    statistic: Statistic, loop: Callable[[list[float], int], float], dtype: torch.dtype
) -> None:
    pattern = random_pattern(2, 8, 8).to(dtype)
    got = statistic(pattern)
    assert got.dtype == torch.float32
    if statistic is not diagonal_half_width:  # which jumps where a row holds close to 0.9
        rounded = pattern.double()
        assert_same(got, loop_over(rounded / rounded.sum(-1, keepdim=True), loop))


@every
def test_speech_only_is_the_statistic_of_the_cut_out_pattern(statistic: Statistic) -> None:
    pattern = random_pattern(2, 3, 10, 10)
    n_positions = torch.tensor([4, 7])
    got = statistic(pattern, n_positions)
    for recording, n in enumerate(n_positions.tolist()):
        cut = pattern[recording, :, :n, :n]
        assert_same(got[recording, :, :n], statistic(cut / cut.sum(-1, keepdim=True)))
        assert bool(got[recording, :, n:].isnan().all())


@every
def test_one_length_for_all_is_the_same_as_one_each(statistic: Statistic) -> None:
    pattern = random_pattern(2, 3, 10, 10)
    expected = statistic(pattern, torch.tensor([6, 6]))
    assert_same(statistic(pattern, 6), expected)
    assert not torch.allclose(expected.nanmean(), statistic(pattern).nanmean(), atol=1e-4)


@every
def test_all_frames_counts_the_padding_too(statistic: Statistic) -> None:
    pattern = random_pattern(2, 3, 10, 10)
    assert_same(statistic(pattern, torch.tensor([4, 7]), all_frames=True), statistic(pattern))


@every
def test_the_decoder_counts_tokens(statistic: Statistic) -> None:
    pattern = random_pattern(2, 3, 6, 6, causal=True)
    assert_same(
        statistic(pattern, n_tokens=torch.tensor([4, 6]), all_frames=True),
        statistic(pattern, torch.tensor([4, 6])),
    )


@pytest.mark.parametrize(
    "statistic", [attention_entropy, start_token_score], ids=["entropy", "start"]
)
def test_cross_attention_cuts_tokens_and_speech_apart(statistic: Statistic) -> None:
    pattern = random_pattern(2, 3, 5, 12)
    got = statistic(pattern, torch.tensor([4, 12]), n_tokens=torch.tensor([5, 2]))
    first = pattern[0, :, :, :4]
    assert_same(got[0], statistic(first / first.sum(-1, keepdim=True)))
    assert_same(got[1, :, :2], statistic(pattern[1, :, :2]))
    assert bool(got[1, :, 2:].isnan().all())
    kept = statistic(pattern, torch.tensor([4, 12]), n_tokens=torch.tensor([5, 2]), all_frames=True)
    assert_same(kept[0], statistic(pattern[0]))
    assert bool(kept[1, :, 2:].isnan().all())


@every
def test_a_recording_without_speech_gives_nan(statistic: Statistic) -> None:
    got = statistic(random_pattern(2, 3, 6, 6), torch.tensor([0, 6]))
    assert bool(got[0].isnan().all()) and bool(got[1, :, 1:].isfinite().all())
    assert bool(statistic(random_pattern(2, 6, 6), 0).isnan().all())


@every
def test_a_row_with_all_its_attention_on_padding_does_not_count(statistic: Statistic) -> None:
    pattern = random_pattern(6, 6)
    pattern[1] = torch.eye(6)[5]
    got = statistic(pattern, 4)
    kept = [0, 2, 3]
    if statistic is attention_received:
        cut = pattern[kept, :4]
        assert_same(got[:4], (cut / cut.sum(-1, keepdim=True)).mean(0))
    else:
        assert bool(got[1].isnan()) and not bool(got[2:4].isnan().any())


@every
def test_the_pattern_is_left_as_it_was(statistic: Statistic) -> None:
    pattern = random_pattern(2, 5, 5)
    before = pattern.clone()
    statistic(pattern)
    statistic(pattern, 3)
    assert torch.equal(pattern, before)


# Closed forms


@pytest.mark.parametrize("n", [1, 4, 1500])
def test_an_even_row_has_the_entropy_ln_n(n: int) -> None:
    assert_same(attention_entropy(torch.full((2, n), 1 / n)), torch.full((2,), math.log(n)))


def test_a_row_on_one_key_has_no_entropy_distance_or_width() -> None:
    for statistic in (attention_entropy, mean_distance, diagonal_width, diagonal_half_width):
        assert_same(statistic(torch.eye(7)), torch.zeros(7))
    assert_same(current_token_score(torch.eye(7)), torch.ones(7))


def test_the_identity_moved_by_one_is_a_previous_token_head() -> None:
    pattern = torch.eye(6).roll(1, dims=0)
    assert_same(previous_token_score(pattern)[1:], torch.ones(5))
    assert_same(mean_distance(pattern)[1:], torch.ones(5))
    assert_same(diagonal_width(pattern), torch.zeros(6))


def test_a_uniform_head_spreads_as_a_uniform_distribution_does() -> None:
    n = 1500
    pattern = torch.full((n, n), 1 / n)
    assert_same(diagonal_width(pattern), torch.full((n,), math.sqrt((n * n - 1) / 12)), atol=0.01)
    # The mean of |i - j| over a square is (n² - 1) / 3n.
    assert mean_distance(pattern).mean().item() == pytest.approx((n * n - 1) / (3 * n), rel=1e-4)


@pytest.mark.parametrize("k", [0, 3, 20])
def test_the_half_width_finds_the_band(k: int) -> None:
    n = 60
    position = torch.arange(n)
    band = ((position[:, None] - position).abs() <= k).float()
    pattern = band / band.sum(-1, keepdim=True)
    inner = slice(k, n - k)
    assert_same(diagonal_half_width(pattern, share=1.0)[inner], torch.full((n - 2 * k,), float(k)))


def test_attention_received_adds_up_to_one() -> None:
    received = attention_received(random_pattern(2, 3, 8, 8), torch.tensor([5, 8]))
    assert_same(received.nansum(-1), torch.ones(2, 3))
    expected = torch.tensor([0.75, 0.25])
    assert_same(attention_received(torch.tensor([[1.0, 0.0], [0.5, 0.5]])), expected)


# Padding


def padding_loop(pattern: Tensor, n_query: int, n_key: int) -> Tensor:
    values = torch.full(pattern.shape[:-1], math.nan)
    for q in range(n_query):
        values[..., q] = sum(pattern[..., q, k] for k in range(n_key, pattern.shape[-1]))
    return values


def test_the_share_on_padding_is_that_of_the_keys_after_the_speech() -> None:
    pattern = random_pattern(2, 3, 8, 8)
    got = share_on_padding(pattern, torch.tensor([3, 8]))
    assert_same(got[0], padding_loop(pattern[0], 3, 3))
    assert_same(got[1], torch.zeros(3, 8))
    everywhere = share_on_padding(pattern, torch.tensor([3, 8]), all_frames=True)
    assert_same(everywhere[0], padding_loop(pattern[0], 8, 3))


def test_the_share_on_padding_of_cross_attention() -> None:
    pattern = random_pattern(2, 3, 5, 9).half()
    got = share_on_padding(pattern, 4, n_tokens=3)
    assert got.dtype == torch.float32
    assert_same(got, padding_loop(pattern.float(), 3, 4), atol=2e-3)


def test_a_row_wholly_on_padding_is_counted_as_such() -> None:
    pattern = torch.eye(4).roll(2, dims=1)
    assert_same(share_on_padding(pattern, 2)[:2], torch.ones(2))


# Gradients


@every
def test_gradients_are_finite_at_masked_keys_and_in_the_padding(statistic: Statistic) -> None:
    pattern = random_pattern(2, 6, 6, causal=True).requires_grad_()
    values = statistic(pattern, torch.tensor([4, 6]))
    if statistic is diagonal_half_width:
        assert not values.requires_grad
        return
    values.nansum().backward()
    assert pattern.grad is not None and bool(pattern.grad.isfinite().all())
    assert bool((pattern.grad[0, 4:] == 0).all())


# Bad input


def bad_row(value: float, key: int = 2) -> Tensor:
    pattern = random_pattern(2, 3, 5, 5)
    if value < 0:  # the row still sums to 1
        pattern[1, 2, 4, key + 1] += pattern[1, 2, 4, key] - value
    pattern[1, 2, 4, key] = value
    return pattern


@every
@pytest.mark.parametrize(
    ("value", "match"),
    [
        (math.nan, r"row \[1, 2, 4\] of the pattern holds NaN at key 2"),
        (-0.25, r"row \[1, 2, 4\] of the pattern holds -0.25 at key 2"),
        (3.0, r"row \[1, 2, 4\] of the pattern sums to 3\..*\(1 of 30 rows are not\)"),
        (math.inf, r"row \[1, 2, 4\] of the pattern sums to inf"),
    ],
    ids=["nan", "negative", "too much", "infinite"],
)
def test_rows_that_are_no_probabilities_are_refused(
    statistic: Statistic, value: float, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        statistic(bad_row(value))


def test_rows_that_are_zeroed_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"row \[0\] of the pattern sums to 0;.*no hook has zeroed"
    ):
        attention_entropy(torch.zeros(3, 3))


def test_a_bad_row_in_the_padding_is_refused_too() -> None:
    with pytest.raises(InputError, match=r"row \[1, 2, 4\]"):
        attention_entropy(bad_row(math.nan), 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_rounded_rows_of_full_length_pass(dtype: torch.dtype) -> None:
    pattern = random_pattern(4, 1500).to(dtype)
    assert bool(attention_entropy(pattern).isfinite().all())
    rounded = pattern.double()  # both renormalize the rows that rounding left beside 1
    p = rounded / rounded.sum(dim=-1, keepdim=True)
    assert_same(attention_entropy(pattern), torch.special.entr(p).sum(dim=-1).float(), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_positions": 11}, r"n_positions is 11; this axis has 10 positions: 0 to 10 fit"),
        ({"n_positions": -1}, r"n_positions is -1; .*0 to 10 fit"),
        ({"n_positions": torch.tensor([4, 12])}, r"n_positions is tensor\(\[ 4, 12\]\)"),
        (
            {"n_positions": torch.tensor([4, 4, 4])},
            r"n_positions is torch.int64 of shape \(3,\); it must be one integer for each "
            r"recording, \(2,\)",
        ),
        ({"n_tokens": 11}, r"n_tokens is 11"),
        ({"n_positions": 11, "all_frames": True}, r"n_positions is 11"),
        ({"n_positions": True}, r"n_positions is True; it must be an integer"),
    ],
    ids=["too long", "negative", "one too long", "too many", "tokens", "all frames", "bool"],
)
def test_counts_that_do_not_fit_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        attention_entropy(random_pattern(2, 3, 10, 10), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_positions": 8}, r"5 queries and 12 keys, but only n_positions.*n_tokens=5 counts"),
        ({"n_tokens": 5}, r"only n_tokens is given.*pass n_positions too"),
    ],
    ids=["positions", "tokens"],
)
def test_cross_attention_needs_both_counts(options: dict[str, int], match: str) -> None:
    """A count of one kind of position never cuts the other kind by mistake."""
    with pytest.raises(InputError, match=match):
        attention_entropy(random_pattern(5, 12), **options)


@pytest.mark.parametrize(
    "statistic",
    [mean_distance, diagonal_width, diagonal_half_width, previous_token_score, current_token_score],
    ids=lambda each: each.__name__,
)
def test_distances_in_cross_attention_are_refused(statistic: Statistic) -> None:
    with pytest.raises(InputError, match=r"5 queries and 12 keys: this statistic measures"):
        statistic(random_pattern(5, 12))
    with pytest.raises(InputError, match=r"both n_positions and n_tokens are given"):
        statistic(random_pattern(5, 5), 3, n_tokens=2)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, math.nan], ids=str)
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="it must be over 0 and at most 1"):
        diagonal_half_width(torch.eye(2), share=float(share))
