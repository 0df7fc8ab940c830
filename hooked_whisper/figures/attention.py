"""Cross-attention as text against time, under the sound that it reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_SECOND
from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import (
    Word,
    mark_padding,
    mark_words,
    name_y,
    rows_in,
    time_axis,
    time_width,
)
from hooked_whisper.figures.mel import POSITION_S, draw_mel, shown_seconds

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


@style.drawn
def plot_cross_attention(
    mel: Float[Tensor, "mel frame"],
    pattern: Float[Tensor, "query key"],
    labels: Sequence[str],
    *,
    path: Float[Tensor, " query"] | None = None,
    sound_s: float | int | None = None,
    spans_s: Sequence[Word] = (),
    show_padding: bool = False,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """The mel spectrogram, and below it in step where each token looks.

    Args:
        mel: One recording's log-mel.
        pattern: Attention of one head, or a mean over heads, to encoder positions. Where
            there are more than the picture has room for, the largest of several is shown.
        labels: A label for each query, for instance the token that it predicts. Of very many,
            as many as there is room for are written.
        path: The alignment: for each query the time at which it looks, in seconds, such as
            `expected_seconds(pattern)`, drawn as a line; NaN breaks it.
        sound_s: Seconds that hold sound; what comes after is left out. None shows all.
        spans_s: Words with their times in seconds, such as `recording.words`, or tuples with
            start, end and name; written above the mel.
        show_padding: Shade and label what comes after the sound instead of leaving it out.
        title: Drawn above.

    Returns:
        A matplotlib figure; `figure.savefig("attention.png")` writes it.

    Raises:
        InputError: Labels or a path that do not match the queries, or times that are none.
    """
    n_query = len(pattern)
    if len(labels) != n_query or not n_query:
        raise InputError(f"{len(labels)} labels for {n_query} queries; pass one for each.")
    if path is not None and tuple(path.shape) != (n_query,):
        raise InputError(
            f"the path is {tuple(path.shape)} and there are {n_query} queries; pass a time in "
            "seconds for each, NaN where there is none."
        )
    end_s, sound_s = shown_seconds(mel.shape[-1] / FRAMES_PER_SECOND, sound_s, show_padding)
    names = [style.short(label) for label in labels]
    width, rows = time_width(end_s) - 0.9, max(0.5, rows_in(n_query))
    margin = 0.6 + style.widest_in(names)
    figure = style.new_figure(width + margin + 0.9, 2.4 + rows, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, rows])
    draw_mel(above, mel, end_s)
    mark_words(above, spans_s, width, end_s)
    n_keys = max(1, round(end_s / POSITION_S))
    image = style.heatmap(
        below,
        style.shrink(pattern[:, :n_keys], rows, width),
        low=0,
        origin="upper",
        extent=(0, min(n_keys, pattern.shape[1]) * POSITION_S, n_query - 0.5, -0.5),
    )
    if path is not None:
        _draw_path(below, path)
    name_y(below, names, rows)
    below.set_ylabel("\n".join(style.wrap("token to come", rows, style.MEDIUM)))
    for axes in (above, below):
        mark_padding(axes, sound_s, end_s)
    time_axis(below, end_s)
    style.color_bar(figure, image, below, "attention", fraction=0.05)
    return figure


def _draw_path(axes: "matplotlib.axes.Axes", path: Float[Tensor, " query"]) -> None:
    """The alignment: a white line edged in black, with a ring at each token."""
    from matplotlib.patheffects import Normal, Stroke

    many = len(path) > 60
    (line,) = axes.plot(
        path.detach().double().cpu().tolist(),
        range(len(path)),
        color="white",
        linewidth=1.0,
        marker="" if many else "o",
        markerfacecolor="none",
        markersize=5,
        label="alignment",
    )
    line.set_path_effects([Stroke(linewidth=2.4, foreground="black"), Normal()])
