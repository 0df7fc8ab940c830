"""Attention as pictures: the pattern of one head, of all heads of a layer, entropy of all heads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import name_x, name_y, named_tables, open_frame, rows_in

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

GAMMA = 0.5
"""Colours follow the square root of attention, so that what is faint can be seen."""
_ALONE_IN, _AMONG_IN = 4.2, 1.7
"""Inches of an axis in seconds: of one pattern, and of one among several."""


@style.styled
def plot_pattern(
    pattern: Float[Tensor, "query key"],
    *,
    query_labels: Sequence[str] | None = None,
    key_labels: Sequence[str] | None = None,
    position_s: float | int | None = 0.02,
    sound_s: float | int | None = None,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Where each query of one head looks: queries downwards, keys to the right.

    Where there are more positions than the picture has room for, each cell shows the
    largest of those that it stands for: a diagonal one position wide stays a line.
    Colours follow the square root, so that faint attention shows.

    Args:
        pattern: Attention of a head, or a mean over heads.
        query_labels: A name for each query, such as its token; None makes it an axis in seconds.
        key_labels: The same for keys.
        position_s: Seconds of a position on axes without labels: 0.02 in the encoder; None
            counts positions.
        sound_s: Seconds that hold sound: what comes after is left out of axes in seconds.
            None shows all.
    """
    query = _side("query", pattern.shape[0], query_labels, position_s, sound_s)
    key = _side("key", pattern.shape[1], key_labels, position_s, sound_s)
    height = query.inches(alone=True)
    # There is more room for time where the other side is a few tokens.
    width = 6.5 if query.labels and not key.labels else key.inches(alone=True)
    figure = style.new_figure(
        width + 0.65 + query.margin + 0.9,
        height + 0.45 + key.margin + 0.3 * bool(title),
        title,
    )
    axes = figure.subplots()
    image = _draw_head(axes, pattern, query, key, height, width)
    _name_sides(axes, query, key, height, width)
    axes.set(xlabel=key.name, ylabel=query.name)
    style.color_bar(figure, image, axes, "attention", label_in=max(0.6, height))
    return figure


