"""The tables hold what the single functions give, recording by recording."""

import math
from typing import Any

import pandas
import pytest
import torch
from torch import Tensor

from hooked_whisper.analysis import attention, attention_timing, residual
from hooked_whisper.analysis.tables import HEAD_SCORES, head_table, residual_table
from hooked_whisper.errors import InputError

N_POSITIONS = torch.tensor([12, 20])
N_TOKENS = torch.tensor([6, 4])

ENCODER, DECODER, CROSS = (
    "encoder.blocks.0.attn.hook_pattern",
    "decoder.blocks.1.attn.hook_pattern",
    "decoder.blocks.1.cross_attn.hook_pattern",
)


@pytest.fixture
def patterns() -> dict[str, Tensor]:
    causal = torch.full((6, 6), -torch.inf).triu(1)
    return {
        "encoder.blocks.0.hook_resid_post": torch.randn(2, 20, 8),
        ENCODER: (2 * torch.randn(2, 3, 20, 20)).softmax(-1),
        DECODER: (2 * torch.randn(2, 4, 6, 6) + causal).softmax(-1),
        CROSS: (2 * torch.randn(2, 4, 6, 20)).softmax(-1),
    }


def row_of(table: pandas.DataFrame, name: str, head: int) -> Any:
    stack, _, layer, kind, _ = name.split(".")
    of_head = (table["stack"] == stack) & (table["layer"] == int(layer)) & (table["kind"] == kind)
    (row,) = table[of_head & (table["head"] == head)].to_dict("records")
    return row


def mean(values: Tensor, head: int) -> float:
    """The mean over the queries of each recording, then over recordings."""
    return values[:, head].reshape(2, -1).nanmean(dim=-1).nanmean().item()


def test_it_has_a_row_for_each_head_in_the_models_order(patterns: dict[str, Tensor]) -> None:
    table = head_table(patterns, N_POSITIONS)
    assert list(table.columns) == ["stack", "layer", "kind", "head", *HEAD_SCORES]
    assert [tuple(row) for row in table[["stack", "layer", "kind", "head"]].to_numpy()] == [
        *[("encoder", 0, "attn", head) for head in range(3)],
        *[("decoder", 1, "attn", head) for head in range(4)],
        *[("decoder", 1, "cross_attn", head) for head in range(4)],
    ]


@pytest.mark.parametrize("all_frames", [False, True], ids=["speech", "all frames"])
def test_its_numbers_are_those_of_the_single_functions(
    patterns: dict[str, Tensor], all_frames: bool
) -> None:
    energy = torch.randn(2, 20)
    table = head_table(
        patterns, N_POSITIONS, n_tokens=N_TOKENS, energy=energy, all_frames=all_frames
    )
    of_self = {
        "entropy_nats": attention.attention_entropy,
        "mean_distance": attention.mean_distance,
        "diagonal_width": attention.diagonal_width,
        "half_width_90": attention.diagonal_half_width,
        "previous_token": attention.previous_token_score,
        "current_token": attention.current_token_score,
        "start_token": attention.start_token_score,
    }
    cross: dict[str, Any] = {"n_tokens": N_TOKENS, "all_frames": all_frames}
    for head in range(3):
        row = row_of(table, ENCODER, head)
        for column, function in of_self.items():
            expected = function(patterns[ENCODER], N_POSITIONS, all_frames=all_frames)
            assert row[column] == pytest.approx(mean(expected, head), abs=1e-5), column
        on_padding = attention.share_on_padding(
            patterns[ENCODER], N_POSITIONS, all_frames=all_frames
        )
        assert row["on_padding"] == pytest.approx(mean(on_padding, head), abs=1e-5)
        r = attention_timing.correlation_with_energy(
            patterns[ENCODER], energy, N_POSITIONS, all_frames=all_frames
        )
        assert row["energy_correlation"] == pytest.approx(r[:, head].mean().item(), abs=1e-5)
        assert math.isnan(row["monotonicity"])

        row = row_of(table, DECODER, head)
        for column, function in of_self.items():
            expected = function(patterns[DECODER], n_tokens=N_TOKENS)
            assert row[column] == pytest.approx(mean(expected, head), abs=1e-5), column
        assert math.isnan(row["on_padding"]) and math.isnan(row["energy_correlation"])

        row, pattern = row_of(table, CROSS, head), patterns[CROSS]
        expected = attention.attention_entropy(pattern, N_POSITIONS, **cross)
        assert row["entropy_nats"] == pytest.approx(mean(expected, head), abs=1e-5)
        moves = attention_timing.monotonicity(pattern, N_POSITIONS, **cross)
        assert row["monotonicity"] == pytest.approx(moves[:, head].mean().item(), abs=1e-5)
        on_padding = attention.share_on_padding(pattern, N_POSITIONS, **cross)
        assert row["on_padding"] == pytest.approx(mean(on_padding, head), abs=1e-5)
        assert math.isnan(row["mean_distance"])


