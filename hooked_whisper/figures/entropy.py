"""How widely each head of a model looks, in the order of the heads."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import open_frame

if TYPE_CHECKING:
    import matplotlib.figure


@style.drawn
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
        title: Drawn above.

    Returns:
        A matplotlib figure; `figure.savefig("entropy.png")` writes it.

    Raises:
        InputError: No table, or one that is not [layer, head].
    """
    tables = {"": entropies} if isinstance(entropies, Tensor) else dict(entropies)
    if not tables:
        raise InputError("nothing to draw: pass at least one table of entropies.")
    for name, table in tables.items():
        if table.ndim != 2 or not table.numel():
            raise InputError(
                f"the entropies {name!r} are {tuple(table.shape)}; pass [layer, head]."
            )
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