@style.styled
def plot_patterns(
    patterns: Float[Tensor, "head query key"],
    *,
    query_labels: Sequence[str] | None = None,
    key_labels: Sequence[str] | None = None,
    position_s: float | int | None = 0.02,
    sound_s: float | int | None = None,
    heads: Sequence[str] | None = None,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Where all heads of a layer look: a small pattern each.

    Each head has colours of its own, from 0 to its largest attention, which stands above
    it: a head that looks everywhere would be black beside one that looks at one place.
    Cells show the largest of the positions that they stand for, as in `plot_pattern`.

    Args:
        patterns: Attention of each head.
        query_labels, key_labels, position_s, sound_s: As in `plot_pattern`.
        heads: What to call each head; None is `head 0`, `head 1`, …
    """
    n_heads, n_query, n_key = patterns.shape
    names = [f"head {i}" for i in range(n_heads)] if heads is None else list(heads)
    if len(names) != n_heads or not n_heads:
        raise InputError(
            f"{len(names)} names for {n_heads} heads; pass at least one head, and one name for "
            "each."
        )
    query = _side("query", n_query, query_labels, position_s, sound_s)
    key = _side("key", n_key, key_labels, position_s, sound_s)
    columns = _columns(n_heads)
    rows = math.ceil(n_heads / columns)
    longest_title = style.widest_in([f"{name}: to 0.00088" for name in names])
    height, width = query.inches(alone=False), max(key.inches(alone=False), longest_title)
    figure = style.new_figure(
        query.margin + 0.65 + columns * (width + 0.12) + 0.75,
        key.margin + 0.5 + rows * (height + 0.27) + 0.25 * bool(title),
        title,
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, pattern, name in zip(panels, patterns, names, strict=False):
        _draw_head(axes, pattern, query, key, height, width)
        most = style.value_range([pattern[: query.n, : key.n]])[1]
        axes.set_title(f"{style.plain(name)}: to {most:.2g}", fontsize=style.SMALL, pad=3)
    rotation = _name_sides(panels[0], query, key, height, width)
    for number, axes in enumerate(panels):
        style.style_ticks(axes)
        axes.set_visible(number < n_heads)
        is_lowest = number + columns >= n_heads
        axes.tick_params(labelbottom=is_lowest, labelleft=number % columns == 0)
        axes.tick_params(axis="x", labelrotation=rotation)
    figure.supxlabel(key.name, fontsize=style.MEDIUM)
    figure.supylabel(query.name, fontsize=style.MEDIUM)
    _share_bar(figure, panels, label_in=rows * (height + 0.2))
    return figure


@dataclass(frozen=True)
class _Side:
    """One axis of a pattern: `n` positions with names, or of so many seconds (1 counts them)."""

    name: str
    n: int
    labels: list[str] | None
    position_s: float

    @property
    def margin(self) -> float:
        """Inches that its names take."""
        return style.widest_in(self.labels) if self.labels else 0.2

    @property
    def edges(self) -> tuple[float, float]:
        """Where it begins and ends in its own unit."""
        if self.labels:
            return -0.5, self.n - 0.5
        return 0.0, self.n * self.position_s

    def inches(self, *, alone: bool) -> float:
        if not self.labels:
            return _ALONE_IN if alone else _AMONG_IN
        return max(0.5, rows_in(self.n)) if alone else min(3.4, max(0.5, 0.14 * self.n))


def _side(
    what: str,
    n: int,
    labels: Sequence[str] | None,
    position_s: float | int | None,
    sound_s: float | int | None,
) -> _Side:
    """The axis of queries or of keys."""
    if labels is not None and len(labels) != n:
        raise InputError(f"{len(labels)} {what}_labels for {n} positions; pass one for each.")
    if not n:
        raise InputError(f"the pattern has no {what}; pass [query, key] with at least one of each.")
    for name, seconds in {"position_s": position_s, "sound_s": sound_s}.items():
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise InputError(f"{name} is {seconds:g}; pass seconds, over 0, or None.")
    if labels is not None:
        names = [style.short(label) for label in labels]
        return _Side("looks at" if what == "key" else "token", n, names, 1.0)
    verb = "looks at" if what == "key" else "from"
    if position_s is None:
        return _Side(f"{verb} position", n, None, 1.0)
    if sound_s is not None:
        n = min(n, max(1, math.ceil(round(sound_s / position_s, 6))))
    return _Side(f"{verb} time (s)", n, None, float(position_s))


def _draw_head(
    axes: Any, pattern: Tensor, query: _Side, key: _Side, height: float, width: float
) -> Any:
    left, right = key.edges
    top, bottom = query.edges
    return style.heatmap(
        axes,
        style.shrink(pattern[: query.n, : key.n], height, width),
        low=0,
        gamma=GAMMA,
        origin="upper",
        extent=(left, right, bottom, top),
    )


def _name_sides(
    axes: "matplotlib.axes.Axes", query: _Side, key: _Side, height: float, width: float
) -> int:
    """Names along both; gives how far those of the keys are turned."""
    style.style_ticks(axes)
    if query.labels:
        name_y(axes, query.labels, height)
    return name_x(axes, key.labels, width) if key.labels else 0


def _columns(n: int) -> int:
    """Columns of a grid: about square, and full where that is possible."""
    least = math.ceil(math.sqrt(n))
    return next((columns for columns in (least, least + 1) if n % columns == 0), least)


def _share_bar(figure: "matplotlib.figure.Figure", panels: Sequence[Any], label_in: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm

    shares = ScalarMappable(PowerNorm(GAMMA, 0, 1), style.color_map())
    bar = style.color_bar(
        figure, shares, list(panels), "share of the head's largest", label_in=label_in
    )
    bar.set_ticks([0, 0.05, 0.2, 0.5, 1], labels=["0", "0.05", "0.2", "0.5", "1"])


@style.styled
def plot_entropy(
    entropies: Float[Tensor, "layer head"] | Mapping[str, Float[Tensor, "layer head"]],
    *,
    label: str = "entropy of attention (nats)",
    title: str = "",
) -> "matplotlib.figure.Figure":
    """A number of every head over its index, layer by layer, with each layer's mean as a bar.

    Args:
        entropies: A table, or several by name, below each other: `{"encoder": ...,
            "decoder": ..., "cross-attention": ...}`. NaN is left out.
        label: What the numbers are, with their unit.
    """
    tables = named_tables(entropies, "entropies")
    most = max(table.numel() for table in tables.values())
    figure = style.new_figure(
        min(11.0, max(4.8, 1.4 + 0.24 * most)), 0.7 + 1.75 * len(tables), title
    )
    panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for number, (axes, (name, table)) in enumerate(zip(panels, tables.items(), strict=True)):
        n_layers, n_heads = table.shape
        values = table.detach().double().cpu()
        line_style = style.line_style(number)
        size = 4 if table.numel() <= 64 else 2
        axes.plot(range(table.numel()), values.flatten().tolist(), markersize=size, **line_style)
        for layer, mean in enumerate(values.nanmean(dim=1).tolist()):
            edges = (layer * n_heads - 0.5, (layer + 1) * n_heads - 0.5)
            axes.hlines(mean, *edges, color=style.FAINT, linewidth=3, alpha=0.6, zorder=1)
            if layer:
                axes.axvline(edges[0], color=style.GREY, linewidth=0.8, zorder=0)
            if layer % (1 + n_layers // 16) == 0:
                axes.text(
                    sum(edges) / 2, 1.01, f"layer {layer}" if n_layers <= 8 else str(layer),
                    transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                    fontsize=style.SMALL, color=style.INK,
                )  # fmt: skip
        axes.set_xlim(-0.5, table.numel() - 0.5)
        step = 1 + table.numel() // 32
        axes.set_xticks(range(0, table.numel(), step))
        open_frame(axes, grid="y")
        axes.set_ylabel(style.plain(name))
        axes.margins(y=0.12)
    panels[-1].set_xlabel("head, counted through all layers (bars: mean of the layer)")
    figure.supylabel(style.plain(label), fontsize=style.MEDIUM)
    return figure
