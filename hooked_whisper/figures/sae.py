"""Sparse autoencoders as pictures: latents over time, how often they are active, a training."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import (
    Word,
    mark_words,
    name_y,
    open_frame,
    rows_in,
    time_axis,
    time_width,
)

if TYPE_CHECKING:
    import matplotlib.figure

PANELS = {
    "loss": "loss",
    "fvu": "fraction of variance unexplained",
    "l0": "latents active (L0)",
    "dead": "share of dead latents",
}
"""What is drawn of a training's log, and what it is called."""
_LOGARITHMIC = ("loss", "fvu")


@style.styled
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


@style.styled
def plot_density(
    densities: Float[Tensor, " latent"] | Mapping[str, Float[Tensor, " latent"]],
    *,
    n_bins: int = 40,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """How many latents are active how often, on a logarithmic axis; the dead ones as a number.

    Args:
        densities: Of each latent, the share of vectors on which it is active; several by name.
        n_bins: Steps of the axis, from the rarest latent to 1.
    """
    named = {"": densities} if isinstance(densities, Tensor) else dict(densities)
    shares = {name: value.detach().double().cpu() for name, value in named.items()}
    _check_densities(shares)
    alive = {name: value[value > 0].log10() for name, value in shares.items()}
    lowest = min((float(value.min()) for value in alive.values() if len(value)), default=-1.0)
    edges = torch.linspace(min(-1.0, math.floor(lowest)), 0, n_bins + 1, dtype=torch.float64)

    figure = style.new_figure(6.0, 3.0 + 0.16 * len(named), title)
    axes = figure.subplots()
    for number, (name, value) in enumerate(shares.items()):
        counts = torch.histogram(alive[name].clamp(min=float(edges[0]), max=0.0), edges).hist
        n_dead = int((value == 0).sum())
        about = f"{n_dead} of {len(value)} dead, median {_percent(float(value.median()))}"
        label = style.plain(f"{name}: {about}" if name else about)
        line_style = style.line_style(number, marker=False)
        axes.stairs(counts.numpy(), (10**edges).numpy(), label=label, linewidth=1.4, **line_style)
    axes.set_xscale("log")
    axes.set_xlim(float(10 ** edges[0]), 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("density: share of vectors on which the latent is active")
    axes.set_ylabel("latents")
    open_frame(axes, grid="y")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


@style.styled
def plot_training(
    logs: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Loss, unexplained variance, L0 and dead latents over a training, a line each autoencoder.

    Args:
        logs: Lines of a training's log, as `on_log` gets them and `log.csv` holds them
            (`pandas.read_csv(path).to_dict("records")`); several by name. Lines of several
            autoencoders in one log are told apart by `"sae"`.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    named = _by_name(logs)
    keys = [key for key in PANELS if _finite(named, key)]
    figure = style.new_figure(0.6 + 2.7 * len(keys), 2.5 + 0.16 * (len(named) > 1), title)
    last = max(line["n_vectors"] for log in named.values() for line in log)
    for key, axes in zip(keys, figure.subplots(1, len(keys), squeeze=False)[0], strict=True):
        for number, (name, log) in enumerate(named.items()):
            points = [(line["n_vectors"], _number(line.get(key))) for line in log]
            line_style = style.line_style(number) | {"markevery": max(1, len(points) // 6)}
            axes.plot(*zip(*points, strict=True), label=style.plain(name), **line_style)
        least = min(_finite(named, key))
        if key in _LOGARITHMIC and least > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(bottom=min(0.0, least))
        axes.set_xlim(left=0, right=1.04 * max(1, last))
        axes.set_title(PANELS[key])
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("vectors seen")
        open_frame(axes, grid="y")
    if len(named) > 1:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(named)))
    return figure


def _by_name(
    logs: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, list[Mapping[str, Any]]]:
    """Each autoencoder's lines, checked."""
    groups = {"": logs} if isinstance(logs, Sequence) else dict(logs)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, log in groups.items():
        for line in log:
            missing = {"n_vectors"} - set(line) if isinstance(line, Mapping) else {"n_vectors"}
            if missing or not any(key in line for key in PANELS):
                raise InputError(
                    f"{str(line)[:80]!r} is no line of a training's log: it needs 'n_vectors' and "
                    f"one of {sorted(PANELS)}. Pass the dicts that on_log gets, or "
                    'pandas.read_csv("log.csv").to_dict("records").'
                )
            own = " ".join(part for part in (name, str(line.get("sae", ""))) if part)
            found.setdefault(own, []).append(line)
    if not any(_finite(found, key) for key in PANELS):
        raise InputError("nothing to draw: the log has no line with a number; pass at least one.")
    return found


def _finite(named: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> list[float]:
    values = [_number(line.get(key)) for log in named.values() for line in log]
    return [value for value in values if math.isfinite(value)]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _check_densities(shares: Mapping[str, Tensor]) -> None:
    if not shares:
        raise InputError("nothing to draw: pass at least one autoencoder's densities.")
    for name, value in shares.items():
        what = f"the densities {name!r}" if name else "the densities"
        if value.ndim != 1 or not len(value):
            raise InputError(f"{what} are {tuple(value.shape)}; pass one for each latent.")
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise InputError(
                f"{what} go from {float(value.min()):g} to {float(value.max()):g}; they are shares "
                "in 0 to 1, such as evaluate_sae(...).reconstruction.density."
            )


@style.styled
def plot_learning_curve(
    points: Sequence[Mapping[str, Any]], *, title: str = ""
) -> "matplotlib.figure.Figure":
    """What autoencoders leave unexplained, over the minutes of sound that they learned from.

    Args:
        points: `minutes`, `fvu` and `held_out_fvu` of each; `held_out_fvu_without_massive` is
            drawn where it is another number.
    """
    from matplotlib.ticker import NullLocator

    if not points or any({"minutes", "fvu", "held_out_fvu"} - set(point) for point in points):
        raise InputError(
            "nothing to draw: pass rows with minutes, fvu and held_out_fvu, such as "
            "learning_curve(...).points."
        )
    figure = style.new_figure(5.0, 3.2, title)
    axes = figure.subplots()
    minutes = [float(point["minutes"]) for point in points]
    lines = {"trained on": "fvu", "held out": "held_out_fvu"}
    lines["held out, without massive activations"] = "held_out_fvu_without_massive"
    drawn: list[list[float]] = []
    for number, (label, key) in enumerate(lines.items()):
        values = [_number(point.get(key)) for point in points]
        if values in drawn or not any(map(math.isfinite, values)):
            continue
        drawn.append(values)
        axes.plot(minutes, values, label=label, **style.line_style(number))
    axes.set_xscale("log")
    axes.set_xticks(minutes, [f"{each:.3g}" for each in minutes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes of sound")
    axes.set_ylabel("fraction of variance unexplained")
    open_frame(axes, grid="y")
    axes.legend()
    return figure
