"""Cross-attention as text against time, under the sound that it reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND
from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

COLORS = "magma"
"""Dark to light without a break, so that it reads in greyscale and for the colour-blind."""


def plot_cross_attention(
    mel: Float[Tensor, "mel frame"],
    pattern: Float[Tensor, "query key"],
    labels: Sequence[str],
    *,
    sound_s: float | None = None,
    spans_s: Sequence[tuple[float, float, str]] = (),
    title: str = "",
) -> "matplotlib.figure.Figure":
    """The mel spectrogram, and below it in step where each token looks.

    Args:
        mel: One recording's log-mel.
        pattern: Attention of one head, or a mean over heads, to encoder positions.
        labels: A label for each query, for instance the token that it predicts.
        sound_s: Seconds that hold sound; what comes after is left out. None shows all.
        spans_s: Start, end and name of what was spoken, in seconds, drawn on the mel.
        title: Drawn above.

    Returns:
        A matplotlib figure; `figure.savefig("attention.png")` writes it.

    Raises:
        InputError: Labels that do not match the queries.
    """
    from matplotlib.figure import Figure

    if len(labels) != len(pattern):
        raise InputError(f"{len(labels)} labels for {len(pattern)} queries; pass one for each.")
    window_s = mel.shape[-1] / FRAMES_PER_SECOND
    end_s = min(sound_s or window_s, window_s)
    n_frames = max(FRAMES_PER_POSITION, round(end_s * FRAMES_PER_SECOND))
    n_keys = n_frames // FRAMES_PER_POSITION

    figure = Figure(figsize=(9, 3.2 + 0.28 * len(labels)), layout="constrained", dpi=130)
    above, below = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 0.6 + 0.28 * len(labels)]}
    )
    above.imshow(
        mel[:, :n_frames].float().numpy(force=True),
        origin="lower",
        aspect="auto",
        cmap=COLORS,
        extent=(0, end_s, 0, len(mel)),
    )
    above.set_ylabel("mel band")
    _mark_spans(above, spans_s, len(mel))
    image = below.imshow(
        pattern[:, :n_keys].float().numpy(force=True),
        aspect="auto",
        interpolation="nearest",
        cmap=COLORS,
        extent=(0, end_s, len(labels) - 0.5, -0.5),
    )
    below.set_yticks(range(len(labels)), labels)
    below.set_ylabel("token to come")
    below.set_xlabel("time (s)")
    figure.colorbar(image, ax=below, label="attention", pad=0.01)
    if title:
        figure.suptitle(title)
    return figure


def _mark_spans(
    axes: "matplotlib.axes.Axes", spans_s: Sequence[tuple[float, float, str]], top: int
) -> None:
    for start_s, end_s, name in spans_s:
        for edge in (start_s, end_s):
            axes.axvline(edge, color="white", linewidth=0.8, linestyle=":")
        axes.text((start_s + end_s) / 2, top * 0.92, name, color="white", ha="center", va="top")
