"""What a circuit's picture, its seconds and its graph file say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.circuits import (
    Circuit,
    EdgeGraph,
    EdgeScores,
    attribution_graph,
    carried_seconds,
    draw_circuit,
    edge_times,
    find_circuit,
    save_attribution_graph,
)
from hooked_whisper.circuits.drawing import carried_by_all, greatest, parts_of, traced
from hooked_whisper.errors import InterventionError
from hooked_whisper.metrics import LogitDifference

DIFFERENCE = LogitDifference(right=3, wrong=5, pos=-2)
GRAPH = EdgeGraph(2, 3, 2, 2)
NAMES = [
    "encoder.embed->encoder.0.attn.1.v",
    "encoder.0.attn.1->decoder.0.cross_attn.1.v",
    "encoder.embed->decoder.0.cross_attn.0.k",
    "decoder.0.cross_attn.0->decoder.1.mlp",
    "decoder.0.cross_attn.1->decoder.1.mlp",
    "decoder.1.mlp->logits",
]


@pytest.fixture(scope="module")
def scores(small_model: Any, pair: Any) -> EdgeScores:
    return find_circuit(small_model, pair, DIFFERENCE, "eap-ig-inputs", n_steps=3, progress=False)


@pytest.fixture
def circuit() -> Circuit:
    scores = torch.zeros(len(GRAPH.edges))
    scores[GRAPH.numbers_of(NAMES)] = torch.tensor([0.4, 0.3, 0.1, 0.1, -0.3, 0.5])
    made = Circuit.of(GRAPH, NAMES)
    return Circuit(GRAPH, made.mask, scores, {"metric": "m", "method": "exact"})


def test_parts_of_all_seconds_sum_to_the_score(
    small_model: Any, pair: Any, scores: EdgeScores
) -> None:
    edges = [edge for edge in scores.edges if edge.kind != "decoder"]
    long = type(pair[0])(type(pair[0].mel)(pair[0].mel.values, torch.tensor([48])), pair[0].tokens)
    found = carried_seconds(
        small_model, (long, pair[1]), DIFFERENCE, edges, window_s=0.06, n_steps=3
    )
    assert set(found) == {str(edge) for edge in edges}
    again = find_circuit(
        small_model, (long, pair[1]), DIFFERENCE, "eap-ig-inputs", n_steps=3, progress=False
    )
    sums = torch.tensor([sum(part for *_, part in found[str(edge)]) for edge in edges])
    numbers = again.graph.numbers_of(edges)
    torch.testing.assert_close(sums, again.scores()[numbers], atol=1e-5, rtol=1e-4)
    times = [time for *time, _ in found[str(edges[0])]]
    assert times == [[0.0, 0.06], *times[1:-1], [0.42, 0.48]] and len(times) == 8


def test_padding_is_left_out(small_model: Any, pair: Any) -> None:
    found = carried_seconds(small_model, pair, DIFFERENCE, NAMES[:1], window_s=0.1, n_steps=1)
    assert found[NAMES[0]][-1][:2] == (0.3, 0.4)  # 40 frames


def test_edges_of_the_text_have_no_seconds_of_their_own(small_model: Any, pair: Any) -> None:
    assert carried_seconds(small_model, pair, DIFFERENCE, NAMES[-1:], n_steps=1) == {}


def test_seconds_are_traced_through_the_circuit(circuit: Circuit) -> None:
    early, late = (0.0, 0.1), (0.1, 0.2)
    times = {NAMES[1]: [(*early, 0.2), (*late, 0.6)], NAMES[2]: [(*early, -1.0)]}
    found = traced(circuit, times)
    assert found[NAMES[1]] == pytest.approx({early: 0.25, late: 0.75})
    assert found[NAMES[0]] == pytest.approx({early: 0.25, late: 0.75})  # what becomes of it
    assert found[NAMES[3]] == {early: -1.0}
    # 0.1 of what was all early and against, 0.3 of the other.
    both = {early: -0.1 + 0.3 * 0.25, late: 0.3 * 0.75}
    whole = sum(map(abs, both.values()))
    assert found[NAMES[5]] == pytest.approx({time: part / whole for time, part in both.items()})
    assert carried_by_all(circuit, found) == [
        (*time, pytest.approx(0.5 * part)) for time, part in sorted(found[NAMES[5]].items())
    ]


def test_what_no_time_reaches_is_left_out(circuit: Circuit) -> None:
    assert traced(circuit, {}) == {}
    alone = Circuit.of(GRAPH, [NAMES[2], NAMES[3], "decoder.embed->logits"])
    assert set(traced(alone, {NAMES[2]: [(0.0, 0.1, 1.0)]})) == {NAMES[2], NAMES[3]}


def test_measured_times_are_taken_too(small_model: Any, pair: Any, circuit: Circuit) -> None:
    windows = [(0.0, 0.1), (0.1, 0.2)]
    times = edge_times(small_model, pair, DIFFERENCE, [NAMES[1]], windows, progress=False)
    effect = times.effect()[0, 0].tolist()
    assert parts_of(times) == {
        NAMES[1]: [(*time, part) for time, part in zip(windows, effect[:2], strict=True)]
    }
    assert len(traced(circuit, times)) == 6


def test_the_greatest_edges(circuit: Circuit) -> None:
    assert {str(edge) for edge in greatest(circuit, 2)} == {NAMES[0], NAMES[5]}
    assert greatest(circuit, 9) is circuit


def test_a_picture_of_a_circuit(circuit: Circuit, pair: Any) -> None:
    times = {NAMES[1]: [(0.0, 0.1, 1.0)]}
    figure = draw_circuit(circuit, mel=pair[0].mel, words=[("one", 0.1, 0.3)], times=times)
    assert len(figure.axes) == 3 and figure.get_suptitle() == "6 edges, m, exact"
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"sound", "0.1", "0.0", "MLP 1", "logits", "encoder", "decoder", "cross 0"} <= texts
    paths = [patch for patch in figure.axes[0].patches if patch.get_facecolor()[3] == 0]
    assert len(paths) == 6
    widths = sorted(path.get_linewidth() for path in paths)
    assert widths[-1] == pytest.approx(0.35 + 3.2) and widths[0] < 1.2
    assert len(draw_circuit(circuit, n_edges=2).axes) == 1


def test_a_circuit_without_scores_is_drawn() -> None:
    figure = draw_circuit(Circuit.of(GRAPH, NAMES))
    assert figure.get_suptitle() == "6 edges"


def test_an_empty_circuit_is_refused() -> None:
    with pytest.raises(InterventionError, match=r"no edges, .* Choose some: scores\.top\(n\)"):
        draw_circuit(Circuit.of(GRAPH, []))


REQUIRED = {
    "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str},
    "qParams": {
        "pinnedIds": list,
        "supernodes": list,
        "linkType": str,
        "clickedId": str,
        "sg_pos": str,
    },
    "nodes": {
        "node_id": str,
        "feature": int,
        "layer": str,
        "ctx_idx": int,
        "feature_type": str,
        "jsNodeId": str,
        "clerp": str,
        "token_prob": float,
        "is_target_logit": bool,
        "run_idx": int,
        "reverse_ctx_idx": int,
    },
    "links": {"source": str, "target": str, "weight": float},
}
"""What `graph_models.py` of circuit-tracer and `graph-schema.json` of Neuronpedia ask for."""


def check_form(graph: Any) -> None:
    """Refuse what those would refuse, and what their pages cannot draw."""
    assert set(graph) == set(REQUIRED)
    for part, fields in REQUIRED.items():
        for each in graph[part] if part in ("nodes", "links") else [graph[part]]:
            for name, kind in fields.items():
                assert type(each[name]) is kind, (part, name, each[name])
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids) == len({node["jsNodeId"] for node in graph["nodes"]})
    layer = {
        node["node_id"]: -1 if node["layer"] == "E" else int(node["layer"])
        for node in graph["nodes"]
    }
    for link in graph["links"]:
        assert layer[link["source"]] < layer[link["target"]]
    assert len({(link["source"], link["target"]) for link in graph["links"]}) == len(graph["links"])
    n = len(graph["metadata"]["prompt_tokens"])
    assert all(0 <= node["ctx_idx"] < n for node in graph["nodes"])
    [logit] = [node for node in graph["nodes"] if node["feature_type"] == "logit"]
    assert int(logit["layer"]) == max(layer.values())
    assert float(logit["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(
        logit["token_prob"], abs=5e-4
    )


@pytest.fixture
def digits_pair(digits_model: Any) -> Any:
    from hooked_whisper.digits import recordings
    from hooked_whisper.interventions import Example

    return Example.from_audio(digits_model, recordings()[2].path, " seven")


def test_the_graph_form(digits_model: Any, digits_pair: Any, tmp_path: Path) -> None:
    graph = EdgeGraph.of(digits_model.cfg)
    names = [
        "encoder.embed->encoder.1.attn.2.q",
        "encoder.embed->encoder.1.attn.2.v",
        "encoder.1.attn.2->decoder.2.cross_attn.0.v",
        "decoder.embed->decoder.2.cross_attn.0.q",
        "decoder.2.cross_attn.0->logits",
    ]
    scores = torch.zeros(len(graph.edges))
    scores[graph.numbers_of(names)] = torch.tensor([0.1, 0.2, 0.3, -0.1, 0.5])
    circuit = Circuit(graph, Circuit.of(graph, names).mask, scores, {"method": "exact"})
    times = {names[2]: [(0.0, 0.3, 0.1), (0.3, 0.6, 0.2)]}
    found = attribution_graph(digits_model, circuit, digits_pair, pos=3, times=times, slug="seven")
    check_form(found)
    assert found["metadata"]["prompt_tokens"][:3] == [
        "0.00-0.30 s",
        "0.30-0.60 s",
        "<|startoftranscript|>",
    ]
    assert found["metadata"]["prompt"] == "seven" and found["metadata"]["slug"] == "seven"
    by_text = {node["clerp"]: node for node in found["nodes"]}
    assert by_text["encoder self-attention 1.2"]["ctx_idx"] == 1  # most from 0.3 to 0.6 s
    head = by_text["decoder cross-attention 2.0"]
    assert (head["ctx_idx"], head["feature"]) == (5, 0)
    weights = {(link["source"], link["target"]): link["weight"] for link in found["links"]}
    sound = by_text["encoder sound"]["node_id"]
    assert weights[sound, by_text["encoder self-attention 1.2"]["node_id"]] == pytest.approx(0.3)
    [logit] = [node for node in found["nodes"] if node["is_target_logit"]]
    assert logit["clerp"].startswith('Output " seven" (p=') and logit["token_prob"] > 0.9
    save_attribution_graph(tmp_path / "graph.json", digits_model, circuit, digits_pair, pos=3)
    kept = json.loads((tmp_path / "graph.json").read_text())
    check_form(kept)
    assert kept["metadata"]["prompt_tokens"][0] == "sound"


def test_no_such_token(digits_model: Any, digits_pair: Any, circuit: Circuit) -> None:
    with pytest.raises(InterventionError, match="pos is 9; the example has 5 tokens"):
        attribution_graph(digits_model, circuit, digits_pair, pos=9)
