"""One look for all pictures: colours, lines, letters, sizes, titles and colour bars.

Every colour map is read in greyscale too: its luminance only rises, or, around 0, rises to
white and falls again, where a sign is hatched or written. Lines differ in their dashes and
markers, not in colour alone. Nothing of matplotlib's own settings is changed: `styled` sets
them while a picture is made and puts them back, so that a user's style changes no picture.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.colors
    import matplotlib.figure

COLORS = "cividis"
"""Dark is little, light is much: one rising luminance, made for the colour-blind."""
DIVERGING = ("#6b2d00", "#b3521b", "#e3a877", "#f7f7f7", "#8fb8dc", "#2f73ad", "#00305a")
"""From brown for the least over white for 0 to blue for the most."""
ACCENT = "#00457c"
FOR, AGAINST = "#00528c", "#b3521b"
"""Adds to a number, and takes from it: apart in greyscale and for the colour-blind."""
INK, FAINT, GREY = "#222222", "#8a8a8a", "#d4d4d4"
"""Of letters; of lines that only help; and of what is no number (NaN) or no sound."""
LINES = (ACCENT, "#d55e00", "#009e73", "#a0468c", "#56b4e9", "#b98a00", "#222222", "#8c564b")
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X"

DPI = 130
N_SHADES = 64
"""Shades of a colour map: enough for the eye, and few enough for small files."""
MOST_IN = 16.0
"""No picture is wider or higher than this, in inches; labels are left out before that."""
SMALL, MEDIUM, LARGE = 7.5, 8.5, 10.0
"""Sizes of letters, in points: ticks and cells, axes, titles."""

_WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans", "Arial Unicode MS", "Unifont")
"""Asked, where they are installed, for signs that matplotlib's own font lacks."""

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw in this look, whatever matplotlib's settings are outside of it."""

    @functools.wraps(draw)
    def draw_styled(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import style

        with style.context(["default", _settings()]):
            return draw(*args, **kwargs)

    return draw_styled


def _settings() -> dict[str, Any]:
    return {
        "font.family": list(_families()),
        "font.size": MEDIUM,
        "axes.titlesize": MEDIUM,
        "axes.titlelocation": "left",
        "axes.labelsize": MEDIUM,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": GREY,
        "grid.linewidth": 0.5,
        "text.color": INK,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "hatch.linewidth": 0.5,
        "image.composite_image": False,
    }


@functools.cache
def _families() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ("DejaVu Sans", *(name for name in _WIDE_FONTS if name in installed))


def new_figure(width: float, height: float, title: str = "") -> "matplotlib.figure.Figure":
    """An empty figure of this size in inches, at most `MOST_IN`, higher where its title wraps."""
    from matplotlib.figure import Figure

    width = min(MOST_IN, max(3.2, width))
    lines = wrap(title, width - 0.3, LARGE)
    height = min(MOST_IN, max(1.5, height)) + 0.19 * max(0, len(lines) - 1)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI, facecolor="white")
    if lines:
        figure.suptitle(plain("\n".join(lines)), fontsize=LARGE)
    return figure


def wrap(text: str, width: float, size: float) -> list[str]:
    """The text in lines of at most `width` inches, broken between words where there are any."""
    lines: list[str] = []
    for paragraph in text.strip().splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if width_in(longer, size) <= width:
                line = longer
                continue
            lines += [line] if line else []
            while width_in(word, size) > width and len(word) > 1:
                n = len(word) - 1
                while n > 1 and width_in(word[:n], size) > width:
                    n -= 1
                lines, word = [*lines, word[:n]], word[n:]
            line = word
        lines.append(line)
    return lines


def width_in(text: str, size: float | int = SMALL) -> float:
    """How wide a line of text is drawn, in inches."""
    return sum(map(_width_em, text)) * size / 72


@functools.cache
def _width_em(sign: str) -> float:
    """How far a sign moves the pen, as a share of the size of the letters."""
    font = _own_font()
    if not font.get_char_index(ord(sign)):
        return 1.0  # drawn by another font, or as a box: full width, as Chinese signs are
    return float(font.load_char(ord(sign)).linearHoriAdvance) / 65536 / 100


@functools.cache
def _own_font() -> Any:
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    font = FT2Font(findfont("DejaVu Sans"))
    font.set_size(100, 72)
    return font


def widest_in(texts: Sequence[str], size: float | int = SMALL) -> float:
    """How wide the widest of some lines is drawn, in inches; 0 where there are none."""
    return max((width_in(line, size) for text in texts for line in text.split("\n")), default=0.0)


def plain(text: str) -> str:
    """A text that matplotlib draws as it is, not as a formula between two dollar signs.

    >>> plain("$5 and $6")
    '\\\\$5 and \\\\$6'
    """
    return text.replace("$", r"\$")


def short(text: str, n: int = 16) -> str:
    """A text on one line, of at most `n` signs, its spaces at the ends kept out.

    >>> short(" three"), short("a long transcript", 8)
    ('three', 'a long …')
    """
    line = " ".join(text.split()) or text.replace("\\n", "↵").replace(" ", "␣")
    return line if len(line) <= n else line[: n - 1] + "…"


