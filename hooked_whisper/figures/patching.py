"""What patching did, as a table of numbers in colour."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import matplotlib.figure


def plot_patching(
    effect: Float[Tensor, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    row_label: str = "patched at",
    column_label: str = "",
    title: str = "",
    low: float | None = None,
    high: float | None = None,
) -> "matplotlib.figure.Figure":
    """A heatmap with its numbers written in.

    Args:
        effect: A number for each place that was patched and each thing that was measured.
        rows: Names of the places, the first one drawn lowest, as layers are.
        columns: Names of what was measured.
        label: What the numbers are, with their unit.
        row_label: What the rows are.
        column_label: What the columns are.
        title: Drawn above.
        low: The darkest value; None is the smallest.
        high: The lightest value; None is the largest.

    Returns:
        A matplotlib figure; `figure.savefig("patching.png")` writes it.

    Raises:
        InputError: Names that do not match the table.
    """
    from matplotlib.figure import Figure

    if tuple(effect.shape) != (len(rows), len(columns)):
        raise InputError(
            f"{len(rows)} rows and {len(columns)} columns are named; the table is "
            f"{tuple(effect.shape)}."
        )
    values = effect.float().numpy(force=True)
    size = (max(3.6 + 1.15 * len(columns), 0.1 * len(title)), 1.8 + 0.5 * len(rows))
    figure = Figure(figsize=size, layout="constrained", dpi=130)
    axes = figure.subplots()
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high)
    middle = sum(image.get_clim()) / 2
    for row in range(len(rows)):
        for column in range(len(columns)):
            value = float(values[row, column])
            ink = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(column_label)
    axes.set_ylabel(row_label)
    figure.colorbar(image, ax=axes, label=label)
    if title:
        figure.suptitle(title)
    return figure
