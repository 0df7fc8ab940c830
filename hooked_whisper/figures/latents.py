"""Latents of sparse autoencoders over the time of a recording."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures.statistics import COLORS

if TYPE_CHECKING:
    import matplotlib.figure


def plot_latents(
    latents: Float[Tensor, "pos latent"],
    labels: Sequence[str],
    *,
    words: Sequence[tuple[str, float, float]] = (),
    position_s: float = 0.02,
    peaks: Float[Tensor, " latent"] | None = None,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Chosen latents over time: a row for each, seconds to the right, words above.

    Args:
        latents: Activations of the chosen latents at each position, of one recording.
        labels: What to call each latent.
        words: Words with start and end, in seconds.
        position_s: Seconds of a position: 0.02 in the encoder.
        peaks: What each latent is drawn as a share of: its peak over many
            recordings. None draws activations as they are.
        title: Drawn above.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: Labels that are not one for each latent, or no positions.
    """
    from matplotlib.figure import Figure

    n_pos, n_latents = latents.shape
    if len(labels) != n_latents or n_pos == 0:
        raise InputError(
            f"{len(labels)} labels for {n_latents} latents over {n_pos} positions; give one label "
            "for each latent, and at least one position."
        )
    values = latents.detach().float().cpu().T
    if peaks is not None:
        values = values / peaks.float().cpu()[:, None].clamp_min(1e-12)
    end_s = n_pos * position_s
    figure = Figure(
        figsize=(2.2 + min(10.0, 2.2 * end_s), 1.5 + 0.27 * n_latents), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(
        values.numpy(),
        aspect="auto",
        interpolation="nearest",
        cmap=COLORS,
        vmin=0,
        vmax=None if peaks is None else 1,
        extent=(0, end_s, n_latents - 0.5, -0.5),
    )
    axes.set_yticks(range(n_latents), labels)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("latent")
    figure.colorbar(image, label="activation" if peaks is None else "share of the latent's peak")
    _write_words(axes, words)
    if title:
        axes.set_title(title, pad=22 if words else 6)
    return figure


def _write_words(axes: Any, words: Sequence[tuple[str, float, float]]) -> None:
    for word, start_s, end_s in words:
        for at in (start_s, end_s):
            axes.axvline(at, color="white", linewidth=0.8, linestyle=":")
        axes.annotate(
            word,
            ((start_s + end_s) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
        )
