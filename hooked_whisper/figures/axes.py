"""What stands along the axes of pictures: seconds, names, words, padding."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures.style import (
    FAINT,
    GREY,
    INK,
    SMALL,
    plain,
    short,
    style_ticks,
    widest_in,
    width_in,
)

if TYPE_CHECKING:
    import matplotlib.axes


@runtime_checkable
class HasTimes(Protocol):
    """A spoken word with its times, such as those of the shipped recordings."""

    word: str
    start_s: float
    end_s: float


Word = HasTimes | Sequence[Any]
"""A word with `word`, `start_s` and `end_s`, or a tuple of the three."""


def read_words(words: Sequence[Word]) -> list[tuple[str, float, float]]:
    """Each word with its start and end in seconds, from objects or tuples in either order.

    >>> read_words([("one", 0.2, 0.5), (0.6, 0.9, "two")])
    [('one', 0.2, 0.5), ('two', 0.6, 0.9)]
    """
    found = []
    for word in words:
        if isinstance(word, HasTimes):
            parts: list[Any] = [word.word, word.start_s, word.end_s]
        else:
            parts = list(word)
            if len(parts) == 3 and isinstance(parts[2], str):
                parts = [parts[2], *parts[:2]]
        is_word = len(parts) == 3 and isinstance(parts[0], str)
        if not is_word or not all(isinstance(time, int | float) for time in parts[1:]):
            raise InputError(
                f"{word!r} is no word with its times; pass (word, start, end) with times in "
                "seconds, or recording.words."
            )
        found.append((parts[0], float(parts[1]), float(parts[2])))
    return found


def check_names(values: Tensor, **names: Sequence[object]) -> None:
    """Refuse an empty table, or one without a name for each place of its axes."""
    if tuple(values.shape) == tuple(map(len, names.values())) and values.numel():
        return
    *counts, last = [f"{len(named)} {what}" for what, named in names.items()]
    raise InputError(
        f"{', '.join(counts)} and {last} are named; the table is {tuple(values.shape)}. Pass one "
        "name for each, and at least one of each."
    )


def named_tables(tables: Tensor | Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tables of [layer, head] by their names, once it is sure that they are such; one has none."""
    named = {"": tables} if isinstance(tables, Tensor) else dict(tables)
    if not named:
        raise InputError(f"nothing to draw: pass at least one table of {what}.")
    for name, table in named.items():
        if table.ndim != 2 or not table.numel():
            raise InputError(f"the {what} {name!r} are {tuple(table.shape)}; pass [layer, head].")
    return named


def time_width(end_s: float) -> float:
    """How wide, in inches, a picture of so many seconds is drawn."""
    return min(11.0, max(4.8, 3.6 + 1.5 * end_s))


def time_axis(axes: "matplotlib.axes.Axes", end_s: float) -> None:
    """Seconds from 0 to the end."""
    axes.set_xlim(0, end_s)
    axes.set_xlabel("time (s)")


def mark_padding(axes: "matplotlib.axes.Axes", start_s: float, end_s: float) -> None:
    """Shade and label what comes after the sound, where the picture shows it."""
    if end_s - start_s < 1e-6:
        return
    axes.axvspan(start_s, end_s, facecolor=GREY, edgecolor="white", hatch="////", alpha=0.75, lw=0)
    axes.text(
        (start_s + end_s) / 2,
        0.5,
        "padding",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="center",
        rotation=90 if end_s - start_s < 0.15 * end_s else 0,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )


def mark_words(
    axes: "matplotlib.axes.Axes",
    words: Sequence[Word],
    width: float,
    end_s: float,
    *,
    others: Sequence["matplotlib.axes.Axes"] = (),
) -> None:
    """Words above an axes of seconds, `width` inches wide, and lines at their edges.

    Where they stand too close for one line, they take up to three; where that is not enough,
    they are turned upright. `others`, white ones of the same seconds, get the lines alone.
    """
    from matplotlib.patheffects import withStroke

    spoken = [word for word in read_words(words) if word[1] < end_s]
    edges = sorted({time for _, *times in spoken for time in times if time <= end_s})
    thin = 1.0 if len(edges) <= 40 else 0.5
    for edge in edges:
        line = axes.axvline(edge, color="white", linewidth=0.9 * thin, linestyle=(0, (2, 2)))
        line.set_path_effects([withStroke(linewidth=1.9 * thin, foreground=INK, alpha=0.55)])
        for panel in others:
            panel.axvline(edge, color=FAINT, linewidth=0.7 * thin, linestyle=(0, (2, 2)), zorder=1)
    names = [short(name, 24) for name, _, _ in spoken]
    middles = [(start + min(end, end_s)) / 2 for _, start, end in spoken]
    centres = [middle / end_s * width for middle in middles]
    lanes = _lanes(centres, [width_in(name) + 0.07 for name in names])
    upright = max(lanes, default=0) > 2
    if upright:
        lanes = _lanes(centres, [0.12] * len(names))
    step = 12.0 if not upright else 4 + 72 * widest_in(names)
    for name, middle, lane in zip(names, middles, lanes, strict=True):
        axes.annotate(
            plain(name),
            (middle, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2.5 + step * lane),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90 if upright else 0,
            fontsize=SMALL,
        )


def _lanes(centres: Sequence[float], widths: Sequence[float]) -> list[int]:
    """For each text, the lowest line in which it overlaps none before it."""
    ends: list[float] = []
    found = []
    for centre, width in zip(centres, widths, strict=True):
        lane = next((i for i, end in enumerate(ends) if end <= centre - width / 2), len(ends))
        ends[lane : lane + 1] = [centre + width / 2]
        found.append(lane)
    return found


def name_x(axes: "matplotlib.axes.Axes", names: Sequence[str], width: float) -> int:
    """Names at 0, 1, 2, … along `width` inches: level, upright, or only some of them.

    Gives how far they are turned, in degrees, for axes that share them.
    """
    style_ticks(axes)
    names = [plain(name) for name in names]
    cell, widest = width / max(1, len(names)), widest_in(names)
    if widest + 0.06 <= cell:
        step, rotation = 1, 0
    elif all(name.lstrip("-").replace(".", "", 1).isdigit() for name in names):
        step, rotation = _step((widest + 0.12) / cell), 0
    else:
        high = 0.125 * max(name.count("\n") + 1 for name in names)
        step, rotation = _step(high / cell), 90
    shown = range(0, len(names), step)
    axes.set_xticks(list(shown), [names[i] for i in shown])
    axes.tick_params(axis="x", labelrotation=rotation)
    return rotation


def name_y(axes: "matplotlib.axes.Axes", names: Sequence[str], height: float) -> None:
    """Names at 0, 1, 2, … along the left, or only some of them where all would overlap."""
    style_ticks(axes)
    step = _step(0.125 * len(names) / height)
    shown = range(0, len(names), step)
    axes.set_yticks(list(shown), [plain(names[i]) for i in shown])


def _step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … that is not under this."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= least - 1e-9:
                return digit * power
        power *= 10


def rows_in(n: int) -> float:
    """How high, in inches, so many rows of text are drawn: all named, until there are very many."""
    return min(13.0, max(0.3, 0.24 * min(n, 30) + 0.15 * max(0, n - 30)))


def open_frame(axes: "matplotlib.axes.Axes", *, grid: Literal["", "x", "y", "both"] = "") -> None:
    """Ticks in this look and, along an axis or `"both"`, faint lines to read numbers by."""
    style_ticks(axes)
    if grid:
        axes.grid(axis=grid)
        axes.set_axisbelow(True)