def test_the_share_of_entropy_is_of_what_the_query_can_see(patterns: dict[str, Tensor]) -> None:
    even = {
        ENCODER: torch.full((1, 1, 5, 5), 0.2),
        DECODER: (torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None])[None, None],
        CROSS: torch.full((1, 1, 4, 5), 0.2),
    }
    table = head_table(even, 3)
    assert table["entropy_share"].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert table["entropy_nats"][0] == pytest.approx(math.log(3))


def test_text_queries_are_those_that_count_in_cross_attention(patterns: dict[str, Tensor]) -> None:
    got = head_table(patterns, N_POSITIONS, n_tokens=N_TOKENS, text_queries=slice(2, -1))
    for head in range(4):
        rows = [patterns[CROSS][0, head, 2:5, :12], patterns[CROSS][1, head, 2:3]]
        entropies = [
            attention.attention_entropy(each / each.sum(-1, keepdim=True)).mean().item()
            for each in rows
        ]
        expected = sum(entropies) / 2
        assert row_of(got, CROSS, head)["entropy_nats"] == pytest.approx(expected, abs=1e-5)
    others = head_table(patterns, N_POSITIONS, n_tokens=N_TOKENS)
    assert row_of(got, DECODER, 1) == pytest.approx(row_of(others, DECODER, 1), nan_ok=True)


def test_by_recording_has_the_rows_that_the_means_are_of(patterns: dict[str, Tensor]) -> None:
    by_recording = head_table(patterns, N_POSITIONS, by_recording=True)
    assert by_recording["recording"].value_counts().tolist() == [11, 11]
    means = by_recording.groupby(["stack", "layer", "kind", "head"], sort=False)["entropy_nats"]
    expected = head_table(patterns, N_POSITIONS)["entropy_nats"]
    assert means.mean().tolist() == pytest.approx(expected.tolist())


def test_a_pattern_without_a_batch_axis(patterns: dict[str, Tensor]) -> None:
    alone = {name: value[0] for name, value in patterns.items()}
    first = {name: value[:1] for name, value in patterns.items()}
    pandas.testing.assert_frame_equal(
        head_table(alone, torch.tensor([12])), head_table(first, torch.tensor([12]))
    )


def test_a_recording_without_speech_has_no_numbers(patterns: dict[str, Tensor]) -> None:
    one = {ENCODER: patterns[ENCODER], CROSS: patterns[CROSS]}
    table = head_table(one, torch.tensor([0, 20]), by_recording=True)
    silent = table["recording"] == 0
    assert bool(table[silent]["entropy_nats"].isna().all())
    assert bool(table[~silent]["entropy_nats"].notna().all())


def test_it_reads_a_cache(tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> None:
    with torch.no_grad():
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
    table = head_table(cache, 20)
    assert len(table) == 2 * 2 + 3 * 3 + 3 * 3
    streams = residual_table(cache, 20)
    assert set(streams["stack"]) == {"encoder", "decoder"}
    assert streams["stream"].value_counts()["resid_post"] == 5


def test_half_precision_patterns_are_taken(patterns: dict[str, Tensor]) -> None:
    half = {name: value.bfloat16() for name, value in patterns.items()}
    got, expected = head_table(half, 12), head_table(patterns, 12)
    columns = ["entropy_nats", "mean_distance", "on_padding"]
    assert (got[columns] - expected[columns]).abs().max().max() < 0.03


HEAD_ERRORS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no patterns": (
        {ENCODER: None, DECODER: None, CROSS: None},
        {},
        r"no patterns among the 1 activations\. Keep them with model\.run_with_cache",
    ),
    "a bad row": (
        {CROSS: torch.zeros(2, 4, 6, 20)},
        {},
        rf"{CROSS}, recording 0, head 0: row \[0\] of the pattern sums to 0",
    ),
    "too long": ({}, {"n_positions": torch.tensor([12, 21])}, r"this axis has 20 positions"),
    "tokens": ({}, {"n_tokens": 7}, r"n_tokens is 7; this axis has 6"),
    "recordings": ({}, {"n_positions": torch.tensor([12])}, r"shape \(1,\); .* recording, \(2,\)"),
    "energy": (
        {},
        {"energy": torch.zeros(2, 19)},
        rf"the energy is \(2, 19\); {ENCODER} needs \(2, 20\)",
    ),
    "a slice of the queries": (
        {ENCODER: torch.full((2, 3, 5, 20), 0.05)},
        {},
        r"has 5 queries and 20 keys; the table needs self-attention over all positions",
    ),
    "axes": ({ENCODER: torch.eye(20)}, {}, r"is \(20, 20\), torch.float32; a pattern is floating"),
}


