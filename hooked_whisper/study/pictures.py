"""The pictures that only a study needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.figures import style

if TYPE_CHECKING:
    import matplotlib.figure


@style.styled
def plot_offsets(
    attention: Float[Tensor, "layer offset"],
    names: Sequence[str],
    *,
    position_s: float | int = 0.02,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """How much attention goes how far from the query: a line for each layer.

    Args:
        attention: Mean share of attention at each distance, as many before the query as behind it.
        names: A name for each layer.
        position_s: Seconds of a position.
        title: Drawn above.
    """
    figure = style.new_figure(6.4, 3.6, title)
    axes = figure.subplots()
    reach = attention.shape[1] // 2
    seconds = [position_s * (i - reach) for i in range(attention.shape[1])]
    for i, (line, name) in enumerate(zip(attention, names, strict=True)):
        line_style = style.line_style(i) | {"markevery": max(1, reach // 5), "markersize": 3.5}
        axes.plot(seconds, line.float().numpy(force=True), label=name, linewidth=1.3, **line_style)
    axes.set_yscale("log")
    axes.set(xlabel="time looked at, from the query (s)", ylabel="mean attention to a position")
    axes.axvline(0, color=style.FAINT, linewidth=0.7, zorder=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    style.style_ticks(axes)
    figure.legend(loc="outside right upper", fontsize=style.SMALL, frameon=False)
    return figure
