"""A page on which a circuit is seen, and each of its edges is heard: the sound that it carries."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hooked_whisper.circuits.circuit import Circuit
from hooked_whisper.circuits.drawing import (
    Carried,
    Times,
    carried_by_all,
    drawn_edges,
    drawn_nodes,
    parts_of,
    traced,
)
from hooked_whisper.circuits.graph import Edge
from hooked_whisper.data.windows import mel_of
from hooked_whisper.display import box, framed
from hooked_whisper.figures.circuits import BOX, CircuitEdge, CircuitNode, Place, curve, layout
from hooked_whisper.figures.circuits import width_of as box_width
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.attention import check_out, check_words, read_recording
from hooked_whisper.reports.html import encode_mel, write_page
from hooked_whisper.speech.audio import encode_audio

_UNIT = 52.0
"""Pixels from one node of a row to the next."""
_PARTS = {"q": "queries", "k": "keys", "v": "values"}


@dataclass(frozen=True)
class CircuitPage:
    """A page that was written; a notebook shows it whole.

    Args:
        path: The file.
        n_bytes: Its size.
        n_edges: Edges on it.
    """

    path: Path
    n_bytes: int
    n_edges: int

    def _repr_html_(self) -> str:
        """The page itself."""
        return box(str(self.path), f"{self.n_edges} edges", framed(self.path))


@torch.no_grad()
def circuit_page(
    model: HookedWhisper,
    circuit: Circuit,
    recording: Any,
    out: str | os.PathLike[str],
    *,
    times: Times | None = None,
    words: Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
    text: str = "",
    title: str = "",
    cut: bool = False,
) -> CircuitPage:
    """Write one HTML file that shows a circuit; a click on an edge plays the sound that it carries.

    The file works from disk, without a network: both stacks by their layers, edges as wide as
    their scores, the recording's spectrogram with what the chosen edge carries from each of its
    times, and a table of all edges. All of it can be reached with the keyboard.

    Args:
        model: The model.
        circuit: Its circuit.
        recording: A clean recording of its pairs: a path, a pair of samples and rate, one of
            `digits.recordings()`, or whatever else `harvest` takes, of one recording.
        out: The file to write; one that is there is replaced.
        times: The seconds that edges carry: what `edge_times` or `carried_seconds` gives.
            Edges that are not named carry what the circuit told their senders.
        words: `(start_s, end_s, word)` of what is said; None takes the recording's own.
        labels: Other names for nodes, by their own: what a latent stands for.
        text: A line below the title: what the metric is, who is compared.
        title: None names the recording.
        cut: Take the first 30 s of what is longer, instead of refusing it.

    Raises:
        InterventionError: A circuit without edges.
        InputError: Words that are none, an `out` that is a folder.
        RecordingsError: No recording, or several.
        AudioError: No usable audio; its subclasses say why.
        StoreWriteError: The file cannot be written.
    """
    path = check_out(out, "circuit.html")
    nodes, edges = drawn_nodes(circuit), drawn_edges(circuit)
    window = read_recording(model, recording, cut)
    assert window.samples is not None
    mel = mel_of(model, [window])
    shares = traced(circuit, times)
    own = set(parts_of(times))
    plan = layout(nodes)
    named = {node.name: node for node in nodes}
    largest = max(abs(edge.score) for edge in edges) or 1.0

    def pixel(place: Place) -> tuple[float, float]:
        return round(_UNIT * (place.x + 0.4), 1), round(_UNIT * (plan.height + 1.2 - place.y), 1)

    def drawn(edge: CircuitEdge) -> dict[str, Any]:
        points = [pixel(place) for place in curve(plan, named, edge)]
        (x0, y0), *rest = points
        parts = [(*time, part) for time, part in sorted(shares.get(edge.name, {}).items())]
        return {
            "name": edge.name,
            "kind": Edge.from_text(edge.name).kind,
            "from": say(named[edge.sender]),
            "to": say(named[edge.receiver]),
            "part": _PARTS.get(edge.part, ""),
            "sender": edge.sender,
            "receiver": edge.receiver,
            "score": edge.score,
            "size": abs(edge.score) / largest,
            "path": f"M{x0} {y0}C" + " ".join(f"{x} {y}" for x, y in rest),
            "times": parts,
            "moment": moment(parts),
            "traced": edge.name not in own,
        }

    def say(node: CircuitNode) -> str:
        found = name_of(node)
        return f"{found} ({labels[node.name]})" if labels and node.name in labels else found

    data = {
        "model": model.cfg.model_name,
        "recording": window.name,
        "about": _about(circuit.about),
        "text": text,
        "has_scores": circuit.scores is not None,
        "sound_s": window.seconds,
        "audio": encode_audio(window.samples),
        "mel": encode_mel(mel.values[0, :, : max(1, int(mel.n_frames))]),
        "words": check_words((window.words or ()) if words is None else words),
        "width": round(_UNIT * (plan.width + 0.9)),
        "height": round(_UNIT * (plan.height + 1.8)),
        "rows": [(label, *pixel(place)) for label, place in plan.rows],
        "titles": [(label, *pixel(place)) for label, place in plan.titles],
        "all": carried_by_all(circuit, shares),
        "edges": [drawn(edge) for edge in edges],
        "nodes": [
            {
                "name": node.name,
                "label": (labels or {}).get(node.name, node.label),
                "title": say(node),
                "kind": node.kind,
                "x": pixel(plan.places[node.name])[0],
                "y": pixel(plan.places[node.name])[1],
                "width": _UNIT * box_width(node),
                "height": _UNIT * BOX[1],
            }
            for node in nodes
        ],
    }
    title = title or f"A circuit of {model.cfg.model_name}: {window.name}"
    n_bytes = write_page(path, "circuit", data, title)
    return CircuitPage(path, n_bytes, len(edges))


def _about(about: Mapping[str, Any]) -> str:
    """How a circuit was found."""
    said = f"; measured: {about['metric']}" if "metric" in about else ""
    said += f", {about['method']}" if "method" in about else ""
    n = about.get("pairs")
    return said + (f", over {n} pair{'' if n == 1 else 's'}" if n else "")


def moment(parts: Carried) -> tuple[float, float] | None:
    """The time of which an edge carries most, with neighbours that come to half as much.

    >>> moment([(0.0, 0.5, 0.1), (0.5, 1.0, 0.4), (1.0, 1.5, 0.3), (1.5, 2.0, 0.0)])
    (0.5, 1.5)
    """
    if not parts:
        return None
    best = max(range(len(parts)), key=lambda i: abs(parts[i][2]))
    most = parts[best][2]
    first = last = best
    while first and parts[first - 1][2] / most >= 0.5 and touch(parts[first - 1], parts[first]):
        first -= 1
    while (
        last + 1 < len(parts)
        and parts[last + 1][2] / most >= 0.5
        and touch(parts[last], parts[last + 1])
    ):
        last += 1
    return parts[first][0], parts[last][1]


def touch(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether one time begins where the other ends."""
    return abs(before[1] - after[0]) < 1e-6


def name_of(node: CircuitNode) -> str:
    """A node in words."""
    if node.kind == "head":
        kind = "cross-attention" if node.row_label.startswith("cross") else node.stack
        return f"{kind} head {node.label}"
    if node.kind in ("latent", "error"):
        return f"{node.stack} {node.row_label.replace('latents', 'latent')}: {node.label}"
    return node.label if node.kind == "logits" else f"{node.stack} {node.label}"