def line_style(number: int, *, marker: bool = True) -> dict[str, Any]:
    """Colour, dashes and marker of one of several lines; 32 differ, also without the colour."""
    n = len(LINES)
    dashes = DASHES[(number + number // n) % len(DASHES)]
    found = {"color": LINES[number % n], "linestyle": dashes}
    return found | ({"marker": MARKERS[number % n]} if marker else {})


def color_map(diverging: bool = False) -> "matplotlib.colors.Colormap":
    """The map of every heatmap; what is no number stays clear, for the hatched grey under it."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    if not diverging:
        return matplotlib.colormaps[COLORS].resampled(N_SHADES).with_extremes(bad=(0, 0, 0, 0))
    # An odd number of shades, so that 0 itself is white.
    found = LinearSegmentedColormap.from_list("hooked_whisper", DIVERGING, N=N_SHADES + 1)
    return found.with_extremes(bad=(0, 0, 0, 0))


def heatmap(
    axes: "matplotlib.axes.Axes",
    values: Tensor,
    *,
    low: float | int | None = None,
    high: float | int | None = None,
    diverging: bool = False,
    gamma: float = 1.0,
    **options: Any,
) -> Any:
    """Values `[row, column]` as colours, sharp at their edges, NaN as hatched grey.

    With a gamma under 1, the share of the range is raised to it, so that little shows.
    """
    from matplotlib.colors import Normalize, PowerNorm

    least, most = value_range([values], low, high, diverging=diverging)
    options = {"aspect": "auto", "interpolation": "nearest", "origin": "lower"} | options
    image = axes.imshow(
        values.detach().float().cpu().numpy(),
        cmap=color_map(diverging),
        norm=Normalize(least, most) if gamma == 1 else PowerNorm(gamma, least, most),
        **options,
    )
    if bool(values.isnan().any()):
        axes.patch.set(facecolor=GREY, hatch="////", edgecolor="white")
    axes.spines[:].set_visible(False)
    return image


def shrink(
    values: Float[Tensor, "row column"], height: float, width: float, *, by: str = "max"
) -> Float[Tensor, "smaller_row smaller_column"]:
    """The largest (or the `"mean"`) of each block of cells, NaN where one of them is.

    No more cells are left than a picture of so many inches has dots.
    """
    values = values.detach().float().cpu()
    # Fewer cells than dots: each of them is drawn, and the file stays small.
    most = [max(1.0, 0.65 * DPI * inches) for inches in (height, width)]
    rows, columns = (int(min(*sizes)) for sizes in zip(values.shape, most, strict=True))
    if (rows, columns) == tuple(values.shape):
        return values
    pool = adaptive_max_pool2d if by == "max" else adaptive_avg_pool2d
    return pool(values[None], (rows, columns))[0]


def value_range(
    tables: Sequence[Tensor],
    low: float | int | None = None,
    high: float | int | None = None,
    *,
    diverging: bool = False,
) -> tuple[float, float]:
    """The range of colours that all tables share; alike on both sides of 0 where it diverges."""
    finite = [table.detach().float().flatten() for table in tables]
    finite = [table[table.isfinite()] for table in finite]
    least = min((float(table.min()) for table in finite if len(table)), default=0.0)
    most = max((float(table.max()) for table in finite if len(table)), default=1.0)
    if diverging:
        most = max(abs(least), abs(most))
        least = -most
    least, most = float(least if low is None else low), float(most if high is None else high)
    if not least <= most:
        raise InputError(f"the colours go from {least:g} to {most:g}; give a low under the high.")
    if least == most:  # one value: from nothing to it
        least, most = (min(0.0, least), max(0.0, most)) if most else (0.0, 1.0)
    return least, most


def ink_on(image: Any, value: float) -> str:
    """Black or white, whichever reads better on the colour that an image gives a value."""
    red, green, blue, _ = image.cmap(image.norm(value))
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if luminance > 0.179 else "white"  # where both have the same contrast (WCAG)


def write_numbers(
    axes: "matplotlib.axes.Axes", image: Any, values: Tensor, digits: int = 2, size: float = SMALL
) -> None:
    """Each number in its cell, in readable ink; nothing where there is none, and no -0."""
    for row, line in enumerate(values.detach().float().tolist()):
        for column, value in enumerate(line):
            if value != value:
                continue
            text = f"{value:.{digits}f}"
            text = text.replace("-", "") if float(text) == 0 else text
            ink = ink_on(image, value)
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)


def color_bar(
    figure: "matplotlib.figure.Figure",
    image: Any,
    axes: Any,
    label: str,
    *,
    label_in: float | None = None,
    **options: Any,
) -> Any:
    """What the colours mean, at the right of one or several axes.

    A line of the label may take `label_in` inches; None is about the figure's height.
    """
    bar = figure.colorbar(image, ax=axes, **({"pad": 0.015, "aspect": 30} | options))
    label_in = figure.get_figheight() - 0.35 if label_in is None else label_in
    bar.set_label(plain("\n".join(wrap(label, label_in, MEDIUM))))
    bar.outline.set_visible(False)
    style_ticks(bar.ax)
    return bar


def style_ticks(axes: "matplotlib.axes.Axes") -> None:
    """Ticks in this look, also those that matplotlib makes later, as it draws."""
    axes.tick_params(labelsize=SMALL, length=2.5, width=0.6, color=INK, labelcolor=INK)
