"""Intervals, against SciPy's."""

import pytest
import torch
from scipy.stats import binomtest

from hooked_whisper.analysis import bootstrap_weights, share_interval


@pytest.mark.parametrize(("n_true", "n"), [(0, 36), (1, 36), (18, 36), (36, 36), (3, 4)])
def test_a_share_is_wilsons(n_true: int, n: int) -> None:
    wanted = binomtest(n_true, n).proportion_ci(0.95, method="wilson")
    assert share_interval(n_true, n) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_of_nothing_nothing_is_known() -> None:
    assert share_interval(0, 0) != share_interval(0, 0)


def test_bootstraps_scatter_as_means_do() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    means = bootstrap_weights(50, 4000) @ values
    assert float(means.mean()) == pytest.approx(float(values.mean()), abs=0.01)
    assert float(means.std()) == pytest.approx(float(values.std(correction=0)) / 50**0.5, rel=0.05)
