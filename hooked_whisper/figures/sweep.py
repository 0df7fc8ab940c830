"""What a sweep found: a heatmap for each site, layers upwards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_MOST_NUMBERS = 12
"""Columns up to which the numbers are written in."""


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
        values: A number for each place; NaN is left white.
        sites: Names of the sites.
        layers: Numbers of the layers.
        parts: Labels of the parts: heads, positions, or windows as (start, end) in seconds.
        part_axis: What the parts are: `"head"`, `"pos"`, `"window_s"`, `"neuron"` or `"part"`.
        label: What the numbers are, with their unit.
        title: Drawn above.

    Returns:
        A matplotlib figure; `figure.savefig("sweep.png")` writes it.

    Raises:
        InputError: Labels that do not match the table.
    """
    from matplotlib.figure import Figure

    if tuple(values.shape) != (len(sites), len(layers), len(parts)):
        raise InputError(
            f"{len(sites)} sites, {len(layers)} layers and {len(parts)} parts are named; the "
            f"table is {tuple(values.shape)}."
        )
    table = values.float().numpy(force=True)
    finite = table[table == table]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    width = min(14.0, max(5.0, 2.4 + (0.55 if len(parts) <= _MOST_NUMBERS else 0.2) * len(parts)))
    height = 0.9 + len(sites) * (0.75 + 0.32 * len(layers))
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    panels = figure.subplots(len(sites), 1, squeeze=False)[:, 0]
    for number, axes in enumerate(panels):
        image = axes.imshow(
            table[number], origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high
        )
        axes.set_title(sites[number], fontsize=9, loc="left")
        axes.set_yticks(range(len(layers)), ["-" if each < 0 else str(each) for each in layers])
        axes.set_ylabel("layer")
        _label_parts(axes, parts, part_axis, with_name=number + 1 == len(sites))
        if len(parts) <= _MOST_NUMBERS:
            _write_numbers(axes, table[number], (low + high) / 2)
    figure.colorbar(image, ax=list(panels), label=label)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _label_parts(
    axes: "matplotlib.axes.Axes", parts: Sequence[Any], part_axis: str, with_name: bool
) -> None:
    step = max(1, -(-len(parts) // 16))
    shown = range(0, len(parts), step)
    if part_axis == "window_s":
        axes.set_xticks([each - 0.5 for each in shown], [f"{parts[each][0]:g}" for each in shown])
        name = "time of the window, in seconds"
    else:
        axes.set_xticks(list(shown), [str(parts[each]) for each in shown])
        name = {"pos": "position", "part": ""}.get(part_axis, part_axis)
    if with_name:
        axes.set_xlabel(name)


def _write_numbers(axes: "matplotlib.axes.Axes", table: Any, middle: float) -> None:
    for row in range(table.shape[0]):
        for column in range(table.shape[1]):
            value = float(table[row, column])
            if value == value:
                ink = "black" if value > middle else "white"
                axes.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7
                )
