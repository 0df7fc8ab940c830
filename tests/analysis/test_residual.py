"""Each statistic of a stream, against its formula in numpy or a plain loop, and known cases."""

import math
from collections.abc import Callable
from inspect import unwrap  # calls past the tests' own check of types, as users do
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hooked_whisper.analysis.residual import (
    cosine_by_layer,
    hoyer_sparsity,
    kurtosis,
    norm_by_layer,
    outlier_dimensions,
    participation_ratio,
    residual_histogram,
    residual_norm,
    share_below,
    speech_vectors,
)
from hooked_whisper.errors import InputError

N_POSITIONS = torch.tensor([4, 7])

POOLED: dict[str, Callable[..., Any]] = {
    "kurtosis": kurtosis,
    "kurtosis by dimension": lambda x, *a, **k: kurtosis(x, *a, per="dimension", **k),
    "kurtosis by vector": lambda x, *a, **k: kurtosis(x, *a, per="vector", **k),
    "share below": lambda x, *a, **k: share_below(x, 0.3, *a, **k),
    "participation": participation_ratio,
    "outliers": lambda x, *a, **k: outlier_dimensions(x, *a, times=0, **k).rms,
    "histogram": lambda x, *a, **k: residual_histogram(x, *a, n_bins=5, low=-9, high=9, **k).counts,
}
pooled = pytest.mark.parametrize("statistic", POOLED.values(), ids=POOLED.keys())
per_vector = pytest.mark.parametrize("statistic", [residual_norm, hoyer_sparsity])


@pytest.fixture
def stream() -> Tensor:
    """Two recordings, whose padding is of another size."""
    x = torch.randn(2, 10, 12) * torch.arange(1, 13) / 6 + 0.5
    for recording, n in enumerate(N_POSITIONS.tolist()):
        x[recording, n:, ::2] *= 20
    return x


def cut_out(stream: Tensor) -> Tensor:
    return torch.cat([stream[i, :n] for i, n in enumerate(N_POSITIONS.tolist())])


def same(got: Any, expected: Any, rel: float = 1e-4) -> None:
    got, expected = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    torch.testing.assert_close(got, expected, rtol=rel, atol=1e-5, equal_nan=True)


# Padding and axes


@pooled
def test_speech_only_is_the_statistic_of_the_cut_out_vectors(
    statistic: Callable[..., Any], stream: Tensor
) -> None:
    got = statistic(stream, N_POSITIONS)
    same(got, statistic(cut_out(stream)))
    everything = torch.as_tensor(statistic(stream)).double()
    assert everything.shape != torch.as_tensor(got).shape or not torch.allclose(
        everything, torch.as_tensor(got).double(), rtol=1e-2
    )
    same(statistic(stream, N_POSITIONS, all_frames=True), statistic(stream))


@pooled
@pytest.mark.parametrize("shape", [(20, 12), (1, 20, 12), (2, 2, 5, 12)], ids=str)
def test_batch_axes_are_pooled(
    statistic: Callable[..., Any], stream: Tensor, shape: tuple[int, ...]
) -> None:
    same(statistic(stream.reshape(shape)), statistic(stream))


@per_vector
def test_vectors_that_do_not_count_are_nan(
    statistic: Callable[..., Tensor], stream: Tensor
) -> None:
    got = statistic(stream, N_POSITIONS)
    same(got[0, :4], statistic(stream[0, :4]))
    assert bool(got[0, 4:].isnan().all()) and bool(got[1, 7:].isnan().all())
    same(statistic(stream, N_POSITIONS, all_frames=True), statistic(stream))


@pooled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_is_computed_in_float32(
    statistic: Callable[..., Any], stream: Tensor, dtype: torch.dtype
) -> None:
    half = stream.to(dtype)
    same(statistic(half, N_POSITIONS), statistic(half.float(), N_POSITIONS))


# Formulas


def test_speech_vectors_are_the_vectors_in_order(stream: Tensor) -> None:
    assert torch.equal(speech_vectors(stream, N_POSITIONS), cut_out(stream))


def test_norms_are_the_root_of_the_sum_of_squares(stream: Tensor) -> None:
    same(residual_norm(stream), np.sqrt((stream.double().numpy() ** 2).sum(-1)))


