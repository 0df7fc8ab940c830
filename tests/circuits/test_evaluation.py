"""A circuit by itself: all edges give the clean run, none the corrupted one, one less its score."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.circuits import (
    Circuit,
    CircuitEvaluation,
    EdgeGraph,
    EdgeScores,
    circuit_transcripts,
    evaluate_circuits,
    faithfulness_curve,
    find_circuit,
)
from hooked_whisper.errors import AlignmentError, InterventionError
from hooked_whisper.metrics import ExactTranscript

from .conftest import example_of
from .test_find import DIFFERENCE, QUIET


@pytest.fixture(scope="module")
def exact(small_model: Any, pair: Any) -> EdgeScores:
    return find_circuit(small_model, pair, DIFFERENCE, **QUIET)


def test_all_edges_are_the_model_and_none_the_other_run(
    small_model: Any, pair: Any, short_pair: Any
) -> None:
    full = Circuit.full(EdgeGraph.of(small_model.cfg))
    found = evaluate_circuits(
        small_model, [full, full.complement()], [pair, short_pair], DIFFERENCE, **QUIET
    )
    for number, runs in enumerate([pair, short_pair]):
        with torch.no_grad():
            expected = torch.cat([DIFFERENCE(small_model(run.mel, run.tokens)) for run in runs])
        torch.testing.assert_close(found.values[number], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.clean, found.values[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.faithfulness(), torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)


def test_all_edges_but_one_are_the_exact_score(
    small_model: Any, pair: Any, exact: EdgeScores
) -> None:
    """Two ways to the same number, with no code in common."""
    full = Circuit.full(exact.graph)
    numbers = list(range(0, len(exact.edges), 7))
    circuits = [full.without([exact.edges[i]]) for i in numbers]
    found = evaluate_circuits(small_model, circuits, pair, DIFFERENCE, **QUIET)
    torch.testing.assert_close(found.values[0], exact.values[0, numbers], atol=1e-5, rtol=0)


def test_dangling_edges_change_nothing(small_model: Any, pair: Any, exact: EdgeScores) -> None:
    circuits = [exact.top(40, prune=False), exact.top(40)]
    assert len(circuits[1]) < len(circuits[0])
    found = evaluate_circuits(small_model, circuits, pair, DIFFERENCE, **QUIET)
    torch.testing.assert_close(found.values[0, 0], found.values[0, 1], atol=1e-5, rtol=0)


def test_a_curve_and_its_areas(
    small_model: Any, pair: Any, short_pair: Any, exact: EdgeScores
) -> None:
    shares = (0.001, 0.1, 0.5, 1.0)
    curve = faithfulness_curve(
        small_model, exact, [pair, short_pair], DIFFERENCE, shares=shares, n_random=2, **QUIET
    )
    f = curve.faithfulness().double()
    assert f[-1] == pytest.approx(1, abs=1e-4)
    steps = torch.tensor(shares).double().diff()
    assert curve.cpr() == pytest.approx(float((steps * (f[1:] + f[:-1]) / 2).sum()), abs=1e-6)
    away = (1 - f).abs()
    assert curve.cmd() == pytest.approx(float((steps * (away[1:] + away[:-1]) / 2).sum()), abs=1e-6)
    assert curve.random().shape == (2, 4)
    low, high = curve.interval("cpr")
    assert low <= curve.cpr() + 1e-6 and curve.cpr() - 1e-6 <= high
    frame = curve.to_dataframe()
    assert list(frame["edges"]) == [len(each) for each in curve.circuits]
    assert frame.columns.tolist()[-2:] == ["random", "random_max"]
    assert curve.plot().axes[0].get_xlabel() == "edges taken, in % of all"


def test_saved_and_gone_on_with(
    small_model: Any, pair: Any, exact: EdgeScores, tmp_path: Path
) -> None:
    path = tmp_path / "circuits.safetensors"
    circuits = [exact.greedy(n) for n in (20, 40, 60)]
    whole = evaluate_circuits(small_model, circuits, pair, DIFFERENCE, save_to=path, **QUIET)
    loaded = CircuitEvaluation.load(path)
    assert torch.equal(loaded.values, whole.values)
    loaded.values[0, 1] = torch.nan
    again = evaluate_circuits(small_model, circuits, pair, DIFFERENCE, resume=loaded, **QUIET)
    assert torch.equal(again.values, whole.values)
    with pytest.raises(InterventionError, match="the result to resume has other"):
        evaluate_circuits(small_model, circuits[::-1], pair, DIFFERENCE, resume=loaded, **QUIET)


@pytest.mark.slow
def test_the_digits_model_writes_with_all_edges_what_it_writes(digits_model: Any) -> None:
    from hooked_whisper.digits import recordings
    from hooked_whisper.interventions import Example

    spoken = recordings()[0]
    clean = Example.from_audio(digits_model, spoken.path, f" {spoken.text}")
    pair = (clean, clean.with_silence())
    full = Circuit.full(EdgeGraph.of(digits_model.cfg))
    options: dict[str, Any] = {"max_new_tokens": 8}
    assert circuit_transcripts(digits_model, full, [pair], **options) == [spoken.text]
    none = full.complement()
    silent = digits_model.generate(pair[1].mel, 8, language="en").texts
    assert circuit_transcripts(digits_model, none, [pair], **options) == silent
    metric = ExactTranscript(spoken.text)
    found = evaluate_circuits(digits_model, [full, none], pair, metric, **options, **QUIET)
    assert found.values.tolist() == [[1.0, 0.0]]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"circuits": []}, InterventionError, "no circuits; pass scores.top"),
        (
            {"circuits": Circuit.full(EdgeGraph(1, 1, 1, 1))},
            InterventionError,
            "a circuit has the graph",
        ),
    ],
    ids=["none", "another model's"],
)
def test_refuses(small_model: Any, pair: Any, change: Any, error: Any, message: str) -> None:
    full = Circuit.full(EdgeGraph.of(small_model.cfg))
    options = {"circuits": full, "pairs": pair, "metric": DIFFERENCE, **change, **QUIET}
    with pytest.raises(error, match=message):
        evaluate_circuits(small_model, **options)


def test_unequal_lengths_are_refused(small_model: Any, pair: Any) -> None:
    full = Circuit.full(EdgeGraph.of(small_model.cfg))
    longer = example_of(small_model, 9, n_pos=8)
    with pytest.raises(AlignmentError, match="the clean run has 7 tokens"):
        evaluate_circuits(small_model, full, (pair[0], longer), DIFFERENCE, **QUIET)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "change", [{"shares": (0.5,)}, {"shares": (0.5, 0.1)}, {"shares": (0, 1)}, {"choice": "best"}]
)
def test_a_curve_of_no_sizes_is_refused(
    small_model: Any, pair: Any, exact: EdgeScores, change: Any
) -> None:
    with pytest.raises(InterventionError, match=r"shares are|choice is"):
        faithfulness_curve(small_model, exact, pair, DIFFERENCE, **change, **QUIET)
