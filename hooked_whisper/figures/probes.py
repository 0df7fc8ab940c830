"""What probes read off each hook, with intervals, above what could be read without it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import matplotlib.figure

_DASHES = ("--", ":", "-.")


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
    from matplotlib.figure import Figure

    if tuple(scores.shape) != (len(names), 3):
        raise InputError(f"{len(names)} hooks are named; the scores are {tuple(scores.shape)}.")
    values = scores.double().numpy(force=True)
    width = max(4.5, 2.5 + 0.55 * len(names))
    figure = Figure(figsize=(width, 3.8), layout="constrained", dpi=130)
    axes = figure.subplots()
    places = range(len(names))
    spread = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
    axes.errorbar(places, values[:, 0], yerr=spread, fmt="o-", capsize=3, color="#00204c")
    for number, (name, value) in enumerate(baselines.items()):
        axes.axhline(value, color="#7c7b78", linestyle=_DASHES[number % 3], linewidth=1, label=name)
    short = [name.replace(".blocks.", " ").replace(".hook_", " ") for name in names]
    axes.set_xticks(list(places), short, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel(label)
    if baselines:
        axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=9, loc="left")
    return figure
