"""The graph has every way from a sender straight to a receiver, and no other."""

import pytest

from hooked_whisper.circuits import Edge, EdgeGraph, Embedding
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import InterventionError
from hooked_whisper.patching.paths import Head, MLPLayer, all_senders, reaches


def test_counts_at_tinys_size() -> None:
    graph = EdgeGraph.of(HookedWhisperConfig.for_release("tiny.en"))
    counts = [len(graph.of_kind(kind)) for kind in ("encoder", "cross", "decoder")]
    assert counts == [898, 1392, 2295]
    assert len(graph.edges) == len(set(graph.edges)) == 4585


def test_edges_are_what_path_patching_reaches(tiny_model) -> None:
    graph = EdgeGraph.of(tiny_model.cfg)
    receivers = list(dict.fromkeys(edge.receiver for edge in graph.edges))
    expected = {
        Edge(sender, receiver)
        for sender in all_senders(tiny_model)
        for receiver in receivers
        if reaches(tiny_model, sender, receiver)
    }
    embeds = {edge for edge in graph.edges if isinstance(edge.sender, Embedding)}
    assert set(graph.edges) - embeds == expected
    # Each embedding is read wherever its stream is.
    read_by = [edge.receiver for edge in embeds]
    assert sorted(map(str, read_by)) == sorted(map(str, receivers))


def test_a_site_holds_the_edges_of_its_senders_in_turn() -> None:
    graph = EdgeGraph(2, 3, 2, 2)
    for site in graph.sites:
        edges = graph.edges[site.edges]
        n = len(site.receivers)
        assert [edge.sender for edge in edges[::n]] == list(site.senders)
        assert [edge.receiver for edge in edges[:n]] == list(site.receivers)


@pytest.mark.parametrize("number", [0, 40, 100, -1])
def test_names_are_read_back(number: int) -> None:
    edge = EdgeGraph(2, 3, 2, 2).edges[number]
    assert Edge.from_text(str(edge)) == edge


@pytest.mark.parametrize("text", ["", "encoder.embed", "a->b", "decoder.0.mlp->decoder.1.attn.0.x"])
def test_what_is_no_edge_is_refused(text: str) -> None:
    with pytest.raises(InterventionError, match="is no edge; one is written as"):
        Edge.from_text(text)


def test_an_edge_of_another_model_is_refused() -> None:
    backwards = Edge(MLPLayer("encoder", 1), Head("encoder", 0, 0).q)
    with pytest.raises(InterventionError, match="is no edge of this model"):
        EdgeGraph(2, 3, 2, 2).numbers_of([backwards])
