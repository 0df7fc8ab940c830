"""Statistics of recordings taken in one after the other are those of all of them together."""

from typing import Any

import pandas as pd
import pytest
import torch

from hooked_whisper.analysis import (
    HEAD_SCORES,
    HeadMeans,
    ResidualStatistics,
    head_table,
    hoyer_sparsity,
    kurtosis,
    outlier_dimensions,
    participation_ratio,
    residual_table,
)


def patterns(seed: int, n_positions: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"encoder.blocks.{layer}.attn.hook_pattern": torch.randn(
            1, 2, 12, 12, generator=generator
        ).softmax(dim=-1)
        for layer in range(3)
    }


def test_head_means_are_those_of_the_table_of_all_recordings() -> None:
    heads, lengths = HeadMeans(3, 2), (12, 5, 9)
    tables = [head_table(patterns(i, n), n) for i, n in enumerate(lengths)]
    for table in tables:
        # Layer by layer, as patterns come.
        for _, layer in table.groupby("layer"):
            heads.add(layer)
    means = pd.concat(tables).groupby(["layer", "head"])[list(HEAD_SCORES)].mean()
    for name in ("entropy_nats", "diagonal_width", "on_padding"):
        expected = torch.tensor(means[name].to_numpy(), dtype=torch.float32).view(3, 2)
        torch.testing.assert_close(heads[name], expected)
    assert heads.to_dict()["entropy_nats"] == heads["entropy_nats"].tolist()
    assert "monotonicity" not in heads.to_dict(), "which no head of self-attention has"


def test_a_head_without_a_score_in_one_recording_has_the_others_mean() -> None:
    heads = HeadMeans(1, 2)
    heads.add({"layer": [0, 0], "head": [0, 1], "score": [1.0, torch.nan]})
    heads.add({"layer": [0, 0], "head": [0, 1], "score": [2.0, 5.0], "more": [0.0, 1.0]})
    assert heads.to_dict() == {"score": [[1.5, 5.0]], "more": [[0.0, 1.0]]}


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    x = torch.randn(400, 32, generator=torch.Generator().manual_seed(4))
    x[:, 7] *= 40
    return x


@pytest.fixture(scope="module")
def found(vectors: torch.Tensor) -> dict[str, Any]:
    statistics = ResidualStatistics()
    for part in vectors.split([100, 1, 299]):
        statistics.add(part)
    return statistics.to_dict()


def test_residual_statistics_are_those_of_all_vectors(
    found: dict[str, Any], vectors: torch.Tensor
) -> None:
    assert (found["n_vectors"], found["d_model"]) == (400, 32)
    assert found["kurtosis"] == pytest.approx(float(kurtosis(vectors)), rel=1e-4)
    assert found["hoyer"] == pytest.approx(float(hoyer_sparsity(vectors).mean()), rel=1e-4)
    assert found["participation_ratio"] == pytest.approx(participation_ratio(vectors), rel=1e-4)
    table = residual_table({"encoder.blocks.0.hook_resid_post": vectors[None]}).iloc[0]
    for name, column in {"norm": "norm", "near_0_share": "small_share"}.items():
        assert found[name] == pytest.approx(table[column], rel=2e-2)
    assert (found["n_outliers"], found["largest_dimension"]) == (1, 7)
    outliers = outlier_dimensions(vectors)
    assert found["outliers"][0]["times"] == pytest.approx(float(outliers.times[0]), rel=1e-4)


def test_evenness_is_1_where_dimensions_vary_alike_and_falls_with_one_that_stands_out(
    found: dict[str, Any], vectors: torch.Tensor
) -> None:
    even = ResidualStatistics()
    even.add(vectors / vectors.std(dim=0))
    assert even.to_dict()["evenness"] == pytest.approx(1, abs=1e-3)
    assert found["evenness"] < 0.1


def test_the_histogram_has_every_value_in_standard_deviations(vectors: torch.Tensor) -> None:
    statistics = ResidualStatistics()
    statistics.add(vectors)
    counts, edges = statistics.histogram()
    assert counts.sum() == vectors.numel()
    assert len(edges) == len(counts) + 1 <= 122
    scaled = (vectors.double() - vectors.double().mean()) / vectors.double().std(correction=0)
    assert counts.tolist() == torch.histogram(scaled.flatten(), edges.double()).hist.tolist()


def test_the_bulk_is_drawn_and_the_rest_counted() -> None:
    statistics, generator = ResidualStatistics(), torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator)
    x[5, 3] = 400.0
    statistics.add(x)
    counts, edges = statistics.histogram(statistics.bulk_stds)
    assert -7 < float(edges[0]) and float(edges[-1]) < 7
    assert counts.sum() == x.numel() - 1
    assert statistics.to_dict()["bulk_share"] == pytest.approx(1 - 1 / x.numel())
    assert statistics.histogram()[0].sum() == x.numel()
