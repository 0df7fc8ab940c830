"""Lenses and attributions as pictures: what each layer would say, and what made it say so."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import (
    Word,
    check_names,
    mark_words,
    name_x,
    name_y,
    open_frame,
    rows_in,
)
from hooked_whisper.figures.style import short

if TYPE_CHECKING:
    import matplotlib.figure

_COLUMNS, _MOST_ROWS = 20, 120
"""Columns of a logit lens in one panel; rows of all its panels up to which it has texts."""


@style.styled
def plot_logit_lens(
    probability: Float[Tensor, "site pos"],
    texts: Sequence[Sequence[str]],
    sites: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """The likeliest token at each site and position, written on its probability as a colour.

    More than 20 positions go on in a row of panels below; where there are too many for
    that, the colours alone are drawn.

    Args:
        probability: Of the likeliest token.
        texts: The likeliest token at each site and position.
        sites: Names of the sites, the first one drawn lowest.
        columns: Names of the positions.
    """
    check_names(probability, sites=sites, columns=columns)
    sizes = {len(row) for row in texts}
    if len(texts) != len(sites) or sizes != {len(columns)}:
        raise InputError(
            f"there are {len(texts)} rows of {sorted(sizes)} texts; the table is "
            f"{tuple(probability.shape)}."
        )
    shown = [[short(text) for text in row] for row in texts]
    names = ["\n".join(short(part) for part in name.split("\n")) for name in columns]
    n_panels = math.ceil(len(columns) / _COLUMNS)
    is_written = n_panels * len(sites) <= _MOST_ROWS
    n_panels = n_panels if is_written else 1
    per_panel = math.ceil(len(columns) / n_panels)
    texts_in = style.widest_in([text for row in shown for text in row]) if is_written else 0.0
    cell = max(0.4, texts_in + 0.1, style.widest_in(names) + 0.1)
    width = per_panel * (cell if is_written else min(0.13, 12 / per_panel))
    height = 0.21 * len(sites)
    left = 0.5 + style.widest_in(sites)
    figure = style.new_figure(
        left + width + 0.9, n_panels * (height + 0.4) + 0.5 + 0.2 * bool(title), title
    )
    panels = figure.subplots(n_panels, 1, squeeze=False)[:, 0]
    image: Any = None
    for number, axes in enumerate(panels):
        part = slice(number * per_panel, (number + 1) * per_panel)
        image = style.heatmap(axes, probability[:, part], low=0, high=1)
        axes.set_xlim(-0.5, per_panel - 0.5)  # the last panel may be shorter
        if is_written:
            _write_texts(axes, image, probability[:, part], [row[part] for row in shown])
        name_x(axes, names[part], width * len(names[part]) / per_panel)
        name_y(axes, sites, height)
        axes.set_ylabel("residual stream")
    panels[-1].set_xlabel("decoder position, and the token looked for")
    style.color_bar(figure, image, list(panels), "probability of the likeliest token")
    return figure


def _write_texts(axes: Any, image: Any, values: Tensor, texts: Sequence[Sequence[str]]) -> None:
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            ink = style.ink_on(image, float(values[row, column]))
            axes.text(
                column, row, style.plain(text), ha="center", va="center", color=ink,
                fontsize=style.SMALL,
            )  # fmt: skip


@style.styled
def plot_attribution(
    values: Float[Tensor, " component"],
    labels: Sequence[str],
    *,
    n: int = 20,
    label: str = "logit",
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Bars for the components that add or take most, one for all others, and their sum.

    Args:
        values: What each component adds.
        labels: Names of the components.
        n: How many to draw; they stay in their order.
        label: What they add to.
    """
    if len(labels) != len(values) or n < 1 or not len(values):
        raise InputError(
            f"{len(labels)} labels for {len(values)} components, n = {n}; pass a label for each, "
            "and draw at least one."
        )
    chosen = sorted(values.abs().topk(min(n, len(values))).indices.tolist())
    left_out = [i for i in range(len(values)) if i not in set(chosen)]
    bars = [(labels[i], float(values[i])) for i in chosen]
    if left_out:
        bars.append((f"{len(left_out)} others", float(values[left_out].sum())))
    names = [*(short(name, 32) for name, _ in bars), "sum"]
    numbers = [*(value for _, value in bars), float(values.sum())]
    height = 0.2 * len(names)
    figure = style.new_figure(4.6 + style.widest_in(names), height + 0.9, title)
    axes = figure.subplots()
    colors = [*(style.FOR if value >= 0 else style.AGAINST for _, value in bars), "#666666"]
    axes.barh(range(len(names)), numbers, color=colors, height=0.75)
    for place, value in enumerate(numbers):
        text, side = f"{value:+.2f}", 1 if value >= 0 else -1
        axes.annotate(
            text, (value, place), xytext=(3 * side, 0), textcoords="offset points", va="center",
            ha="left" if side > 0 else "right", fontsize=style.SMALL,
        )  # fmt: skip
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.axhline(len(bars) - 0.5, color=style.INK, linewidth=0.5)
    axes.margins(x=0.14)
    axes.set_ylim(len(names) - 0.4, -0.6)
    name_y(axes, names, height)
    axes.set_xlabel(style.plain(f"added to the {label}"))
    open_frame(axes)
    return figure


