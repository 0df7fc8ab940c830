"""Attention in time, against plain loops and known cases."""

import math
from collections.abc import Callable
from inspect import unwrap  # calls past the tests' own check of types, as users do
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from hooked_whisper.analysis.attention_timing import (
    correlation_with_energy,
    expected_seconds,
    frame_energy,
    monotonicity,
    time_alignment,
)
from hooked_whisper.errors import InputError


def random_pattern(*shape: int) -> Tensor:
    return (2 * torch.randn(*shape)).softmax(dim=-1)


def looking_at(*keys: int, n_key: int = 20) -> Tensor:
    """A pattern in which query i looks at one key."""
    return torch.eye(n_key)[list(keys)]


def assert_same(got: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, atol=atol, rtol=0, equal_nan=True)


# When a token looks


@pytest.mark.parametrize("shape", [(4, 9), (2, 4, 9), (2, 3, 4, 9)], ids=str)
def test_expected_seconds_are_the_mean_time(shape: tuple[int, ...]) -> None:
    pattern = random_pattern(*shape)
    rows = pattern.flatten(0, -2).tolist()
    expected = [sum(p * k * 0.02 for k, p in enumerate(row)) for row in rows]
    assert_same(expected_seconds(pattern), torch.tensor(expected).reshape(shape[:-1]))
    peaks = [row.index(max(row)) * 0.02 for row in rows]
    got = expected_seconds(pattern, place="argmax")
    assert_same(got, torch.tensor(peaks).reshape(shape[:-1]))


def test_expected_seconds_of_speech_are_those_of_the_cut_out_pattern() -> None:
    pattern = random_pattern(2, 3, 4, 9)
    got = expected_seconds(pattern, torch.tensor([5, 9]))
    cut = pattern[0, :, :, :5]
    assert_same(got[0], expected_seconds(cut / cut.sum(-1, keepdim=True)))
    assert_same(got[1], expected_seconds(pattern[1]))
    assert_same(expected_seconds(pattern, 5, all_frames=True), expected_seconds(pattern))


# Order


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ((0, 5, 6, 19), 1.0),
        ((19, 6, 5, 0), -1.0),
        ((3, 3, 3, 3), 0.0),
        ((0, 5, 5, 7, 6), 0.25),
        ((4,), math.nan),
    ],
    ids=["forward", "back", "standing", "mixed", "one token"],
)
@pytest.mark.parametrize("place", ["expected", "argmax"])
def test_monotonicity_is_steps_forward_less_steps_back(
    keys: tuple[int, ...], expected: float, place: str
) -> None:
    got = monotonicity(looking_at(*keys), place=place)  # type: ignore[arg-type]
    assert_same(got, torch.tensor(expected))


def test_monotonicity_is_the_plain_loop() -> None:
    pattern = random_pattern(2, 3, 6, 30)
    got = monotonicity(pattern)
    for i in range(2):
        for head in range(3):
            places = [sum(k * p for k, p in enumerate(row)) for row in pattern[i, head].tolist()]
            steps = [b - a for a, b in pairwise(places)]
            on, back = sum(step >= 0.5 for step in steps), sum(step <= -0.5 for step in steps)
            assert got[i, head].item() == pytest.approx((on - back) / 5)


def test_monotonicity_of_rounding_noise_is_none() -> None:
    """A head that looks everywhere alike does not follow the text."""
    pattern = torch.full((6, 1500), 1 / 1500) * (1 + 1e-7 * torch.arange(6))[:, None]
    assert_same(monotonicity(pattern), torch.tensor(0.0))
    assert monotonicity(looking_at(0, 1, 2), least_step=2.0).item() == 0


def test_monotonicity_leaves_out_tokens_that_do_not_count() -> None:
    pattern = torch.stack([looking_at(1, 2, 9, 3), looking_at(1, 2, 9, 10)])
    assert_same(monotonicity(pattern, 20, n_tokens=torch.tensor([3, 4])), torch.ones(2))


