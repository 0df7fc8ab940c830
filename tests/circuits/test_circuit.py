"""Circuits are chosen by scores, pruned of what leads nowhere, and kept in files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.circuits import Circuit, EdgeGraph, EdgeScores, find_circuit
from hooked_whisper.errors import InterventionError

from .test_find import DIFFERENCE, QUIET

GRAPH = EdgeGraph(1, 1, 1, 1)
WAY = [
    "encoder.embed->encoder.0.attn.0.v",
    "encoder.0.attn.0->encoder.0.mlp",
    "encoder.0.mlp->decoder.0.cross_attn.0.v",
    "decoder.0.cross_attn.0->logits",
]


@pytest.fixture(scope="module")
def scores(small_model: Any, pair: Any) -> EdgeScores:
    return find_circuit(small_model, pair, DIFFERENCE, "eap", **QUIET)


def scores_of(values: dict[str, float]) -> EdgeScores:
    """Scores of the smallest graph: 0 for all edges but these."""
    change = torch.zeros(1, len(GRAPH.edges))
    for name, value in values.items():
        change[0, GRAPH.numbers_of([name])] = value
    axes = {"pair": [0], "edge": [str(edge) for edge in GRAPH.edges]}
    one, none = torch.ones(1), torch.zeros(1)
    return EdgeScores(1 - change, axes, one, none, "noising", "m", GRAPH, "exact")


def test_pruning_leaves_whole_ways_only() -> None:
    dangling = ["encoder.embed->encoder.0.mlp", "decoder.0.mlp->logits"]
    circuit = Circuit.of(GRAPH, [*WAY[1:], *dangling])
    kept = [WAY[2], WAY[3], "encoder.embed->encoder.0.mlp"]
    assert set(map(str, circuit.pruned())) == set(kept)
    assert circuit.pruned() == circuit.pruned().pruned()
    assert set(map(str, Circuit.of(GRAPH, WAY).pruned())) == set(WAY)


def test_a_ring_without_a_beginning_is_pruned_step_by_step() -> None:
    assert len(Circuit.of(GRAPH, WAY[1:]).pruned()) == 0
    assert len(Circuit.of(GRAPH, WAY[:3]).pruned()) == 0


def test_top_takes_the_largest_and_greedy_what_hangs_together() -> None:
    strong, weak = "encoder.embed->encoder.0.attn.0.q", "decoder.embed->logits"
    scores = scores_of({**dict.fromkeys(WAY, 0.5), strong: -0.9, weak: 0.1})
    assert set(map(str, scores.top(5))) == {*WAY, strong}
    assert set(map(str, scores.top(4, absolute=False))) == set(WAY)
    assert set(map(str, scores.greedy(5))) == {*WAY, strong}
    assert set(map(str, scores.greedy(5, absolute=False))) == {*WAY, weak}


def test_greedy_grows_from_the_logits() -> None:
    # The best edge of all leads to a node that is not in the circuit yet.
    scores = scores_of({"encoder.embed->encoder.0.mlp": 0.9, "decoder.embed->logits": 0.1})
    assert list(map(str, scores.greedy(1))) == ["decoder.embed->logits"]
    with pytest.raises(InterventionError, match="no edge is left of 1"):
        scores.top(1)
    assert len(scores.top(1, may_be_empty=True)) == 0


def test_random_circuits_hang_together(small_model: Any) -> None:
    graph = EdgeGraph.of(small_model.cfg)
    first, again, other = (Circuit.random(graph, 60, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first == first.pruned() and 20 < len(first) <= 60


def test_the_complement_and_what_is_in(scores: EdgeScores) -> None:
    circuit = scores.top(50)
    rest = circuit.complement()
    assert len(circuit) + len(rest) == len(scores.edges)
    assert all(edge in circuit and edge not in rest for edge in circuit)
    assert circuit.nodes[-1] == "logits"
    assert len(circuit.without(list(circuit)[:3])) == len(circuit) - 3


def test_saved_and_read_back(scores: EdgeScores, tmp_path: Path) -> None:
    circuit, path = scores.greedy(40), tmp_path / "circuit.json"
    circuit.save(path)
    loaded = Circuit.load(path)
    assert loaded == circuit and loaded.about == circuit.about
    assert torch.equal(loaded.scores[loaded.mask], circuit.scores[circuit.mask])
    assert json.loads(path.read_text())["edges"] == [str(edge) for edge in circuit]


@pytest.mark.parametrize("text", ["", "{}", '{"format": 3}', "[]"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(text)
    with pytest.raises(InterventionError, match=r"Write one with circuit.save"):
        Circuit.load(path)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("n", [0, -1, 10**6, 1.5])
def test_sizes_that_cannot_be(scores: EdgeScores, n: Any) -> None:
    for choose in (scores.top, scores.greedy):
        with pytest.raises(InterventionError, match=r"n is"):
            choose(n)


def test_unfinished_scores_choose_nothing(scores: EdgeScores) -> None:
    scores_left = scores_of({})
    scores_left.values[0, 3] = torch.nan
    with pytest.raises(InterventionError, match="finish them with"):
        scores_left.top(3)


def test_scores_show_themselves(scores: EdgeScores) -> None:
    table, rows, columns = scores.matrix("cross")
    assert table.shape == (len(rows), len(columns)) and not table.isnan().any()
    frame = scores.to_dataframe()
    assert set(frame["kind"]) == {"encoder", "cross", "decoder"}
    assert len(frame) == len(scores.edges)
    assert "<img" in scores._repr_html_()