def test_hoyer_is_its_formula(stream: Tensor) -> None:
    x = stream.double().numpy()
    ratio = np.abs(x).sum(-1) / np.sqrt((x**2).sum(-1))
    same(hoyer_sparsity(stream), (math.sqrt(12) - ratio) / (math.sqrt(12) - 1))
    assert hoyer_sparsity(torch.eye(5)).tolist() == pytest.approx([1] * 5)
    assert hoyer_sparsity(torch.ones(1, 9)).item() == pytest.approx(0, abs=1e-6)
    assert math.isnan(hoyer_sparsity(torch.zeros(1, 9)))


def excess(x: np.ndarray) -> float:
    deviation = x - x.mean()
    return float((deviation**4).mean() / (deviation**2).mean() ** 2 - 3)


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8], ids=str)
def test_kurtosis_is_its_formula(stream: Tensor, size: float) -> None:
    x = cut_out(stream).double().numpy()
    scaled = stream * size
    same(kurtosis(scaled, N_POSITIONS), excess(x))
    same(kurtosis(scaled, N_POSITIONS, per="dimension"), [excess(each) for each in x.T])
    same(kurtosis(scaled, N_POSITIONS, per="vector"), [excess(each) for each in x])


def test_kurtosis_of_known_distributions() -> None:
    assert kurtosis(torch.randn(2000, 100)).item() == pytest.approx(0, abs=0.05)
    assert kurtosis(torch.rand(2000, 100)).item() == pytest.approx(-1.2, abs=0.02)
    assert math.isnan(kurtosis(torch.ones(3, 3)))


def test_share_below_counts(stream: Tensor) -> None:
    x = cut_out(stream)
    same(
        share_below(stream, 0.3, N_POSITIONS), sum(abs(v) < 0.3 for v in x.flatten().tolist()) / 132
    )
    limit = 0.1 * math.sqrt((x**2).mean().item())
    expected = sum(abs(v) < limit for v in x.flatten().tolist()) / 132
    same(share_below(stream, 0.1, N_POSITIONS, of_rms=True), expected)
    assert share_below(torch.randn(1000, 100), 0.1, of_rms=True) == pytest.approx(0.0797, abs=0.003)


@pytest.mark.parametrize("n_vectors", [8, 50], ids=["fewer than dimensions", "more"])
def test_participation_ratio_is_that_of_the_eigenvalues(n_vectors: int) -> None:
    x = torch.randn(n_vectors, 12) * torch.arange(1, 13) + 100
    values = np.linalg.eigvalsh(np.cov(x.double().numpy(), rowvar=False))
    same(participation_ratio(x), values.sum() ** 2 / (values**2).sum(), rel=1e-3)


def test_participation_ratio_of_known_shapes() -> None:
    line = torch.arange(10.0)[:, None] * torch.randn(8)
    assert participation_ratio(line + 5) == pytest.approx(1, abs=1e-4)
    assert participation_ratio(torch.randn(200_000, 6)) == pytest.approx(6, abs=0.01)
    assert math.isnan(participation_ratio(torch.ones(4, 4)))


def test_outliers_are_found_the_largest_first() -> None:
    x = torch.randn(1, 400, 20)
    x[..., 7] *= 100
    x[..., 3] += 30
    found = outlier_dimensions(x)
    assert found.dimensions.tolist() == [7, 3]
    rms = x[0].square().mean(0).sqrt()
    same(found.rms, rms[[7, 3]])
    same(found.times, rms[[7, 3]] / rms.median())
    assert outlier_dimensions(x, times=0).dimensions.sort().values.tolist() == list(range(20))


def test_the_histogram_is_numpys(stream: Tensor) -> None:
    x = cut_out(stream).flatten()
    got = residual_histogram(stream, N_POSITIONS, n_bins=13)
    counts, edges = np.histogram(x.numpy(), bins=13)
    assert got.counts.tolist() == counts.tolist() and got.n_outside == 0
    same(got.edges, edges)


