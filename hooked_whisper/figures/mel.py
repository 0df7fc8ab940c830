"""The sound as a mel spectrogram, with what a model makes of it on it and under it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND
from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import (
    Word,
    mark_padding,
    mark_words,
    open_frame,
    time_axis,
    time_width,
)

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

POSITION_S = FRAMES_PER_POSITION / FRAMES_PER_SECOND
"""Seconds of an encoder position."""
_TICKS_HZ = (250.0, 500.0, 1000.0, 2000.0, 4000.0)
_HIGHEST_HZ = 8000.0


@style.drawn
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
        title: Drawn above.

    Returns:
        A matplotlib figure; `figure.savefig("mel.png")` writes it.

    Raises:
        InputError: Positions that do not fit the mel, or times that are none.
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
    """Where a picture of a window ends, and where its sound does, in seconds.

    Raises:
        InputError: A length that is none.
    """
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
    places = [_mels(hz) / _mels(_HIGHEST_HZ) * (n_mels + 1) - 0.5 for hz in _TICKS_HZ]
    axes.set_yticks(places, [f"{hz / 1000:g}" for hz in _TICKS_HZ])
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
