"""Numbers taken in by parts are those of all numbers at once."""

import math
from collections.abc import Callable
from inspect import unwrap
from typing import Any

import pytest
import torch

from hooked_whisper.analysis import (
    GrowingHistogram,
    Histogram,
    RunningMoments,
    kurtosis,
    participation_ratio,
    share_below,
)
from hooked_whisper.errors import InputError

PARTS = {"one": [300], "several": [7, 1, 192, 100], "with an empty one": [150, 0, 150]}


def vectors() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(300, 6, generator=generator) * torch.tensor([1.0, 2.0, 0.1, 30.0, 1.0, 5.0])
    x[:, 4] = x[:, 4].exp()
    return x + torch.tensor([0.0, -3.0, 100.0, 5.0, 0.0, 1.0])


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_moments_are_those_of_all_vectors_at_once(parts: list[int]) -> None:
    x, moments = vectors(), RunningMoments(order=4, covariance=True)
    for part in x.split(parts):
        moments.add(part)
    x = x.double()
    torch.testing.assert_close(moments.mean, x.mean(dim=0))
    torch.testing.assert_close(moments.variance, x.var(dim=0, correction=0))
    assert moments.spread == pytest.approx(float((x - x.mean(dim=0)).square().sum()))
    torch.testing.assert_close(moments.rms, x.square().mean(dim=0).sqrt())
    torch.testing.assert_close(
        moments.kurtosis.float(), kurtosis(x, per="dimension"), rtol=1e-3, atol=1e-3
    )
    assert moments.participation_ratio == pytest.approx(participation_ratio(x), rel=1e-3)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_pooled_numbers_are_those_of_all_values(parts: list[int]) -> None:
    x, moments = vectors(), RunningMoments(order=4, covariance=True)
    for part in x.split(parts):
        moments.add(part)
    mean, std, tails = moments.pooled()
    assert mean == pytest.approx(float(x.double().mean()))
    assert std == pytest.approx(float(x.double().std(correction=0)))
    assert tails == pytest.approx(float(kurtosis(x)), rel=1e-3)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_histogram_counts_every_number_where_it_is(parts: list[int]) -> None:
    x, histogram = vectors(), GrowingHistogram(64)
    for part in sorted(x.split(parts), key=lambda part: float(part.abs().sum())):
        histogram.add(part)
    assert histogram.counts.sum(dim=1).tolist() == [300] * 6
    for dimension, edges in enumerate(histogram.edges):
        expected = torch.histogram(x[:, dimension].double(), edges).hist
        assert histogram.counts[dimension].tolist() == expected.tolist()


def test_bins_widen_for_numbers_that_come_later() -> None:
    histogram = GrowingHistogram(64)
    histogram.add(torch.full((10, 1), 0.9))
    histogram.add(torch.full((1, 1), -50.0))
    assert histogram.reach.tolist() == [64.0]
    assert histogram.counts.sum() == 11
    filled = histogram.counts[0].nonzero()[:, 0]
    assert histogram.edges[0, filled].tolist() == [-50.0, 0.0]


def test_the_share_near_0_is_that_of_the_values() -> None:
    x, histogram = vectors().flatten(), GrowingHistogram(2**16)
    histogram.add(x[:, None])
    rms = float(x.double().square().mean().sqrt())
    found = float(histogram.share_below(torch.tensor([0.1 * rms], dtype=torch.float64))[0])
    assert found == pytest.approx(share_below(x[None], 0.1, of_rms=True), abs=2e-3)


def test_distances_tell_uniform_numbers_from_normal_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = {
        "uniform": torch.rand(100_000, generator=generator) - 0.5,
        "normal": torch.randn(100_000, generator=generator),
    }
    for name, x in drawn.items():
        histogram, moments = GrowingHistogram(2048), RunningMoments()
        histogram.add(x[:, None])
        moments.add(x[:, None])
        std = moments.variance.sqrt()
        to = {
            "uniform": float(histogram.distance_to("uniform", moments.mean, std)[0]),
            "normal": float(histogram.distance_to("normal", moments.mean, std)[0]),
        }
        assert to[name] < 0.006
        # The reference that the report's table gives.
        other = "normal" if name == "uniform" else "uniform"
        assert to[other] == pytest.approx(0.0572, abs=0.006)


def test_kolmogorov_smirnovs_distance_is_that_of_the_definition() -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(2)).double()
    histogram = GrowingHistogram(2**16)
    histogram.add(x[:, None].float())
    mean, std = x.mean(), x.std(correction=0)
    found = float(histogram.distance_to("normal", mean[None], std[None])[0])
    ordered = torch.special.ndtr((x.sort().values - mean) / std)
    steps = torch.arange(501, dtype=torch.float64) / 500
    expected = max(float((steps[1:] - ordered).max()), float((ordered - steps[:-1]).max()))
    assert found == pytest.approx(expected, abs=1e-3)
    assert math.isfinite(found)


def moments_of(n: int, **options: Any) -> RunningMoments:
    moments = RunningMoments(**options)
    moments.add(torch.ones(n, 3))
    return moments


ERRORS = {
    "nothing": (lambda: moments_of(0).variance, "no vectors were added"),
    "no fourth powers": (lambda: moments_of(2).kurtosis, "make them with order=4"),
    "no fourth powers, pooled": (lambda: moments_of(2).pooled(), "make them with order=4"),
    "no products": (lambda: moments_of(2).participation_ratio, "with covariance=True"),
    "widths": (lambda: moments_of(2).add(torch.ones(1, 4)), "have 4 dimensions, those before 3"),
    "bins": (lambda: GrowingHistogram(6), "n_bins is 6; it must be a multiple of 4"),
    "no number": (
        lambda: GrowingHistogram(4).add(torch.tensor([[torch.inf]])),
        "NaN or infinity, which are in no bin",
    ),
    "distribution": (
        lambda: unwrap(GrowingHistogram.distance_to)(
            GrowingHistogram(4), "laplace", torch.zeros(1), torch.zeros(1)
        ),
        r"'laplace'; it can be one of \['normal', 'uniform'\]",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_what_is_not_known_is_said(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_what_is_no_number_is_outside_a_histogram() -> None:
    values = torch.tensor([-torch.inf, -1.0, 0.0, 0.5, 1.0, 2.0, torch.nan])
    found = Histogram.of(values, torch.tensor([-1.0, 0.0, 1.0]))
    assert (found.counts.tolist(), found.n_outside) == ([1, 3], 3)
