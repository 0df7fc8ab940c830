"""Lenses and attributions as pictures: what each layer would say, and what made it say so."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

PROBABILITY = "cividis"
FOR, AGAINST = "#00528c", "#b3521b"
"""Adds to a logit, and takes from it: apart in greyscale and for the colour-blind."""
LINES = ("#00528c", "#c8641e", "#1b8a6b", "#7a3f9d", "#8c8c00", "#444444", "#c2185b", "#5aa9e6")


def plot_logit_lens(
    probability: Float[Tensor, "site pos"],
    texts: Sequence[Sequence[str]],
    sites: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """The likeliest token at each site and position, written on its probability as a colour.

    Args:
        probability: Of the likeliest token.
        texts: The likeliest token at each site and position.
        sites: Names of the sites, the first one drawn lowest.
        columns: Names of the positions.
        title: Drawn above.

    Returns:
        A matplotlib figure; `figure.savefig("lens.png")` writes it.

    Raises:
        InputError: Names or texts that do not match the table.
    """
    from matplotlib.figure import Figure

    sizes = {len(row) for row in texts}
    if tuple(probability.shape) != (len(sites), len(columns)) or (
        len(texts) != len(sites) or sizes != {len(columns)}
    ):
        raise InputError(
            f"{len(sites)} sites, {len(columns)} columns and {len(texts)} rows of "
            f"{sorted(sizes)} texts are named; the table is {tuple(probability.shape)}."
        )
    shown = [[short(text) for text in row] for row in texts]
    longest = max(len(text) for row in shown for text in row)
    width = max(0.55, 0.085 * longest + 0.1)
    figure = Figure(
        figsize=(2.2 + width * len(columns), 1.5 + 0.27 * len(sites)),
        layout="constrained",
        dpi=130,
    )
    axes = figure.subplots()
    values = probability.float().numpy(force=True)
    image = axes.imshow(values, origin="lower", aspect="auto", cmap=PROBABILITY, vmin=0, vmax=1)
    for row, line in enumerate(shown):
        for column, text in enumerate(line):
            ink = "black" if values[row, column] > 0.5 else "white"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    names = ["\n".join(short(part) for part in name.split("\n")) for name in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=8)
    axes.set_yticks(range(len(sites)), sites, fontsize=8)
    axes.set_xlabel("decoder position, and the token looked for")
    axes.set_ylabel("residual stream")
    figure.colorbar(image, ax=axes, label="probability of the likeliest token", pad=0.01)
    _entitle(figure, title)
    return figure


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
        title: Drawn above.

    Raises:
        InputError: Labels that do not match, or no bar to draw.
    """
    from matplotlib.figure import Figure

    if len(labels) != len(values) or n < 1:
        raise InputError(f"{len(labels)} labels for {len(values)} components, n = {n}.")
    chosen = sorted(values.abs().topk(min(n, len(values))).indices.tolist())
    left_out = [each for each in range(len(values)) if each not in set(chosen)]
    bars = [(labels[each], float(values[each])) for each in chosen]
    if left_out:
        bars.append((f"{len(left_out)} others", float(values[left_out].sum())))
    figure = Figure(figsize=(6.4, 1.6 + 0.24 * len(bars)), layout="constrained", dpi=130)
    axes = figure.subplots()
    places = range(len(bars), 0, -1)
    heights = [value for _, value in bars]
    colors = [FOR if value >= 0 else AGAINST for value in heights]
    axes.barh(places, heights, color=colors, height=0.75)
    total = float(values.sum())
    axes.barh([0], [total], color="#666666", height=0.75)
    axes.set_yticks([*places, 0], [*(name for name, _ in bars), "sum"], fontsize=8)
    reach = max(abs(value) for value in [*heights, total]) or 1.0
    for place, value in zip([*places, 0], [*heights, total], strict=True):
        side = "left" if value >= 0 else "right"
        gap = math.copysign(0.012 * reach, value)
        axes.text(value + gap, place, f"{value:+.2f}", va="center", ha=side, fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axhline(0.5, color="black", linewidth=0.5)
    axes.margins(x=0.12, y=0.01)
    axes.set_xlabel(f"added to the {label}", fontsize=9)
    _open_frame(axes)
    _entitle(figure, title)
    return figure


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
        title: Drawn above.

    Raises:
        InputError: Names that do not match.
    """
    from matplotlib.figure import Figure

    if len(layers) != len(probability) or (texts is not None and len(texts) != len(layers)):
        raise InputError(
            f"{len(layers)} layers and {len(texts or layers)} texts for {len(probability)} numbers."
        )
    shown = [short(text, 60) or "(nothing)" for text in texts or []]
    room = 0.4 + 0.085 * max(map(len, shown), default=0)
    figure = Figure(figsize=(3.6 + room, 1.4 + 0.34 * len(layers)), layout="constrained", dpi=130)
    axes = figure.subplots()
    values = probability.float().tolist()
    axes.barh(range(len(layers)), values, color=FOR, height=0.7)
    axes.set_xlim(0, 1)
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    for row, text in enumerate(shown):
        axes.annotate(
            text, (1, row), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_ylabel("encoder layers run")
    axes.set_xlabel(f"{label},\nper token")
    _open_frame(axes)
    _entitle(figure, title)
    return figure


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
        title: Drawn above.

    Raises:
        InputError: Names that do not match the table.
    """
    from matplotlib.figure import Figure

    if tuple(probability.shape) != (len(places), len(tokens)):
        raise InputError(
            f"{len(places)} places and {len(tokens)} tokens are named; the table is "
            f"{tuple(probability.shape)}."
        )
    figure = Figure(figsize=(2.8 + 0.42 * len(places), 3.4), layout="constrained", dpi=130)
    axes = figure.subplots()
    markers = "osD^vP*X"
    for each, (token, values) in enumerate(zip(tokens, probability.T.tolist(), strict=True)):
        axes.plot(
            range(len(places)),
            values,
            color=LINES[each % len(LINES)],
            marker=markers[each % len(markers)],
            markersize=4,
            linestyle="-" if each < len(LINES) else "--",
            label=short(token),
        )
    is_long = max(map(len, places)) > 3
    turned: dict[str, Any] = {"rotation": 60, "ha": "right"} if is_long else {}
    axes.set_xticks(range(len(places)), places, fontsize=8, **turned)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(x_label)
    axes.set_ylabel("probability")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    _open_frame(axes)
    _entitle(figure, title)
    return figure


def plot_sources(
    values: Float[Tensor, "pos window"],
    windows_s: Sequence[tuple[float, float]],
    labels: Sequence[str],
    *,
    label: str,
    spans_s: Sequence[tuple[float, float, str]] = (),
    title: str = "",
) -> "matplotlib.figure.Figure":
    """What each window of the recording adds to each token, with time along the picture.

    Args:
        values: What each window adds at each position.
        windows_s: Starts and ends, in seconds.
        labels: The tokens.
        label: What the numbers are.
        spans_s: Start, end and name of what was spoken, in seconds.
        title: Drawn above.

    Raises:
        InputError: Names that do not match the table.
    """
    from matplotlib.figure import Figure

    if tuple(values.shape) != (len(labels), len(windows_s)):
        raise InputError(
            f"{len(labels)} labels and {len(windows_s)} windows are named; the table is "
            f"{tuple(values.shape)}."
        )
    figure = Figure(figsize=(8, 1.7 + 0.36 * len(labels)), layout="constrained", dpi=130)
    axes = figure.subplots()
    reach = float(values.abs().max()) or 1.0
    image: Any = None
    for place, (start_s, end_s) in enumerate(windows_s):
        image = axes.pcolormesh(
            [start_s, end_s],
            [edge - 0.5 for edge in range(len(labels) + 1)],
            values[:, place : place + 1].float().numpy(force=True),
            cmap="PuOr",
            vmin=-reach,
            vmax=reach,
        )
    for start_s, end_s, name in spans_s:
        for edge_s in (start_s, end_s):
            axes.axvline(edge_s, color="black", linewidth=0.8, linestyle=":")
        axes.text((start_s + end_s) / 2, -0.58, name, ha="center", va="bottom", fontsize=9)
    axes.set_xlim(min(start for start, _ in windows_s), max(end for _, end in windows_s))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), [short(each) for each in labels])
    axes.set_xlabel("time (s)")
    axes.set_ylabel("token to come")
    figure.colorbar(image, ax=axes, label=label, pad=0.01)
    _entitle(figure, title)
    return figure


def short(text: str, n: int = 16) -> str:
    """A text on one line, of at most `n` signs, its spaces at the ends kept out.

    >>> short(" three"), short("a long transcript", 8)
    ('three', 'a long …')
    """
    line = " ".join(text.split()) or text.replace("\\n", "↵").replace(" ", "␣")
    return line if len(line) <= n else line[: n - 1] + "…"


def _open_frame(axes: "matplotlib.axes.Axes") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _entitle(figure: "matplotlib.figure.Figure", title: str) -> None:
    if title:
        figure.suptitle(title)
