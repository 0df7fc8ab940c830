"""What patching or ablation did, as a table of numbers in colour."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import name_x, name_y, rows_in

if TYPE_CHECKING:
    import matplotlib.figure

_MOST_COLUMNS = 20
"""Columns up to which the numbers are written in."""


@style.drawn
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
        title: Drawn above.
        low: The darkest value; None is the smallest.
        high: The lightest value; None is the largest.
        diverging: White at 0, and colours alike on both sides: for what may help or harm.

    Returns:
        A matplotlib figure; `figure.savefig("patching.png")` writes it.

    Raises:
        InputError: Names that do not match the table, or an empty one.
    """
    if tuple(effect.shape) != (len(rows), len(columns)) or not effect.numel():
        raise InputError(
            f"{len(rows)} rows and {len(columns)} columns are named; the table is "
            f"{tuple(effect.shape)}. Pass one name for each, and at least one of both."
        )
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