@style.styled
def plot_encoder_lens(
    probability: Float[Tensor, " layer"],
    layers: Sequence[int],
    texts: Sequence[str] | None = None,
    *,
    label: str,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """A bar for each number of encoder layers, with its transcript written beside it.

    Args:
        probability: Of a token, by geometric mean.
        layers: Layers that ran.
        texts: The transcript after each; None writes none.
        label: What the probability is of.
    """
    if len(layers) != len(probability) or (texts is not None and len(texts) != len(layers)):
        raise InputError(
            f"{len(layers)} layers and {len(texts or layers)} texts for {len(probability)} numbers."
        )
    shown = [short(text, 60) or "(nothing)" for text in texts or []]
    height = rows_in(len(layers))
    figure = style.new_figure(3.8 + style.widest_in(shown, style.MEDIUM), height + 0.9, title)
    axes = figure.subplots()
    axes.barh(
        range(len(layers)), probability.detach().float().tolist(), color=style.FOR, height=0.7
    )
    axes.set_xlim(0, 1)
    for row, text in enumerate(shown):
        axes.annotate(
            style.plain(text), (1, row), xytext=(8, 0), textcoords="offset points", va="center"
        )
    name_y(axes, [str(layer) for layer in layers], height)
    axes.set_ylabel("\n".join(style.wrap("encoder layers run", height, style.MEDIUM)))
    axes.set_xlabel(
        "\n".join([*style.wrap(style.plain(label) + ",", 2.8, style.MEDIUM), "per token"])
    )
    open_frame(axes)
    return figure


@style.styled
def plot_trajectories(
    probability: Float[Tensor, "place token"],
    places: Sequence[str],
    tokens: Sequence[str],
    *,
    x_label: str,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """The probability of each token as a line over sites or positions.

    Args:
        probability: Of each token at each place.
        places: Names of the places.
        tokens: Names of the tokens.
        x_label: What the places are.
    """
    check_names(probability, places=places, tokens=tokens)
    names = [short(token) for token in tokens]
    width = min(11.0, max(2.2, 0.4 * len(places)))
    rows = math.ceil(len(names) / 2) if len(names) > 24 else len(names)
    figure = style.new_figure(
        width + 1.2 + (1 + (rows < len(names))) * style.widest_in(names),
        max(3.2, 0.17 * rows),
        title,
    )
    axes = figure.subplots()
    for number, (name, values) in enumerate(zip(names, probability.T.tolist(), strict=True)):
        axes.plot(range(len(places)), values, label=style.plain(name), **style.line_style(number))
    open_frame(axes, grid="y")
    name_x(axes, [" ".join(place.split("\n")) for place in places], width)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(x_label)
    axes.set_ylabel("probability")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=1 + (rows < len(names)))
    return figure


@style.styled
def plot_sources(
    values: Float[Tensor, "pos window"],
    windows_s: Sequence[tuple[float, float]],
    labels: Sequence[str],
    *,
    label: str,
    spans_s: Sequence[Word] = (),
    title: str = "",
) -> "matplotlib.figure.Figure":
    """What each window of the recording adds to each token, with time along the picture.

    Args:
        values: What each window adds at each position.
        windows_s: Starts and ends, in seconds.
        labels: The tokens.
        label: What the numbers are.
        spans_s: Start, end and name of what was spoken, in seconds.
    """
    check_names(values, labels=labels, windows=windows_s)
    names = [short(label) for label in labels]
    rows, width = 1.3 * rows_in(len(labels)), 6.8
    figure = style.new_figure(
        width + style.widest_in(names) + 1.4, rows + 0.9 + 0.2 * bool(spans_s), title
    )
    axes = figure.subplots()
    low, high = style.value_range([values], diverging=True)
    edges = [edge - 0.5 for edge in range(len(labels) + 1)]
    image: Any = None
    for place, (start_s, end_s) in enumerate(windows_s):
        column = values[:, place : place + 1].detach().float().cpu()
        cells = column.numpy()
        sides = [start_s, end_s]
        image = axes.pcolormesh(
            sides, edges, cells, cmap=style.color_map(diverging=True), vmin=low, vmax=high
        )
        for row in (column[:, 0] < 0.2 * low).nonzero()[:, 0].tolist():
            # In greyscale both signs are dark: what takes much is hatched.
            axes.fill_between(
                sides, row - 0.5, row + 0.5, facecolor="none", edgecolor="white", hatch="///", lw=0
            )
    first_s, last_s = min(start for start, _ in windows_s), max(end for _, end in windows_s)
    mark_words(axes, spans_s, width, last_s)
    axes.set_xlim(first_s, last_s)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    name_y(axes, names, rows)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("\n".join(style.wrap("token to come", rows, style.MEDIUM)))
    style.color_bar(figure, image, axes, label)
    return figure
