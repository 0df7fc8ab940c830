"""What a circuit looks like: its nodes in rows, and the seconds of the recording in its edges."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hooked_whisper.circuits.circuit import Circuit
from hooked_whisper.circuits.graph import Embedding, Latent, receiving_node
from hooked_whisper.circuits.latents import LatentGraph
from hooked_whisper.circuits.times import EdgeTimes
from hooked_whisper.errors import InterventionError
from hooked_whisper.figures.axes import Word
from hooked_whisper.figures.circuits import CircuitEdge, CircuitNode, plot_circuit
from hooked_whisper.patching.paths import Head, HeadInput, MLPLayer
from hooked_whisper.speech.mel import Mel

if TYPE_CHECKING:
    import matplotlib.figure

Carried = Sequence[tuple[float, float, float]]
"""`(start_s, end_s, part)`: seconds of the recording, and how much of an edge comes from there."""

Times = EdgeTimes | Mapping[str, Carried]
"""What `edge_times` measures, or `carried_seconds` estimates."""


def parts_of(times: Times | None) -> Mapping[str, Carried]:
    """The parts of edges by their names; of several pairs, the mean effect of each time."""
    if not isinstance(times, EdgeTimes):
        return times or {}
    effect = times.effect().mean(dim=0).tolist()
    return {
        edge: [(*map(float, time), part) for time, part in zip(times.windows, parts, strict=False)]
        for edge, parts in zip(times.axes["edge"], effect, strict=True)
    }


def draw_circuit(
    circuit: Circuit,
    *,
    mel: Mel | None = None,
    words: Sequence[Word] = (),
    times: Times | None = None,
    n_edges: int | None = None,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """A circuit as a picture: stacks side by side, edges as wide as their scores.

    A head is reached on its left for its queries, in the middle for its keys, on its right for
    its values. Edges that raise the metric are blue, those that lower it brown and dashed.

    Args:
        circuit: What to draw.
        mel: A recording of the pairs, drawn below.
        words: Its words with their times, such as `recording.words`.
        times: The seconds that edges carry: what `edge_times` or `carried_seconds` gives.
            Bars above the mel show what all edges that lead to the logits carry.
        n_edges: Draw so many edges with the greatest scores; None draws all.
        title: Drawn above; else how the circuit was found.

    Raises:
        InterventionError: A circuit without edges.
    """
    if n_edges is not None:
        circuit = greatest(circuit, n_edges)
    carried: Carried = ()
    if times is not None:
        carried = carried_by_all(circuit, traced(circuit, times))
    about = circuit.about
    known = [str(about[key]) for key in ("metric", "method", "chosen") if key in about]
    return plot_circuit(
        drawn_nodes(circuit),
        drawn_edges(circuit),
        mel=None if mel is None else mel.values[0],
        sound_s=None if mel is None else float(mel.seconds[0]),
        words=words,
        carried=carried,
        label="score" if circuit.scores is not None else "edge",
        title=title or ", ".join([f"{len(circuit)} edges", *known]),
    )


def greatest(circuit: Circuit, n: int) -> Circuit:
    """The circuit of at most `n` edges, those with the greatest scores."""
    if circuit.scores is None or len(circuit) <= n:
        return circuit
    scores = torch.where(circuit.mask, circuit.scores.abs(), -1.0)
    mask = torch.zeros_like(circuit.mask)
    mask[scores.argsort(descending=True, stable=True)[:n]] = True
    return Circuit(circuit.graph, mask, circuit.scores, circuit.about)


def drawn_nodes(circuit: Circuit) -> list[CircuitNode]:
    """The nodes of a circuit, each in the row of its layer.

    Raises:
        InterventionError: A circuit without edges.
    """
    if not len(circuit):
        raise InterventionError(
            "the circuit has no edges, so that there is nothing to draw. Choose some: scores.top(n)"
        )
    return [_drawn(circuit, node) for node in circuit.nodes]


def drawn_edges(circuit: Circuit) -> list[CircuitEdge]:
    """The edges of a circuit with their scores, 1 where there are none; the greatest first."""
    found = []
    for number in circuit.mask.nonzero().flatten().tolist():
        edge = circuit.graph.edges[number]
        score = 1.0 if circuit.scores is None else float(circuit.scores[number])
        part = edge.receiver.part if isinstance(edge.receiver, HeadInput) else ""
        node = receiving_node(edge.receiver)
        found.append(CircuitEdge(str(edge), str(edge.sender), str(node), part, score))
    return sorted(found, key=lambda each: -abs(each.score))


def _drawn(circuit: Circuit, node: Any) -> CircuitNode:
    name, graph = str(node), circuit.graph
    has_latents = isinstance(graph, LatentGraph)
    if node == "logits":
        row = (3 + has_latents) * graph.n_text_layers + 1
        return CircuitNode(name, "logits", "decoder", row, "", 0, 1, "logits")
    stack, per_layer = node.stack, (2 if node.stack == "encoder" else 3) + has_latents
    if isinstance(node, Embedding):
        label = "sound" if stack == "encoder" else "tokens"
        return CircuitNode(name, label, stack, 0, "embed", 0, 1, "embed")
    first = 1 + per_layer * node.layer
    if isinstance(node, Latent):
        beside = [
            each
            for each in circuit.nodes
            if isinstance(each, Latent) and (each.stack, each.layer) == (stack, node.layer)
        ]
        row, text = first + per_layer - 1, f"latents {node.layer}"
        kind: Any = "error" if node.which == "error" else "latent"
        place = beside.index(node)
        return CircuitNode(name, node.which, stack, row, text, place, len(beside), kind)
    if isinstance(node, MLPLayer):
        row = first + per_layer - 1 - has_latents
        return CircuitNode(name, f"MLP {node.layer}", stack, row, "", 0, 1, "mlp")
    assert isinstance(node, Head)
    is_cross = node.kind == "cross_attn"
    text = f"{'cross' if is_cross else 'heads'} {node.layer}"
    n = graph.n_heads(stack)
    label = f"{node.layer}.{node.head}"
    return CircuitNode(name, label, stack, first + is_cross, text, node.head, n, "head")


Shares = dict[tuple[float, float], float]
"""The part of each time, `(start_s, end_s)`."""


def carried_by_all(
    circuit: Circuit, shares: Mapping[str, Shares]
) -> list[tuple[float, float, float]]:
    """What the edges into the logits carry together from each time, weighted by their scores."""
    sums: Shares = defaultdict(float)
    for edge in drawn_edges(circuit):
        if edge.receiver == "logits":
            for time, share in shares.get(edge.name, {}).items():
                sums[time] += edge.score * share
    return [(*time, part) for time, part in sorted(sums.items())]


def traced(circuit: Circuit, times: Times | None) -> dict[str, Shares]:
    """The seconds that every edge of a circuit carries, as far as its edges with times tell.

    An edge without times of its own carries what its sender was told by the circuit, or, where
    nothing before it has times, what becomes of it behind its receiver: their seconds, weighted
    by scores.

    Args:
        circuit: The circuit.
        times: What some edges carry.

    Returns:
        For each edge the part of each time, scaled so that the parts' sizes sum to 1; an edge
        that no time reaches is left out.
    """
    edges, parts = drawn_edges(circuit), parts_of(times)
    found = {edge.name: _shares(parts[edge.name]) for edge in edges if parts.get(edge.name)}
    found = {name: shares for name, shares in found.items() if shares}
    order = {str(node): place for place, node in enumerate(circuit.nodes)}
    into, out = defaultdict(list), defaultdict(list)
    for edge in edges:
        into[edge.receiver].append(edge)
        out[edge.sender].append(edge)
    for way, near, reverse in ((into, "sender", False), (out, "receiver", True)):
        for edge in sorted(edges, key=lambda each: order[each.sender], reverse=reverse):
            if edge.name in found:
                continue
            sums: Shares = defaultdict(float)
            for other in way[getattr(edge, near)]:
                for time, share in found.get(other.name, {}).items():
                    sums[time] += abs(other.score) * share
            if sums:
                found[edge.name] = _shares([(*time, part) for time, part in sums.items()])
    return {name: shares for name, shares in found.items() if shares}


def _shares(parts: Carried) -> Shares:
    whole = sum(abs(part) for _, _, part in parts)
    return {(start, end): part / whole for start, end, part in parts} if whole else {}
