"""Over the time of a recording: its mel spectrogram, with activations, attention and words."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND, POSITION_S
from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import (
    Word,
    mark_padding,
    mark_words,
    name_y,
    open_frame,
    rows_in,
    time_axis,
    time_width,
)

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_TICKS_HZ = (250.0, 500.0, 1000.0, 2000.0, 4000.0)
_HIGHEST_HZ = 8000.0


@style.styled
def plot_mel(
    mel: Float[Tensor, "mel frame"],
    *,
    sound_s: float | int | None = None,
    words: Sequence[Word] = (),
    activations: Mapping[str, Float[Tensor, " pos"]] | None = None,
    overlay: Float[Tensor, " pos"] | None = None,
    overlay_label: str = "attention",
    show_padding: bool = False,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """A recording's mel spectrogram over seconds, with activations, attention and words.

    Args:
        mel: One recording's log-mel.
        sound_s: Seconds that hold sound; what comes after is left out. None shows all.
        words: Words with their times, such as `recording.words`, written above.
        activations: By name, a number for each encoder position of 0.02 s: a line each
            in a panel under the mel, in step with it.
        overlay: A number for each encoder position, drawn as a line on the mel: what a
            token attends to, or one latent.
        overlay_label: What the overlay is, with its unit.
        show_padding: Shade and label what comes after the sound instead of leaving it out.
    """
    end_s, sound_s = shown_seconds(mel.shape[-1] / FRAMES_PER_SECOND, sound_s, show_padding)
    lines = dict(activations or {})
    drawn = {**lines, **({overlay_label: overlay} if overlay is not None else {})}
    for name, line in drawn.items():
        _check_positions(name, line, mel, sound_s)

    width = time_width(end_s)
    figure = style.new_figure(width, 2.3 + 1.3 * bool(lines) + 0.15 * bool(words), title)
    panels = figure.subplots(
        1 + bool(lines), 1, sharex=True, squeeze=False, height_ratios=[2.0, 1.1][: 1 + bool(lines)]
    )
    above, *below = panels[:, 0]
    draw_mel(above, mel, end_s)
    if overlay is not None:
        _draw_over(above, overlay, overlay_label)
    for under in below:
        for number, (name, line) in enumerate(lines.items()):
            line_style = {**style.line_style(number), "marker": ""}
            under.plot(*_steps(line, end_s), drawstyle="steps-post", label=name, **line_style)
        if len(lines) > 1:
            under.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            under.set_ylabel("activation")
        else:
            under.set_ylabel(style.plain("\n".join(style.wrap(name, 1.1, style.MEDIUM))))
        open_frame(under, grid="y")
    mark_words(above, words, 0.85 * width, end_s, others=below)
    for panel in (above, *below):
        mark_padding(panel, sound_s, end_s)
    time_axis(panels[-1, 0], end_s)
    return figure


def shown_seconds(
    window_s: float, sound_s: float | int | None, show_padding: bool
) -> tuple[float, float]:
    """Where a picture of a window ends, and where its sound does, in seconds."""
    if sound_s is None:
        return window_s, window_s
    if not (math.isfinite(sound_s) and sound_s > 0):
        raise InputError(
            f"sound_s is {sound_s:g}; pass the seconds that hold sound, over 0, or None to show "
            f"the whole {window_s:g} s."
        )
    # Whole positions: a picture never ends within one.
    sound_s = min(window_s, math.ceil(round(sound_s / POSITION_S, 6)) * POSITION_S)
    return (window_s if show_padding else sound_s), sound_s


def draw_mel(axes: "matplotlib.axes.Axes", mel: Float[Tensor, "mel frame"], end_s: float) -> None:
    """The spectrogram up to a time, its height marked in kHz.

    Source: Slaney's mel scale, as Whisper's filters use it: linear up to 1 kHz, logarithmic above.
    """
    n_frames = max(1, round(end_s * FRAMES_PER_SECOND))
    n_mels = len(mel)
    style.heatmap(
        axes,
        style.shrink(mel[:, :n_frames], math.inf, time_width(end_s) - 1, by="mean"),
        extent=(0, n_frames / FRAMES_PER_SECOND, 0, n_mels),
    )
    style.style_ticks(axes)
    ticks = [_mels(hz) / _mels(_HIGHEST_HZ) * (n_mels + 1) - 0.5 for hz in _TICKS_HZ]
    axes.set_yticks(ticks, [f"{hz / 1000:g}" for hz in _TICKS_HZ])
    axes.set_ylabel("frequency (kHz)")


def _mels(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _draw_over(axes: "matplotlib.axes.Axes", values: Tensor, label: str) -> None:
    """A white line, edged in black, on the mel, with its own axis at the right."""
    from matplotlib.patheffects import withStroke

    beside = axes.twinx()
    times, steps = _steps(values, len(values) * POSITION_S)
    (line,) = beside.plot(times, steps, drawstyle="steps-post", color="white", linewidth=1.5)
    line.set_path_effects([withStroke(linewidth=3.2, foreground="black")])
    beside.fill_between(times, steps, step="post", color="white", alpha=0.2, linewidth=0)
    low, high = style.value_range([values])
    beside.set_ylim(min(0.0, low), high + 0.05 * (high - min(0.0, low)))
    beside.set_ylabel(style.plain(label))
    style.style_ticks(beside)
    beside.spines[:].set_visible(False)


def _steps(values: Tensor, end_s: float) -> tuple[list[float], list[float]]:
    """Times and values of a line in steps, each as long as a position."""
    numbers = values.detach().float().cpu().tolist()[: max(1, round(end_s / POSITION_S))]
    return [i * POSITION_S for i in range(len(numbers) + 1)], [*numbers, numbers[-1]]


def _check_positions(name: str, line: Tensor, mel: Tensor, sound_s: float) -> None:
    most = mel.shape[-1] // FRAMES_PER_POSITION
    least = min(most, round(sound_s / POSITION_S))
    if line.ndim != 1 or not least <= len(line) <= most or not len(line):
        raise InputError(
            f"{name!r} is {tuple(line.shape)}; pass one number for each position of 0.02 s: "
            f"[{most}] for this mel, or at least the [{least}] that are shown."
        )


@style.styled
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
