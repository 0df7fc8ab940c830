"""Massive activations as a picture: where they are, how long, which dimensions, who writes them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import name_y, open_frame, time_axis

if TYPE_CHECKING:
    import matplotlib.figure

_MOST_WRITERS, _MOST_DIMENSIONS = 8, 3


@style.styled
def plot_massive_activations(
    norm_ratio: Float[Tensor, " pos"],
    energy: Float[Tensor, " pos"],
    counts: Float[Tensor, " bin"],
    edges: Float[Tensor, " edge"],
    dimensions: Float[Tensor, " d_model"],
    writers: Mapping[str, float],
    *,
    times: float | int = 3.0,
    position_s: float = 0.02,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Lengths of one recording's vectors over its loudness; all lengths; dimensions; writers.

    Args:
        norm_ratio: Length of the vector at each position of one recording, over the median.
        energy: How loud each position is, in log-mel.
        counts: Positions of all recordings by the length of their vector.
        edges: Of the bins, over the median.
        dimensions: Mean size of each dimension at the massive positions.
        writers: What share of the massive vectors each component wrote; may be empty.
        times: Over so many medians a vector is massive.
        position_s: Seconds of a position.
    """
    if len(norm_ratio) != len(energy) or len(edges) != len(counts) + 1 or not len(norm_ratio):
        raise InputError(
            f"{len(norm_ratio)} lengths, {len(energy)} energies, {len(counts)} bins and "
            f"{len(edges)} edges do not fit; pass one energy for each length, one edge more."
        )
    figure = style.new_figure(9.0, 4.6, title)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    above, below = parts
    over_time = above.subplots()
    end_s = len(norm_ratio) * position_s
    seconds = [(number + 0.5) * position_s for number in range(len(norm_ratio))]
    over_time.plot(seconds, norm_ratio.tolist(), color=style.ACCENT, linewidth=1.2)
    over_time.axhline(float(times), color=style.INK, linewidth=0.7, linestyle="--")
    over_time.set_yscale("log")
    over_time.set_ylabel("length, of the median")
    time_axis(over_time, end_s)
    loud = over_time.twinx()
    loud.fill_between(seconds, energy.tolist(), float(energy.min()), color=style.GREY, linewidth=0)
    loud.set_ylabel("log-mel energy (grey)")
    loud.set_zorder(over_time.get_zorder() - 1)
    over_time.patch.set_visible(False)

    by_length, by_dimension, by_writer = below.subplots(1, 3)
    by_length.stairs(counts.tolist(), edges.tolist(), color=style.ACCENT, linewidth=1.4)
    by_length.axvline(float(times), color=style.INK, linewidth=0.7, linestyle="--")
    by_length.set_xscale("log")
    by_length.set_yscale("symlog", linthresh=1)
    by_length.set_ylim(bottom=0)
    by_length.set_xlabel("length, of the median")
    by_length.set_title("all positions")
    values = dimensions.detach().float().cpu()
    by_dimension.plot(values.tolist(), color=style.ACCENT, linewidth=0.9)
    for place in values.topk(min(_MOST_DIMENSIONS, len(values))).indices.tolist():
        by_dimension.annotate(
            str(place), (place, float(values[place])), fontsize=style.SMALL, ha="center"
        )
    by_dimension.set_ylim(0, 1.12 * float(values.max().clamp_min(1e-6)))
    by_dimension.set_xlabel("dimension")
    by_dimension.set_title("mean size where massive")
    ordered = sorted(writers.items(), key=lambda item: -abs(item[1]))[:_MOST_WRITERS][::-1]
    shares = torch.tensor([share for _, share in ordered])
    colors = [style.FOR if share >= 0 else style.AGAINST for share in shares]
    by_writer.barh(range(len(ordered)), shares.tolist(), color=colors, height=0.7)
    name_y(by_writer, [name for name, _ in ordered], 2.0)
    by_writer.axvline(0, color=style.INK, linewidth=0.6)
    by_writer.set_title("who wrote it (share)")
    for axes in (by_length, by_dimension, by_writer):
        open_frame(axes)
    return figure
