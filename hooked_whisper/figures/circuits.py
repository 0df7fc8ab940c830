"""A circuit as a picture: both stacks by their layers, edges between them, the sound below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_SECOND
from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import Word, mark_words, open_frame, time_axis
from hooked_whisper.figures.mel import draw_mel, shown_seconds

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

BOX = 0.82, 0.52
"""Width and height of a node's box; from one box of a row to the next is 1."""
ROW, GAP = 1.3, 1.7
"""From one row up to the next, and the room between the stacks."""
PORTS = {"q": -0.26, "k": 0.0, "v": 0.26}
"""Where a head's box is reached by edges, from its middle."""


@dataclass(frozen=True)
class CircuitNode:
    """A node to draw.

    Args:
        name: As edges name it.
        label: What is written in its box.
        stack: The stack in which it is drawn.
        row: Its row, from below.
        row_label: What is written beside the row.
        place: Its place in the row, from the left, from 0.
        n_places: Places in its row.
        kind: What it is.
    """

    name: str
    label: str
    stack: Literal["encoder", "decoder"]
    row: int
    row_label: str
    place: int
    n_places: int
    kind: Literal["embed", "head", "mlp", "logits", "latent", "error"]


@dataclass(frozen=True)
class CircuitEdge:
    """An edge to draw.

    Args:
        name: Its whole name.
        sender: The name of the node that it comes from.
        receiver: The name of the node that it leads to.
        part: `"q"`, `"k"` or `"v"` of a head; `""` of other nodes.
        score: What its width and colour show.
    """

    name: str
    sender: str
    receiver: str
    part: str
    score: float


class Place(NamedTuple):
    """The middle of a node's box; y grows upwards."""

    x: float
    y: float


class Layout(NamedTuple):
    """Where everything of a circuit is drawn, in units of one place in a row.

    Args:
        places: The middle of each node's box, by name.
        rows: The label of each row of each stack, and where it stands.
        titles: The name of each stack, and where it stands.
        width: Of everything.
        height: Of everything.
    """

    places: dict[str, Place]
    rows: list[tuple[str, Place]]
    titles: list[tuple[str, Place]]
    width: float
    height: float


def layout(nodes: Sequence[CircuitNode]) -> Layout:
    """Both stacks side by side and equally high, their rows upwards as the model runs.

    Raises:
        InputError: No nodes.
    """
    if not nodes:
        raise InputError("there are no nodes to draw; choose a circuit with at least one edge.")
    height = ROW * max(1, *(node.row for node in nodes))
    places, rows, titles = {}, [], []
    left = 0.0
    for stack in ("encoder", "decoder"):
        mine = [node for node in nodes if node.stack == stack]
        if not mine:
            continue
        width = max(3.0, *(float(node.n_places) for node in mine))
        step = height / max(1, *(node.row for node in mine))
        label = 0.5 + 0.21 * max(len(node.row_label) for node in mine)
        left += label
        for node in mine:
            x = left + width / 2 + node.place - (node.n_places - 1) / 2
            places[node.name] = Place(x, node.row * step)
        for row, text in {node.row: node.row_label for node in mine}.items():
            rows.append((text, Place(left - 0.15, row * step)))
        titles.append((stack, Place(left + width / 2, height + 0.75)))
        left += width + GAP
    return Layout(places, rows, titles, left - GAP, height)


def curve(
    plan: Layout, nodes: Mapping[str, CircuitNode], edge: CircuitEdge
) -> tuple[Place, Place, Place, Place]:
    """An edge's four points: it leaves a box upwards and enters one from below.

    Across the stacks it leaves on the right.
    """
    start, end = plan.places[edge.sender], plan.places[edge.receiver]
    part = edge.part
    last = Place(end.x + PORTS.get(part, 0.0), end.y - BOX[1] / 2)
    if nodes[edge.sender].stack != nodes[edge.receiver].stack:
        first = Place(start.x + width_of(nodes[edge.sender]) / 2, start.y)
        far = (last.x - first.x) / 2
        return first, Place(first.x + far, first.y), Place(last.x - 0.3, last.y - 0.5 * ROW), last
    first = Place(start.x, start.y + BOX[1] / 2)
    rise = last.y - first.y
    bend = max(0.45 * ROW, 0.45 * rise)
    # An edge straight up would lie under the boxes between: it goes round them.
    aside = 0.0
    if abs(last.x - first.x) < 0.5 and rise > ROW:
        aside = 0.75 if part in ("k", "v") else -0.75
    return (
        first,
        Place(first.x + aside, first.y + bend),
        Place(last.x + aside, last.y - bend),
        last,
    )


def width_of(node: CircuitNode) -> float:
    """Of a node's box."""
    return BOX[0] if node.kind in ("head", "latent", "error") else BOX[0] + 0.9


