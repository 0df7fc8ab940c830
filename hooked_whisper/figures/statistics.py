"""Statistics as pictures: heads by layer, curves, a matrix, histograms, what probes read."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError, shown
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import name_x, name_y, named_tables, open_frame

if TYPE_CHECKING:
    import matplotlib.figure


@style.styled
def plot_head_scores(
    scores: Float[Tensor, "layer head"] | Mapping[str, Tensor],
    *,
    label: str,
    title: str = "",
    low: float | int | None = None,
    high: float | int | None = None,
    diverging: bool = False,
    digits: int = 2,
) -> "matplotlib.figure.Figure":
    """A score of every head, layers upward, with the numbers written in.

    Args:
        scores: One table, or several by name, side by side in one range of
            colours: `{"encoder": ..., "cross-attention": ...}`. NaN is left grey.
        label: What the numbers are, with their unit.
        low: The darkest value; None is the smallest of all tables.
        high: The lightest value; None is the largest.
        diverging: White at 0, and colours alike on both sides.
        digits: Digits after the point.
    """
    tables = named_tables(scores, "scores")
    low, high = style.value_range(list(tables.values()), low, high, diverging=diverging)
    longest = max(len(f"{bound:.{digits}f}") for bound in (low, high))
    cell = style.width_in("0" * longest) + 0.12
    widths = [max(0.7, cell * table.shape[1]) for table in tables.values()]
    height = max(0.5, 0.3 * max(len(table) for table in tables.values()))
    figure = style.new_figure(
        sum(widths) + 0.4 * len(tables) + 1.4, height + 0.65 + 0.25 * bool(title), title
    )
    panels = figure.subplots(1, len(tables), squeeze=False, width_ratios=widths)[0]
    image = None
    for axes, width, (name, table) in zip(panels, widths, tables.items(), strict=True):
        image = style.heatmap(axes, table, low=low, high=high, diverging=diverging)
        scale = (figure.get_figwidth() - 1.4) / (sum(widths) + 0.4 * len(tables))
        style.write_numbers(axes, image, table, digits, size=style.SMALL * min(1.0, scale))
        name_x(axes, [str(head) for head in range(table.shape[1])], width)
        name_y(axes, [str(layer) for layer in range(len(table))], height)
        axes.set_xlabel("head")
        axes.set_title(style.plain(name))
    panels[0].set_ylabel("layer")
    style.color_bar(figure, image, list(panels), label)
    return figure


@style.styled
def plot_by_layer(
    panels: Mapping[str, Mapping[str, Float[Tensor, "layer"]]],
    *,
    layers: Sequence[str] | None = None,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Statistics of the residual stream layer by layer, one panel each.

    Args:
        panels: For each statistic, named with its unit, a line for each name:
            `{"norm": {"encoder": ..., "decoder": ...}, "excess kurtosis": ...}`.
        layers: A name for each layer; None counts from 0.
    """
    if not panels or not all(panels.values()):
        raise InputError("nothing to draw: pass at least one line for each panel.")
    n_layers = max(len(line) for lines in panels.values() for line in lines.values())
    if layers is not None and len(layers) < n_layers:
        raise InputError(f"{len(layers)} names for {n_layers} layers; pass one for each.")
    names = [str(i) for i in range(n_layers)] if layers is None else list(layers[:n_layers])
    width = min(2.9, 14.0 / len(panels))
    figure = style.new_figure((width + 0.6) * len(panels), 2.9, title)
    for axes, (name, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (label, line) in enumerate(lines.items()):
            values = line.detach().float().cpu().numpy()
            axes.plot(values, label=style.plain(label), **style.line_style(number))
        open_frame(axes, grid="both")
        axes.set_title(style.plain("\n".join(style.wrap(name, width, style.MEDIUM))))
        axes.set_xlabel("layer")
        name_x(axes, names, width)
        if len(lines) > 1:
            axes.legend()
    return figure


@style.styled
def plot_cosine_matrix(
    cosines: Float[Tensor, "layer other_layer"],
    layers: Sequence[str] | None = None,
    *,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """How alike the residual streams of two layers are, with the numbers written in.

    Args:
        cosines: -1 to 1, for each pair of layers.
        layers: A name for each layer; None counts from 0.
    """
    n = len(cosines)
    layers = [str(i) for i in range(n)] if layers is None else layers
    if tuple(cosines.shape) != (n, n) or len(layers) != n or n == 0:
        raise InputError(
            f"the matrix is {tuple(cosines.shape)} and {len(layers)} layers are named; it must be "
            "square, with a name for each row."
        )
    side = 0.42 * n
    under = style.widest_in(layers)
    figure = style.new_figure(side + under + 1.4, side + under + 0.6 + 0.25 * bool(title), title)
    axes = figure.subplots()
    is_signed = bool((cosines < 0).any())
    image = style.heatmap(
        axes, cosines, low=-1 if is_signed else 0, high=1, diverging=is_signed, aspect="equal"
    )
    if n <= 34:  # the width of the picture
        style.write_numbers(axes, image, cosines)
    name_x(axes, layers, side)
    name_y(axes, layers, side)
    axes.set_xlabel("layer")
    axes.set_ylabel("layer")
    style.color_bar(figure, image, axes, "mean cosine")
    return figure


@style.styled
def plot_confusion(
    shares: Float[Tensor, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """What is told to be what: a row for each value that is said, a column for what it is told.

    Args:
        shares: Of the row, 0 to 1. Numbers are written into tables of few columns.
        rows: A name for each row.
        columns: A name for each column.
    """
    if tuple(shares.shape) != (len(rows), len(columns)) or not shares.numel():
        raise InputError(
            f"the table is {tuple(shares.shape)}; {len(rows)} rows and {len(columns)} columns are "
            "named."
        )
    has_numbers = len(columns) <= 16
    cell = 0.42 if has_numbers else 0.21
    width, height = cell * len(columns), cell * len(rows)
    figure = style.new_figure(
        max(3.0, width + style.widest_in(rows) + 1.4),
        height + style.widest_in(columns) + 0.7 + 0.25 * bool(title),
        title,
    )
    axes = figure.subplots()
    image = style.heatmap(axes, shares, low=0, high=1, aspect="equal", origin="upper", gamma=0.6)
    if has_numbers:
        style.write_numbers(axes, image, shares)
    name_x(axes, columns, width)
    name_y(axes, rows, height)
    axes.set_xlabel("told to be")
    axes.set_ylabel("is")
    style.color_bar(figure, image, axes, "share of the row")
    return figure


@style.styled
def plot_histograms(
    histograms: Mapping[str, Any],
    *,
    label: str = "value",
    log: bool = True,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """How values are distributed, as densities, so that bins of any width compare.

    Args:
        histograms: By name, what `residual_histogram` gives, or a tuple of counts and
            edges, of which there is one more.
        label: What the values are, with their unit.
        log: A logarithmic axis for the densities, so that the tails show.
    """
    if not histograms:
        raise InputError("nothing to draw: pass at least one histogram.")
    tables = {
        name: (histogram.counts, histogram.edges) if hasattr(histogram, "counts") else histogram
        for name, histogram in histograms.items()
    }
    for name, table in tables.items():
        if not isinstance(table, tuple | list) or len(table) != 2:
            raise InputError(f"{name!r} is {shown(table)}, no histogram: counts and edges.")
        counts, edges = table
        if len(edges) != len(counts) + 1:
            raise InputError(
                f"{name!r} has {len(counts)} counts and {len(edges)} edges; edges are one more."
            )
    figure = style.new_figure(6.0, 3.5, title)
    axes = figure.subplots()
    for number, (name, (counts, edges)) in enumerate(tables.items()):
        density = counts / counts.sum().clamp(min=1) / edges.diff()
        axes.stairs(
            density.detach().float().cpu().numpy(),
            edges.detach().float().cpu().numpy(),
            label=style.plain(name),
            linewidth=1.3,
            **style.line_style(number, marker=False),
        )
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(style.plain(label))
    axes.set_ylabel("density (share of values per unit)")
    open_frame(axes, grid="both")
    axes.legend()
    return figure


@style.styled
def plot_offsets(
    attention: Mapping[str, Float[Tensor, "offset"]],
    *,
    position_s: float | int = 0.02,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """How much attention goes how far from the query: a line for each layer, or head.

    Args:
        attention: By name the mean attention at each distance, as many before the query as
            behind it.
        position_s: Seconds of a position: 0.02 in the encoder.
    """
    if not attention or any(len(line) % 2 == 0 for line in attention.values()):
        raise InputError(
            "pass at least one line, of an odd number of distances: the middle one is the query."
        )
    figure = style.new_figure(6.4, 3.6, title)
    axes = figure.subplots()
    for number, (name, line) in enumerate(attention.items()):
        reach = len(line) // 2
        seconds = [position_s * (i - reach) for i in range(len(line))]
        line_style = style.line_style(number)
        line_style |= {"markevery": max(1, reach // 5), "markersize": 3.5, "linewidth": 1.3}
        axes.plot(seconds, line.float().numpy(force=True), label=style.plain(name), **line_style)
    axes.set_yscale("log")
    axes.set(xlabel="time looked at, from the query (s)", ylabel="mean attention to a position")
    axes.axvline(0, color=style.FAINT, linewidth=0.7, zorder=0)
    open_frame(axes, grid="y")
    figure.legend(loc="outside right upper", fontsize=style.SMALL, frameon=False)
    return figure


@style.styled
def plot_probes(
    scores: Float[Tensor, "layer bound"],
    names: Sequence[str],
    baselines: Mapping[str, float],
    *,
    label: str,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Scores by hook, in the order given, with error bars, and baselines as lines.

    Args:
        scores: Score, lower and upper bound of each hook.
        names: The hooks' names.
        baselines: Score of each.
        label: What the scores are.
    """
    if tuple(scores.shape) != (len(names), 3) or not len(names):
        raise InputError(f"{len(names)} hooks are named; the scores are {tuple(scores.shape)}.")
    values = scores.detach().double().cpu().numpy()
    width = max(3.0, 0.5 * len(names))
    figure = style.new_figure(width + 0.8, 3.6, title)
    axes = figure.subplots()
    spread = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
    axes.errorbar(
        range(len(names)), values[:, 0], yerr=spread, fmt="o-", capsize=3, color=style.ACCENT
    )
    for number, (name, value) in enumerate(baselines.items()):
        dashes = style.DASHES[1 + number % 3]
        axes.axhline(value, color=style.FAINT, linestyle=dashes, linewidth=1, label=name)
    short = [name.replace(".blocks.", " ").replace(".hook_", " ") for name in names]
    open_frame(axes, grid="y")
    name_x(axes, short, width)
    axes.set_ylabel(style.plain(label))
    if baselines:
        axes.legend()
    return figure
