"""Attention and residual statistics as pictures: heads by layer, curves, a matrix, histograms."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

COLORS = "cividis"
"""Dark to light for greyscale and the colour-blind, as in `plot_patching`."""
DIVERGING = "RdBu_r"
"""For numbers on both sides of 0: white is 0."""


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
        title: Drawn above.
        low: The darkest value; None is the smallest of all tables.
        high: The lightest value; None is the largest.
        diverging: White at 0, and colours alike on both sides.
        digits: Digits after the point.

    Returns:
        A matplotlib figure; `figure.savefig("heads.png")` writes it.

    Raises:
        InputError: No table, or one that is not [layer, head].
    """
    from matplotlib.figure import Figure

    tables = {"": scores} if isinstance(scores, Tensor) else dict(scores)
    _check_tables(tables)
    values = {name: table.float().numpy(force=True) for name, table in tables.items()}
    low, high = _range(list(tables.values()), low, high, diverging)

    widths = [table.shape[1] for table in tables.values()]
    n_layers = max(len(table) for table in tables.values())
    cell = 0.2 + 0.11 * (digits + 2)
    size = (2.2 + sum(cell * width + 0.6 for width in widths), 1.6 + 0.4 * n_layers)
    figure = Figure(
        figsize=(max(size[0], 0.085 * len(title)), size[1]), layout="constrained", dpi=130
    )
    panels = figure.subplots(1, len(tables), squeeze=False, width_ratios=widths)[0]
    for axes, (name, table) in zip(panels, values.items(), strict=True):
        colors = DIVERGING if diverging else COLORS
        image = axes.imshow(table, origin="lower", aspect="auto", cmap=colors, vmin=low, vmax=high)
        axes.set_facecolor("0.85")
        _write_numbers(axes, image, table, digits)
        _number_axis(axes.xaxis, table.shape[1])
        _number_axis(axes.yaxis, table.shape[0])
        axes.set_xlabel("head")
        axes.set_title(name, fontsize="medium")
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels), label=label, pad=0.02)
    if title:
        figure.suptitle(title)
    return figure


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
        title: Drawn above.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: No panel, a panel without a line, or more layers than names.
    """
    from matplotlib.figure import Figure

    if not panels or not all(panels.values()):
        raise InputError("nothing to draw: pass at least one line for each panel.")
    n_layers = max(len(line) for lines in panels.values() for line in lines.values())
    if layers is not None and len(layers) < n_layers:
        raise InputError(f"{len(layers)} names for {n_layers} layers; pass one for each.")
    size = (1.0 + 3.6 * len(panels), 3.4)
    figure = Figure(figsize=size, layout="constrained", dpi=130)
    styles = ["o-", "s--", "^:", "D-."]  # told apart without colours too
    for axes, (name, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for i, (label, line) in enumerate(lines.items()):
            axes.plot(line.float().numpy(force=True), styles[i % len(styles)], label=label)
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("layer")
        _number_axis(axes.xaxis, n_layers)
        if layers is not None:
            axes.set_xticks(range(n_layers), layers[:n_layers])
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    if title:
        figure.suptitle(title)
    return figure


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
        title: Drawn above.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: No square matrix, or names that do not match it.
    """
    from matplotlib.figure import Figure

    n = len(cosines)
    layers = [str(i) for i in range(n)] if layers is None else layers
    if tuple(cosines.shape) != (n, n) or len(layers) != n or n == 0:
        raise InputError(
            f"the matrix is {tuple(cosines.shape)} and {len(layers)} layers are named; it must be "
            "square, with a name for each row."
        )
    values = cosines.float().numpy(force=True)
    side = 1.6 + 0.52 * n
    width = max(side + 1.2, 0.085 * len(title))
    figure = Figure(figsize=(width, side), layout="constrained", dpi=130)
    axes = figure.subplots()
    is_signed = bool((cosines < 0).any())
    image = axes.imshow(
        values,
        origin="lower",
        cmap=DIVERGING if is_signed else COLORS,
        vmin=-1 if is_signed else 0,
        vmax=1,
    )
    _write_numbers(axes, image, values, 2)
    axes.set_xticks(range(n), layers, rotation=90 if max(map(len, layers)) > 4 else 0)
    axes.set_yticks(range(n), layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="mean cosine")
    if title:
        figure.suptitle(title)
    return figure


def plot_histograms(
    histograms: Mapping[str, tuple[Tensor, Tensor]],
    *,
    label: str = "value",
    log: bool = True,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """How values are distributed, as densities, so that bins of any width compare.

    Args:
        histograms: Counts and edges, one more than counts, by name; as
            `residual_histogram` gives them.
        label: What the values are, with their unit.
        log: A logarithmic axis for the densities, so that the tails show.
        title: Drawn above.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: No histogram, or edges that do not match the counts.
    """
    from matplotlib.figure import Figure

    if not histograms:
        raise InputError("nothing to draw: pass at least one histogram.")
    for name, (counts, edges) in histograms.items():
        if len(edges) != len(counts) + 1:
            raise InputError(
                f"{name!r} has {len(counts)} counts and {len(edges)} edges; edges are one more."
            )
    figure = Figure(figsize=(6.4, 3.8), layout="constrained", dpi=130)
    axes = figure.subplots()
    styles = ["-", "--", ":", "-."]
    for i, (name, (counts, edges)) in enumerate(histograms.items()):
        density = counts / counts.sum().clamp(min=1) / edges.diff()
        axes.stairs(
            density.float().numpy(force=True),
            edges.float().numpy(force=True),
            label=name,
            linestyle=styles[i % len(styles)],
            linewidth=1.3,
        )
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("density (share of values per unit)")
    axes.grid(alpha=0.3)
    axes.legend()
    if title:
        figure.suptitle(title)
    return figure


def _check_tables(tables: Mapping[str, Tensor]) -> None:
    if not tables:
        raise InputError("nothing to draw: pass at least one table of scores.")
    for name, table in tables.items():
        if table.ndim != 2 or not table.numel():
            raise InputError(f"the scores {name!r} are {tuple(table.shape)}; pass [layer, head].")


def _range(
    tables: Sequence[Tensor],
    low: float | int | None,
    high: float | int | None,
    diverging: bool,
) -> tuple[float, float]:
    """The range of colours that all tables share."""
    values = torch.cat([table.float().flatten() for table in tables])
    values = values[values.isfinite()]
    if not len(values):
        return 0.0, 1.0
    least, most = float(values.min()), float(values.max())
    if diverging:
        most = max(abs(least), abs(most))
        least = -most
    return float(least if low is None else low), float(most if high is None else high)


def _write_numbers(axes: "matplotlib.axes.Axes", image: Any, table: Any, digits: int) -> None:
    for row, column in [(i, j) for i in range(len(table)) for j in range(table.shape[1])]:
        value = float(table[row, column])
        if value != value:
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        text = f"{value:.{digits}f}"
        text = text.replace("-", "") if float(text) == 0 else text
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize="small")


def _number_axis(axis: Any, n: int) -> None:
    """A tick for each of a few, for some of many."""
    axis.set_ticks(range(0, n, 1 + n // 16))
