"""What metrics share: their contract, functions as metrics, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import MetricError
from hooked_whisper.metrics.base import (
    Metric,
    PositionMetric,
    as_metric,
    check_values,
    resolve_positions,
)
from hooked_whisper.metrics.sequences import (
    ExactSequence,
    KLDivergence,
    Loss,
    SequenceLogProb,
)
from hooked_whisper.metrics.tokens import (
    LogitDifference,
    LogProb,
    Probability,
    TokenRank,
)
from hooked_whisper.metrics.transcripts import WordErrorRate

N_POS, D_VOCAB = 7, 11

LOGITS = torch.randn(3, N_POS, D_VOCAB, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(0, D_VOCAB, (3, N_POS), generator=torch.Generator().manual_seed(4))

METRICS: dict[str, Metric] = {
    "logit difference": LogitDifference(4, (1, 2, 3), pos=2),
    "log-probability": LogProb(torch.tensor([4, 5, 6]), pos=-2),
    "probability": Probability(4),
    "rank": TokenRank([1, 2, 3], pos=0),
    "sequence": SequenceLogProb(TOKENS, start=3),
    "loss": Loss(TOKENS),
    "exact": ExactSequence(LOGITS.argmax(dim=-1).roll(1, dims=1)),
    "divergence": KLDivergence(LOGITS.roll(1, dims=0)),
    "divergence at some": KLDivergence(LOGITS[:1], pos=[1, -1]),
    "function": as_metric(lambda logits: logits[:, 0, 1] - logits[:, 1, 2], positions=[4, -1]),
    "function of all": as_metric(lambda logits: logits.flatten(1).max(dim=1).values),
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)


@every_metric
@dtypes
def test_one_float32_number_for_each_row(metric: Metric, dtype: torch.dtype) -> None:
    values = metric(LOGITS.to(dtype))
    assert values.dtype == torch.float32
    assert values.shape == (3,)
    # Of the same rounded logits; a user's function computes in the logits' own precision.
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    exact, largest = metric(LOGITS.to(dtype).float()), LOGITS.abs().max().item()
    torch.testing.assert_close(values, exact, atol=2 * eps * largest, rtol=2 * eps)


@pytest.mark.parametrize(
    "metric",
    [metric for name, metric in METRICS.items() if "function" not in name],
    ids=[name for name in METRICS if "function" not in name],
)
def test_half_precision_logits_are_judged_in_float32(metric: Metric) -> None:
    rounded = LOGITS.to(torch.bfloat16)
    torch.testing.assert_close(metric(rounded), metric(rounded.float()))


@every_metric
def test_it_reads_its_positions_only(metric: Metric) -> None:
    if metric.positions is None:
        assert torch.equal(metric.of_positions(LOGITS), metric(LOGITS))
        return
    alone = metric.of_positions(LOGITS[:, list(metric.positions)])
    assert torch.equal(alone, metric(LOGITS))
    other = torch.full_like(LOGITS, torch.nan)
    places = resolve_positions(metric, N_POS)
    other[:, places] = LOGITS[:, places]
    assert torch.equal(metric(other), metric(LOGITS))


@pytest.mark.parametrize("first", [0, 1, 2], ids=lambda first: f"from the {first}th")
@pytest.mark.parametrize(
    "metric",
    [metric for metric in METRICS.values() if isinstance(metric, PositionMetric)],
    ids=[name for name, metric in METRICS.items() if isinstance(metric, PositionMetric)],
)
def test_one_number_for_each_position(metric: PositionMetric, first: int) -> None:
    """A sweep computes the numbers from the first patched position on, and knows the others."""
    places = resolve_positions(metric, N_POS)
    read = LOGITS if places is None else LOGITS[:, places]
    before, after = (
        metric.at_positions(read[:, :first]),
        metric.at_positions(read[:, first:], first),
    )
    assert before.shape == (3, first) and before.dtype == after.dtype == torch.float32
    joined = torch.cat([before, after], dim=1)
    assert joined.shape == read.shape[:2]
    torch.testing.assert_close(metric.combine(joined), metric(LOGITS))


@every_metric
def test_rows_do_not_mix(metric: Metric) -> None:
    """A sweep puts the runs of several patches side by side."""
    changed = LOGITS.clone()
    changed[1] += torch.randn_like(changed[1])
    before, after = metric(LOGITS), metric(changed)
    assert torch.equal(before[[0, 2]], after[[0, 2]])


@every_metric
def test_it_accepts_the_run_that_it_judges(metric: Metric) -> None:
    metric.check(3, N_POS, D_VOCAB)


@every_metric
def test_it_leaves_the_logits_as_they_are(metric: Metric) -> None:
    logits = LOGITS.clone()
    metric(logits)
    assert torch.equal(logits, LOGITS)


def test_negative_positions_count_from_the_last_token() -> None:
    assert resolve_positions(LogProb(0, pos=-2), N_POS) == [N_POS - 2]
    assert torch.equal(LogProb(4, pos=-2)(LOGITS), LogProb(4, pos=N_POS - 2)(LOGITS))


@pytest.mark.parametrize("pos", [7, -8], ids=str)
def test_a_position_that_is_not_there(pos: int) -> None:
    with pytest.raises(MetricError, match=rf"LogProb reads position {pos}; there are 7"):
        LogProb(4, pos=pos)(LOGITS)
    with pytest.raises(MetricError, match=rf"reads position {pos}"):
        LogProb(4, pos=pos).check(3, N_POS, D_VOCAB)


# Functions as metrics


def test_a_function_is_given_the_logits() -> None:
    seen = []

    def peak(logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits[:, -1].max(dim=-1).values

    metric = as_metric(peak)
    assert torch.equal(metric(LOGITS), LOGITS[:, -1].amax(dim=-1))
    assert torch.equal(seen[0], LOGITS)


def test_a_function_with_positions_is_given_these() -> None:
    metric = as_metric(lambda logits: logits[:, :, 0].sum(dim=1), positions=[2, -1])
    assert metric.positions == (2, -1)
    torch.testing.assert_close(metric(LOGITS), LOGITS[:, 2, 0] + LOGITS[:, 6, 0])


def test_a_metric_stays_as_it_is() -> None:
    metric = LogProb(4)
    assert as_metric(metric) is metric


def test_gradients_flow_through_a_function() -> None:
    logits = LOGITS.clone().requires_grad_()
    as_metric(lambda logits: logits[:, -1, 3] ** 2)(logits).sum().backward()
    expected = torch.zeros_like(LOGITS)
    expected[:, -1, 3] = 2 * LOGITS[:, -1, 3]
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.int64, [2.0, 0.0]), (torch.bool, [1.0, 0.0]), (torch.float64, [2.0, 0.0])],
    ids=str,
)
def test_counts_and_yes_or_no_are_numbers(dtype: torch.dtype, expected: list[float]) -> None:
    values = check_values(torch.tensor([2, 0]).to(dtype), 2)
    assert values.dtype == torch.float32
    assert values.tolist() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, r"returned None\. It must return a tensor of one number for each of the 2 rows"),
        (1.5, r"returned 1\.5\. It must return a tensor"),
        (torch.tensor(1.5), r"returned a tensor of shape \(\)\. .* shape \(2,\)"),
        (torch.zeros(1), r"returned a tensor of shape \(1,\)"),
        (torch.zeros(3), r"returned a tensor of shape \(3,\)"),
        (torch.zeros(2, 1), r"returned a tensor of shape \(2, 1\)"),
        (torch.tensor([0.0, torch.nan]), r"gave nan in row 1, and 1 of 2 rows are not finite"),
        (torch.tensor([-torch.inf, torch.nan]), r"gave -inf in row 0, and 2 of 2 rows"),
        (torch.zeros(2, dtype=torch.complex64), r"returned torch\.complex64"),
    ],
    ids=["None", "number", "no axis", "too few", "too many", "two axes", "NaN", "inf", "complex"],
)
def test_what_is_not_one_number_for_each_row(values: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        check_values(values, 2)

    def mine(logits: Tensor) -> Any:
        return values

    with pytest.raises(MetricError, match="the metric mine " + message):
        as_metric(mine)(LOGITS[:2])


@pytest.mark.parametrize("wrong", [None, "loss", 3, LOGITS], ids=["None", "text", "int", "tensor"])
def test_what_is_no_function(wrong: Any) -> None:
    with pytest.raises(MetricError, match=r"is no metric\. Give one such as LogProb"):
        as_metric(wrong)


def test_a_metric_of_texts_is_no_metric_of_logits() -> None:
    with pytest.raises(MetricError, match="judges a text, but logits are what is judged"):
        as_metric(WordErrorRate("one", normalize=False))


def test_positions_of_a_function() -> None:
    with pytest.raises(MetricError, match=r"positions are empty\. Give at least one"):
        as_metric(torch.sum, positions=[])
    with pytest.raises(MetricError, match=r"reads position 9; there are 7"):
        as_metric(torch.sum, positions=[9])(LOGITS)
