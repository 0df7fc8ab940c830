"""What probes read off each hook, with intervals, above what could be read without it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import name_x, open_frame

if TYPE_CHECKING:
    import matplotlib.figure


@style.drawn
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
        title: Drawn above.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: Names that do not match the scores.
    """
    if tuple(scores.shape) != (len(names), 3) or not len(names):
        raise InputError(f"{len(names)} hooks are named; the scores are {tuple(scores.shape)}.")
    values = scores.detach().double().cpu().numpy()
    width = max(3.0, 0.5 * len(names))
    figure = style.new_figure(width + 0.8, 3.6, title)
    axes = figure.subplots()
    places = range(len(names))
    spread = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
    axes.errorbar(places, values[:, 0], yerr=spread, fmt="o-", capsize=3, color=style.ACCENT)
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