def test_the_histogram_tells_what_is_outside(stream: Tensor) -> None:
    x = cut_out(stream).flatten()
    got = residual_histogram(stream, N_POSITIONS, n_bins=4, low=0, high=1)
    assert got.counts.tolist() == np.histogram(x.numpy(), bins=4, range=(0, 1))[0].tolist()
    assert got.n_outside == sum(not 0 <= v <= 1 for v in x.tolist()) > 0
    assert residual_histogram(torch.ones(2, 3), n_bins=3).counts.tolist() == [0, 6, 0]


# Between layers


def test_norm_by_layer_is_the_mean_norm(stream: Tensor) -> None:
    streams = [stream, 2 * stream, torch.randn(2, 10, 12)]
    expected = [cut_out(each).norm(dim=-1).mean().item() for each in streams]
    same(norm_by_layer(streams, N_POSITIONS), expected)
    same(norm_by_layer(torch.stack(streams), N_POSITIONS), expected)


@pytest.mark.parametrize("centred", [False, True], ids=["plain", "centred"])
def test_cosines_are_means_over_positions(stream: Tensor, centred: bool) -> None:
    streams = [stream, -stream, torch.randn(2, 10, 12) + 1]
    got = cosine_by_layer(streams, N_POSITIONS, centred=centred)
    cut = [cut_out(each).double() for each in streams]
    if centred:
        cut = [each - each.mean(0) for each in cut]
    for i in range(3):
        for j in range(3):
            cosines = [
                float(a @ b) / float(a.norm() * b.norm())
                for a, b in zip(cut[i], cut[j], strict=True)
            ]
            assert got[i, j].item() == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert got[0, 1].item() == pytest.approx(-1)


def test_centring_takes_off_what_all_positions_share() -> None:
    shared = 100 * torch.ones(50, 12)
    streams = [shared + torch.randn(50, 12), shared + torch.randn(50, 12)]
    assert cosine_by_layer(streams)[0, 1].item() > 0.99
    assert abs(cosine_by_layer(streams, centred=True)[0, 1].item()) < 0.3


# Bad input


@pooled
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_values_that_are_no_numbers_are_refused(
    statistic: Callable[..., Any], stream: Tensor, value: float
) -> None:
    stream[0, 2, 5] = value
    with pytest.raises(InputError, match=rf"holds {value} at dimension 5, and 1 such values"):
        statistic(stream, N_POSITIONS)


@pooled
def test_no_vectors_are_refused(statistic: Callable[..., Any], stream: Tensor) -> None:
    with pytest.raises(
        InputError, match=r"no position counts: the stream is \(2, 10, 12\) and n_po"
    ):
        statistic(stream, 0)


@pytest.mark.parametrize(
    ("n_positions", "match"),
    [
        (11, "n_positions is 11; this axis has 10 positions"),
        (
            torch.tensor([1, 2, 3]),
            r"shape \(3,\); it must be one integer for each recording, \(2,\)",
        ),
    ],
    ids=["too long", "too many"],
)
def test_counts_that_do_not_fit_are_refused(n_positions: Any, match: str, stream: Tensor) -> None:
    for statistic in (kurtosis, residual_norm, speech_vectors):
        with pytest.raises(InputError, match=match):
            statistic(stream, n_positions)


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "threshold": (lambda: share_below(torch.ones(2, 2), 0), "threshold is 0; it must be over 0"),
    "per": (lambda: unwrap(kurtosis)(torch.ones(2, 2), per="layer"), "per is 'layer'; it can be"),
    "times": (lambda: outlier_dimensions(torch.ones(2, 2), times=-1), "times is -1"),
    "bins": (
        lambda: residual_histogram(torch.ones(2, 2), n_bins=0),
        "n_bins is 0; it must be an integer",
    ),
    "edges": (lambda: residual_histogram(torch.ones(2, 2), low=2, high=1), "from 2 to 1"),
    "one dimension": (lambda: hoyer_sparsity(torch.ones(2, 1)), "the stream has 1 dimension"),
    "no streams": (lambda: norm_by_layer([]), "no streams; pass one a layer"),
    "streams of two shapes": (
        lambda: cosine_by_layer([torch.ones(2, 3), torch.ones(3, 3)]),
        r"stream 1 is \(3, 3\) and stream 0 \(2, 3\)",
    ),
}


@pytest.mark.parametrize(("call", "match"), CASES.values(), ids=CASES.keys())
def test_bad_options_are_refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        call()