# Times of words


def test_perfect_alignment() -> None:
    words_s = torch.tensor([[0.0, 0.08], [0.1, 0.18], [0.3, 0.34]])  # middles at keys 2, 7, 16
    got = time_alignment(looking_at(2, 7, 16), words_s)
    assert_same(got.expected_s, torch.tensor([0.04, 0.14, 0.32]))
    assert_same(got.error_s, torch.zeros(3))
    assert_same(got.in_word, torch.ones(3))
    assert got.correlation.item() == pytest.approx(1)


def test_alignment_is_the_plain_loop() -> None:
    pattern = random_pattern(2, 3, 4, 20)
    starts = torch.rand(2, 4) * 0.2
    words_s = torch.stack([starts, starts + 0.1], dim=-1)
    got = time_alignment(pattern, words_s)
    for i in range(2):
        for head in range(3):
            expected, middles = [], []
            for q in range(4):
                row, (start, end) = pattern[i, head, q].tolist(), words_s[i, q].tolist()
                expected.append(sum(0.02 * k * p for k, p in enumerate(row)))
                middles.append((start + end) / 2)
                inside = sum(row[round(50 * start) : round(50 * end)])
                assert got.in_word[i, head, q].item() == pytest.approx(inside, abs=1e-5)
                assert got.expected_s[i, head, q].item() == pytest.approx(expected[-1], abs=1e-5)
                error = got.error_s[i, head, q].item()
                assert error == pytest.approx(expected[-1] - middles[-1], abs=1e-5)
            r = np.corrcoef(expected, middles)[0, 1]
            assert got.correlation[i, head].item() == pytest.approx(r, abs=1e-4)


def test_one_set_of_words_serves_all_heads() -> None:
    pattern, words_s = random_pattern(2, 3, 4, 20), torch.rand(4, 1) + torch.tensor([0.0, 0.1])
    got = time_alignment(pattern, words_s)
    each = time_alignment(pattern, words_s.expand(2, 4, 2))
    assert_same(got.error_s, each.error_s)
    assert_same(got.correlation, each.correlation)


def test_queries_without_a_word_are_left_out() -> None:
    words_s = torch.tensor([[math.nan, math.nan], [0.0, 0.08], [0.1, 0.18], [0.3, 0.34]])
    got = time_alignment(looking_at(19, 2, 7, 16), words_s)
    for values in (got.expected_s, got.error_s, got.in_word):
        assert math.isnan(values[0]) and not bool(values[1:].isnan().any())
    assert got.correlation.item() == pytest.approx(1)


def test_alignment_counts_speech_and_tokens_only() -> None:
    pattern, words_s = random_pattern(2, 3, 4, 20), torch.rand(4, 1) * 0.1 + torch.tensor([0, 0.1])
    got = time_alignment(pattern, words_s, torch.tensor([12, 20]), n_tokens=torch.tensor([4, 3]))
    cut = pattern[0, :, :, :12]
    alone = time_alignment(cut / cut.sum(-1, keepdim=True), words_s)
    assert_same(got.in_word[0], alone.in_word)
    assert_same(got.error_s[0], alone.error_s)
    assert_same(got.correlation[1], time_alignment(pattern[1, :, :3], words_s[:3]).correlation)
    assert bool(got.in_word[1, :, 3].isnan().all())


def test_gradients_reach_the_pattern_through_the_alignment() -> None:
    pattern = random_pattern(3, 4, 20).requires_grad_()
    words_s = torch.tensor([[0.0, 0.1], [0.1, 0.2], [math.nan, math.nan], [0.2, 0.3]])
    got = time_alignment(pattern, words_s, 15)
    (got.in_word.nansum() + got.error_s.nansum() + got.correlation.sum()).backward()
    assert pattern.grad is not None and bool(pattern.grad.isfinite().all())
    assert bool((pattern.grad[:, 2] == 0).all())


