"""What a sweep found: a heatmap for each site, layers upwards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import name_x, name_y

if TYPE_CHECKING:
    import matplotlib.figure

_MOST_NUMBERS = 12
"""Columns up to which the numbers are written in."""


@style.drawn
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
        title: Drawn above.

    Returns:
        A matplotlib figure; `figure.savefig("sweep.png")` writes it.

    Raises:
        InputError: Labels that do not match the table, or an empty one.
    """
    if tuple(values.shape) != (len(sites), len(layers), len(parts)) or not values.numel():
        raise InputError(
            f"{len(sites)} sites, {len(layers)} layers and {len(parts)} parts are named; the "
            f"table is {tuple(values.shape)}."
        )
    low, high = style.value_range([values])
    is_written = len(parts) <= _MOST_NUMBERS
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
        name_y(axes, ["-" if each < 0 else str(each) for each in layers], height)
        axes.set_ylabel("layer")
        _name_parts(axes, parts, part_axis, width)
        if is_written:
            style.write_numbers(axes, image, table)
    panels[-1].set_xlabel(_axis_name(part_axis))
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


def _axis_name(part_axis: str) -> str:
    names = {"window_s": "start of the window (s)", "pos": "position", "part": ""}
    return names.get(part_axis, part_axis)