@style.styled
def plot_circuit(
    nodes: Sequence[CircuitNode],
    edges: Sequence[CircuitEdge],
    *,
    mel: Float[Tensor, "mel frame"] | None = None,
    sound_s: float | int | None = None,
    words: Sequence[Word] = (),
    carried: Sequence[tuple[float, float, float]] = (),
    label: str = "score",
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Encoder and decoder side by side, edges as wide as their scores, the recording below.

    Edges that help are blue, those that work against the metric brown and dashed. A head is
    reached on its left for its queries, in the middle for its keys, on its right for its values.

    Args:
        nodes: What to draw.
        edges: Between which nodes.
        mel: The recording's log-mel, drawn below; None leaves it out.
        sound_s: Seconds that hold sound; None shows all.
        words: Words with their times, written above the mel.
        carried: `(start_s, end_s, share)`: how much of what the edges carry comes from which
            seconds, drawn as bars above the mel.
        label: What the scores are.

    Raises:
        InputError: No nodes, or edges between others.
    """
    plan = layout(nodes)
    unknown = [e.name for e in edges if not {e.sender, e.receiver} <= set(plan.places)]
    if unknown:
        raise InputError(f"{unknown[0]!r} leads between nodes that are not drawn.")
    inch = min(0.42, 12.0 / (plan.width + 1))
    high = min(0.5, max(0.26, 11.0 / (plan.height + 2))) * (plan.height + 2)
    below = [] if mel is None else [0.9, 1.1] if carried else [1.1]
    figure = style.new_figure(
        max(5.0, inch * (plan.width + 1)), high + sum(below) + 0.5 * bool(below), title
    )
    panels = figure.subplots(
        1 + len(below), 1, squeeze=False, height_ratios=[high, *below] if below else [1]
    )[:, 0]
    _draw_graph(panels[0], plan, nodes, edges, label)
    if mel is not None:
        end_s, _ = shown_seconds(mel.shape[-1] / FRAMES_PER_SECOND, sound_s, False)
        if carried:
            _draw_carried(panels[1], carried, end_s)
        draw_mel(panels[-1], mel, end_s)
        mark_words(panels[1], words, 0.85 * figure.get_figwidth(), end_s, others=list(panels[2:]))
        time_axis(panels[-1], end_s)
    return figure


def _draw_graph(
    axes: "matplotlib.axes.Axes",
    plan: Layout,
    nodes: Sequence[CircuitNode],
    edges: Sequence[CircuitEdge],
    label: str,
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path

    axes.set_xlim(-0.4, plan.width + 0.5)
    axes.set_ylim(-0.6, plan.height + 1.2)
    axes.axis("off")
    named = {node.name: node for node in nodes}
    largest = max((abs(edge.score) for edge in edges), default=0.0) or 1.0
    for edge in sorted(edges, key=lambda each: abs(each.score)):
        points = curve(plan, named, edge)
        share = abs(edge.score) / largest
        path = Path(list(points), [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        axes.add_patch(
            PathPatch(
                path,
                facecolor="none",
                edgecolor=style.FOR if edge.score >= 0 else style.AGAINST,
                linestyle="-" if edge.score >= 0 else (0, (4, 1.5)),
                linewidth=0.35 + 3.2 * share,
                alpha=0.35 + 0.55 * share,
                capstyle="butt",
            )
        )
    height = BOX[1]
    for node in nodes:
        x, y = plan.places[node.name]
        wide = width_of(node)
        axes.add_patch(
            FancyBboxPatch(
                (x - wide / 2, y - height / 2),
                wide,
                height,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=_FACES[node.kind],
                edgecolor=style.INK,
                linewidth=0.6,
                zorder=3,
            )
        )
        axes.text(
            x, y, style.plain(style.short(node.label, 12)), ha="center", va="center",
            fontsize=style.SMALL - 1.5, zorder=4,
        )  # fmt: skip
    for text, (x, y) in plan.rows:
        axes.text(
            x, y, style.plain(text), ha="right", va="center",
            fontsize=style.SMALL - 0.5, color=style.FAINT,
        )  # fmt: skip
    for text, (x, y) in plan.titles:
        axes.text(x, y, text, ha="center", va="center", fontsize=style.MEDIUM)
    handles: list[Any] = [
        Line2D([], [], color=style.FOR, linewidth=3, label=f"{label} {largest:.3g}"),
        Line2D([], [], color=style.FOR, linewidth=0.7, label="near 0"),
    ]
    if any(edge.score < 0 for edge in edges):
        handles.append(
            Line2D(
                [], [], color=style.AGAINST, linestyle=(0, (4, 1.5)), linewidth=2, label="below 0"
            )
        )
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncols=3,
        frameon=False,
        fontsize=style.SMALL,
    )


_FACES = {
    "embed": "#eeeeee",
    "head": "#ffffff",
    "mlp": "#e6eef6",
    "logits": "#fff3b0",
    "latent": "#d9f0e3",
    "error": "#f3e3dc",
}


def _draw_carried(
    axes: "matplotlib.axes.Axes", carried: Sequence[tuple[float, float, float]], end_s: float
) -> None:
    """Bars of what comes from which seconds."""
    open_frame(axes, grid="y")
    for start, end, share in carried:
        color = style.FOR if share >= 0 else style.AGAINST
        axes.bar(start, share, end - start, align="edge", color=color, edgecolor="white", lw=0.4)
    axes.axhline(0, color=style.INK, linewidth=0.6)
    axes.set_xlim(0, end_s)
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("carried")