@pytest.mark.parametrize(
    ("words_s", "match"),
    [
        (torch.zeros(3, 2), r"words_s is \(3, 2\) and the pattern \(2, 3, 4, 20\)"),
        (torch.zeros(3, 4, 2), r"a start and an end for each query: \[\.\.\., 4, 2\]"),
        (torch.tensor([[[0.2, 0.1]] * 4] * 2), r"query \[0, 0\] starts at 0.2 s and ends at 0.1 s"),
    ],
    ids=["queries", "recordings", "order"],
)
def test_words_that_do_not_fit_are_refused(words_s: Tensor, match: str) -> None:
    with pytest.raises(InputError, match=match):
        unwrap(time_alignment)(random_pattern(2, 3, 4, 20), words_s)


@pytest.mark.parametrize("function", [expected_seconds, monotonicity], ids=lambda f: f.__name__)
def test_an_unknown_place_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(InputError, match="place is 'middle'; it can be one of"):
        unwrap(function)(looking_at(1, 2), place="middle")


# Energy


def test_frame_energy_is_the_mean_of_two_frames() -> None:
    mel = torch.randn(2, 80, 6)
    got = frame_energy(mel)
    for i in range(2):
        for t in range(3):
            expected = mel[i, :, 2 * t : 2 * t + 2].mean().item()
            assert got[i, t].item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(InputError, match="the mel has 5 frames"):
        frame_energy(torch.zeros(80, 5))


def test_correlation_with_energy_is_pearsons() -> None:
    pattern, energy = random_pattern(2, 3, 8, 8), torch.randn(2, 8)
    got = correlation_with_energy(pattern, energy)
    for i in range(2):
        for head in range(3):
            received = pattern[i, head].mean(0).numpy()
            expected = np.corrcoef(received, energy[i].numpy())[0, 1]
            assert got[i, head].item() == pytest.approx(expected, abs=1e-5)


def test_correlation_counts_speech_only() -> None:
    pattern, energy = random_pattern(2, 3, 8, 8), torch.randn(2, 8)
    got = correlation_with_energy(pattern, energy, torch.tensor([5, 8]))
    cut = pattern[0, :, :5, :5]
    alone = correlation_with_energy(cut / cut.sum(-1, keepdim=True), energy[0, :5])
    assert_same(got[0], alone)
    assert_same(got[1], correlation_with_energy(pattern[1], energy[1]))
    everywhere = correlation_with_energy(pattern, energy, 5, all_frames=True)
    assert_same(everywhere, correlation_with_energy(pattern, energy))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6], ids=str)
def test_attention_to_what_is_loud_correlates_perfectly(size: float) -> None:
    energy = size * torch.rand(1500)
    row = energy / energy.sum()
    assert correlation_with_energy(row.expand(4, 1500), energy).item() == pytest.approx(1, abs=1e-5)
    assert correlation_with_energy(row.expand(4, 1500), -energy).item() == pytest.approx(-1, 1e-5)


def test_what_does_not_vary_correlates_with_nothing() -> None:
    even = torch.full((4, 10), 0.1)
    assert math.isnan(correlation_with_energy(even, torch.rand(10)))
    assert math.isnan(correlation_with_energy(random_pattern(4, 10), torch.full((10,), 0.1)))


@pytest.mark.parametrize(
    ("energy", "match"),
    [
        (torch.zeros(3, 8), r"the energy is \(3, 8\) and the pattern \(2, 3, 8, 8\)"),
        (torch.full((2, 8), math.nan), "holds NaN or infinity"),
    ],
    ids=["recordings", "nan"],
)
def test_an_energy_that_does_not_fit_is_refused(energy: Tensor, match: str) -> None:
    with pytest.raises(InputError, match=match):
        correlation_with_energy(random_pattern(2, 3, 8, 8), energy)
