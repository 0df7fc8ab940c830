"""Patching and sweeps as pictures: tables of numbers in colour, layers upwards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.figures import style
from hooked_whisper.figures.axes import check_names, name_x, name_y, rows_in

if TYPE_CHECKING:
    import matplotlib.figure

_MOST_COLUMNS, _MOST_PARTS = 20, 12
"""Columns of a table, and parts of a sweep, up to which the numbers are written in."""
_AXIS_NAMES = {"window_s": "start of the window (s)", "pos": "position", "part": ""}


@style.styled
def plot_patching(
    effect: Float[Tensor, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    row_label: str = "patched at",
    column_label: str = "",
    title: str = "",
    low: float | int | None = None,
    high: float | int | None = None,
    diverging: bool = False,
) -> "matplotlib.figure.Figure":
    """A heatmap with its numbers written in, up to 20 columns of them.

    Args:
        effect: A number for each place that was patched or ablated and each thing that was
            measured. NaN is left grey.
        rows: Names of the places, the first one drawn lowest, as layers are.
        columns: Names of what was measured.
        label: What the numbers are, with their unit.
        row_label: What the rows are.
        column_label: What the columns are.
        low: The darkest value; None is the smallest.
        high: The lightest value; None is the largest.
        diverging: White at 0, and colours alike on both sides: for what may help or harm.
    """
    check_names(effect, rows=rows, columns=columns)
    names = [style.short(row, 32) for row in rows]
    heads = ["\n".join(style.wrap(column, 1.0, style.SMALL)) or " " for column in columns]
    is_written = len(columns) <= _MOST_COLUMNS
    cell = max(0.5, style.widest_in(heads) + 0.12) if is_written else 0.2
    width, height = min(12.0, max(1.2, cell * len(columns))), max(0.5, 1.3 * rows_in(len(rows)))
    figure = style.new_figure(
        width + style.widest_in(names) + 1.7, height + 0.6 + 0.3 * bool(title), title
    )
    axes = figure.subplots()
    image = style.heatmap(axes, effect, low=low, high=high, diverging=diverging)
    if is_written:
        style.write_numbers(axes, image, effect)
    name_x(axes, heads, width)
    name_y(axes, names, height)
    axes.set_xlabel(style.plain(column_label))
    axes.set_ylabel(style.plain(row_label))
    style.color_bar(figure, image, axes, label)
    return figure


@style.styled
def plot_sweep(
    values: Float[Tensor, "site layer part"],
    sites: Sequence[str],
    layers: Sequence[int],
    parts: Sequence[Any],
    part_axis: str,
    *,
    label: str,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """A heatmap for each site, all in one scale of colours.

    Args:
        values: A number for each place; NaN is left grey.
        sites: Names of the sites.
        layers: Numbers of the layers.
        parts: Labels of the parts: heads, positions, or windows as (start, end) in seconds.
        part_axis: What the parts are: `"head"`, `"pos"`, `"window_s"`, `"neuron"` or `"part"`.
        label: What the numbers are, with their unit.
    """
    check_names(values, sites=sites, layers=layers, parts=parts)
    low, high = style.value_range([values])
    is_written = len(parts) <= _MOST_PARTS
    width = min(12.0, max(1.6, (0.5 if is_written else 0.2) * len(parts)))
    height = max(0.35, 0.27 * len(layers))
    figure = style.new_figure(
        width + 1.7, 0.35 + len(sites) * (0.5 + height) + 0.3 * bool(title), title
    )
    panels = figure.subplots(len(sites), 1, squeeze=False)[:, 0]
    image = None
    for axes, site, table in zip(panels, sites, values, strict=True):
        image = style.heatmap(axes, table, low=low, high=high)
        axes.set_title(style.plain(site))
        name_y(axes, ["-" if layer < 0 else str(layer) for layer in layers], height)
        axes.set_ylabel("layer")
        _name_parts(axes, parts, part_axis, width)
        if is_written:
            style.write_numbers(axes, image, table)
    panels[-1].set_xlabel(_AXIS_NAMES.get(part_axis, part_axis))
    style.color_bar(figure, image, list(panels), label)
    return figure


def _name_parts(axes: Any, parts: Sequence[Any], part_axis: str, width: float) -> None:
    if part_axis != "window_s":
        name_x(axes, [str(part) for part in parts], width)
        return
    # Windows are named by their starts, which stand at their left edges.
    name_x(axes, [f"{start:g}" for start, _ in parts], width)
    names = [label.get_text() for label in axes.get_xticklabels()]
    axes.set_xticks([place - 0.5 for place in axes.get_xticks()], names)
