"""A circuit in the graph form that circuit-tracer and Neuronpedia read.

Their nodes stand at a layer and at a token of the prompt. Here a node stands for all positions
of its stack, so that the prompt is the recording's seconds, one "token" for each time of the
edges, and behind them the text: a node of the encoder is put at the time of which its edges carry
most, one of the decoder at the token that is measured. The rows of the encoder are the first
layers, those of the decoder the next ones. Parallel edges, into a head's q, k and v, are one link.

Source: `graph_models.py` of circuit-tracer; `graph-schema.json` of Neuronpedia's web app.
"""

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from hooked_whisper.circuits.circuit import Circuit
from hooked_whisper.circuits.drawing import Times, drawn_edges, drawn_nodes, traced
from hooked_whisper.errors import InterventionError, check_count
from hooked_whisper.figures.circuits import CircuitEdge, CircuitNode
from hooked_whisper.interventions.examples import Example
from hooked_whisper.io import as_path, write_json
from hooked_whisper.model.whisper import HookedWhisper

_TYPES = {
    "embed": "embedding",
    "head": "attention head",
    "mlp": "mlp",
    "logits": "logit",
    "latent": "cross layer transcoder",
    "error": "mlp reconstruction error",
}
"""Their names for kinds of nodes; those of heads and MLPs are ours, which they draw as dots."""


@torch.no_grad()
def attribution_graph(
    model: HookedWhisper,
    circuit: Circuit,
    example: Example,
    *,
    pos: int = -1,
    times: Times | None = None,
    slug: str = "circuit",
) -> dict[str, Any]:
    """A circuit as an attribution graph of circuit-tracer and Neuronpedia, for `json.dump`.

    Args:
        model: The model.
        circuit: Its circuit.
        example: A clean run: its tokens are the prompt.
        pos: The token at which the metric reads the logits.
        times: The seconds that edges carry: what `edge_times` or `carried_seconds` gives.
        slug: The graph's name in their lists and addresses.

    Returns:
        `metadata`, `qParams`, `nodes` and `links`. A link's weight is the edge's score.

    Raises:
        InterventionError: A circuit without edges, or no such token.
    """
    nodes, edges = drawn_nodes(circuit), drawn_edges(circuit)
    n_pos = example.n_pos
    check_count("pos", pos, -n_pos, InterventionError)
    if pos >= n_pos:
        raise InterventionError(f"pos is {pos}; the example has {n_pos} tokens.")
    shares = traced(circuit, times)
    windows = sorted({time for each in shares.values() for time in each})
    seconds = [f"{start:.2f}-{end:.2f} s" for start, end in windows] or ["sound"]
    tokens = model.to_str_tokens(example.tokens[0])
    probabilities = model(example.mel, example.tokens)[0, pos].float().softmax(dim=-1)
    written = int(probabilities.argmax())
    token = model.to_string([[written]])[0]
    placed = _times_of_nodes(edges, shares)
    at = len(seconds) + pos % n_pos
    layers = _layers(nodes)
    found, ids = [], {}
    for node in nodes:
        layer = "E" if node.kind == "embed" else str(layers[node.stack, node.row])
        context = at if node.stack == "decoder" else 0
        if node.name in placed and node.stack == "encoder":
            context = windows.index(placed[node.name])
        number = written if node.kind == "logits" else _number(node)
        ids[node.name] = f"{layer}_{number}_{context}"
        text = _name(node)
        if node.kind == "logits":
            text = f'Output "{token}" (p={float(probabilities[written]):.3f})'
        found.append(
            {
                "node_id": ids[node.name],
                "feature": number,
                "layer": layer,
                "ctx_idx": context,
                "feature_type": _TYPES[node.kind],
                "token_prob": float(probabilities[written]) if node.kind == "logits" else 0.0,
                "is_target_logit": node.kind == "logits",
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{layer}_{number}-{context}",
                "clerp": text,
            }
        )
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for edge in edges:
        weights[ids[edge.sender], ids[edge.receiver]] += edge.score
    return {
        "metadata": {
            "slug": slug,
            "scan": model.cfg.model_name,
            "transcoder_list": [],
            "prompt_tokens": [*seconds, *tokens],
            "prompt": model.to_string(example.tokens)[0].strip(),
            "schema_version": 1,
            "info": {
                "description": "A circuit of a Whisper. The first tokens of the prompt are seconds "
                "of the recording; a node stands for all positions of its stack.",
                "generator": {"name": "hooked_whisper"},
            },
            "generation_settings": {
                key: value
                for key, value in circuit.about.items()
                if isinstance(value, str | int | float)
            },
        },
        "qParams": {
            "linkType": "both",
            "pinnedIds": [],
            "clickedId": "",
            "supernodes": [],
            "sg_pos": "",
        },
        "nodes": found,
        "links": [
            {"source": source, "target": target, "weight": weight}
            for (source, target), weight in weights.items()
        ],
    }


def save_attribution_graph(
    path: str | os.PathLike[str],
    model: HookedWhisper,
    circuit: Circuit,
    example: Example,
    **options: Any,
) -> None:
    """Write what `attribution_graph` gives as a JSON file; the other arguments are its own.

    Raises:
        StoreWriteError: It cannot be written.
    """
    graph = attribution_graph(model, circuit, example, **options)
    write_json(as_path(path, InterventionError), graph)


def _times_of_nodes(edges: list[CircuitEdge], shares: Mapping[str, Any]) -> dict[str, Any]:
    """The time of which the edges from and to each node carry most."""
    sums: dict[str, Any] = defaultdict(lambda: defaultdict(float))
    for edge in edges:
        for time, share in shares.get(edge.name, {}).items():
            sums[edge.sender][time] += abs(edge.score) * share
            sums[edge.receiver][time] += abs(edge.score) * share
    return {name: max(times, key=times.__getitem__) for name, times in sums.items()}


def _layers(nodes: list[CircuitNode]) -> dict[tuple[str, int], int]:
    """The number of each row: of the encoder first, then of the decoder."""
    rows = {(node.stack, node.row) for node in nodes if node.kind != "embed"}
    order = sorted(rows, key=lambda each: (each[0] == "decoder", each[1]))
    return {row: number for number, row in enumerate(order)}


def _number(node: CircuitNode) -> int:
    """What tells a node from others of its layer."""
    if node.kind == "embed":
        return int(node.stack == "decoder")
    if node.kind == "error":
        return -1
    if node.label == "others":
        return -2
    return int(node.label) if node.kind == "latent" else node.place


def _name(node: CircuitNode) -> str:
    if node.kind in ("latent", "error"):
        return f"{node.stack} {node.row_label}: {node.label}"
    if node.kind != "head":
        return f"{node.stack} {node.label}"
    kind = "cross-attention" if node.row_label.startswith("cross") else "self-attention"
    return f"{node.stack} {kind} {node.label}"
