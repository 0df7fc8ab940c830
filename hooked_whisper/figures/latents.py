"""Latents of sparse autoencoders over the time of a recording."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import Word, mark_words, name_y, rows_in, time_axis, time_width

if TYPE_CHECKING:
    import matplotlib.figure


@style.drawn
def plot_latents(
    latents: Float[Tensor, "pos latent"],
    labels: Sequence[str],
    *,
    words: Sequence[Word] = (),
    position_s: float = 0.02,
    peaks: Float[Tensor, " latent"] | None = None,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Chosen latents over time: a row for each, seconds to the right, words above.

    Args:
        latents: Activations of the chosen latents at each position, of one recording. Where
            there are more positions than the picture has room for, the largest of several is
            shown.
        labels: What to call each latent.
        words: Words with start and end in seconds, such as `recording.words`.
        position_s: Seconds of a position: 0.02 in the encoder.
        peaks: What each latent is drawn as a share of: its peak over many
            recordings. None draws activations as they are.
        title: Drawn above.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: Labels that are not one for each latent, no positions, no latents, or words
            without times.
    """
    n_pos, n_latents = latents.shape
    if len(labels) != n_latents or n_pos == 0 or n_latents == 0:
        raise InputError(
            f"{len(labels)} labels for {n_latents} latents over {n_pos} positions; give one label "
            "for each latent, and at least one position."
        )
    values = latents.detach().float().cpu().T
    if peaks is not None:
        values = values / peaks.detach().float().cpu()[:, None].clamp_min(1e-12)
    end_s = n_pos * position_s
    names = [style.short(label, 24) for label in labels]
    rows, width = rows_in(n_latents), time_width(end_s) - 1.2
    figure = style.new_figure(
        width + style.widest_in(names) + 1.4, rows + 1.0 + 0.2 * bool(words), title
    )
    axes = figure.subplots()
    image = style.heatmap(
        axes,
        style.shrink(values, math.inf, width),
        low=0,
        high=None if peaks is None else 1,
        origin="upper",
        extent=(0, end_s, n_latents - 0.5, -0.5),
    )
    name_y(axes, names, rows)
    axes.set_ylabel("latent")
    time_axis(axes, end_s)
    mark_words(axes, words, width, end_s)
    bar = "activation" if peaks is None else "share of the latent's peak"
    style.color_bar(figure, image, axes, bar)
    return figure