@pytest.mark.parametrize(("change", "options", "match"), HEAD_ERRORS.values(), ids=HEAD_ERRORS)
def test_bad_input_is_refused(
    patterns: dict[str, Tensor], change: dict[str, Any], options: dict[str, Any], match: str
) -> None:
    patterns = {name: value for name, value in (patterns | change).items() if value is not None}
    with pytest.raises(InputError, match=match):
        head_table(patterns, **options)


# Streams


@pytest.fixture
def streams() -> dict[str, Tensor]:
    return {
        ENCODER: torch.eye(20).expand(2, 3, 20, 20),
        "encoder.blocks.0.hook_resid_pre": torch.randn(2, 20, 8),
        "encoder.blocks.3.hook_mlp_out": torch.randn(2, 20, 8) * torch.tensor([50.0] + [1.0] * 7),
        "encoder.ln_final.hook_normalized": torch.randn(2, 20, 8),
        "decoder.blocks.1.hook_resid_mid_cross": torch.randn(2, 6, 8),
    }


@pytest.mark.parametrize("all_frames", [False, True], ids=["speech", "all frames"])
def test_the_residual_table_holds_the_single_functions(
    streams: dict[str, Tensor], all_frames: bool
) -> None:
    table = residual_table(streams, N_POSITIONS, n_tokens=N_TOKENS, all_frames=all_frames)
    assert table["stream"].tolist() == ["resid_pre", "mlp_out", "normalized", "resid_mid_cross"]
    assert table["layer"].tolist() == [0, 3, pandas.NA, 1]
    of_encoder: dict[str, Any] = {"n_positions": N_POSITIONS, "all_frames": all_frames}
    for row, (name, x) in zip(table.to_dict("records"), list(streams.items())[1:], strict=True):
        speech = of_encoder if name.startswith("encoder") else {"n_positions": N_TOKENS}
        expected = {
            "norm": residual.norm_by_layer([x], **speech).item(),
            "kurtosis": residual.kurtosis(x, **speech).item(),
            "kurtosis_per_vector": residual.kurtosis(x, per="vector", **speech).mean().item(),
            "hoyer": residual.hoyer_sparsity(x, **speech).nanmean().item(),
            "small_share": residual.share_below(x, 0.1, of_rms=True, **speech),
            "participation_ratio": residual.participation_ratio(x, **speech),
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-5), name
    outlier = table.iloc[1]
    assert (outlier["n_outliers"], outlier["largest_dimension"]) == (1, 0)
    x = residual.speech_vectors(streams["encoder.blocks.3.hook_mlp_out"], **of_encoder)
    rms = x.square().mean(dim=0).sqrt()
    assert outlier["largest_times"] == pytest.approx((rms[0] / rms.median()).item(), rel=1e-5)


def test_a_stream_without_a_batch_axis(streams: dict[str, Tensor]) -> None:
    name = "encoder.blocks.0.hook_resid_pre"
    pandas.testing.assert_frame_equal(
        residual_table({name: streams[name][0]}, torch.tensor([12])),
        residual_table({name: streams[name][:1]}, 12),
    )


def test_bad_streams_are_refused(streams: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="no residual streams among the 0 activations"):
        residual_table({})
    streams["encoder.blocks.3.hook_mlp_out"][0, 3, 2] = math.nan
    with pytest.raises(InputError, match=r"encoder\.blocks\.3\.hook_mlp_out: the stream holds nan"):
        residual_table(streams)
