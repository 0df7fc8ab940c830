"""What path patching found: the metric with each sender's path patched."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.patching.paths import Head, Receiver, Sender, part_from
from hooked_whisper.patching.tables import EffectTable

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas


@dataclass(eq=False, repr=False)
class PathEffects(EffectTable):
    """The metric with each sender's path patched. NaN where it was stopped before.

    `axes` names the two axes of `values`, and gives their labels:

        pair     pairs of a clean and a corrupted run, 0, 1, ...
        sender   "encoder.0.attn.3", "decoder.2.mlp", ...

    Args:
        values: The metric of each patched run.
        axes: See above.
        clean: The metric of each pair's clean run.
        corrupted: The metric of each pair's corrupted run.
        direction: `"denoising"`: the sender's output of the clean run went into the
            corrupted run; `"noising"`: the other way round.
        metric: The metric's name.
        senders: Whose output came from the other run.
        receivers: Where it went.
        conditions: What it was measured with: names, and marks to compare by.
        held: Nothing.
    """

    values: Float[Tensor, "pair sender"]
    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]

    _kind: ClassVar[str] = "paths"

    def _place(self, *place: int) -> dict[str, Any]:
        sender = self.senders[place[0]]
        return {
            "sender": str(sender),
            "stack": sender.stack,
            "layer": sender.layer,
            "kind": sender.kind if isinstance(sender, Head) else "mlp",
            "head": sender.head if isinstance(sender, Head) else None,
        }

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each path that is done; an MLP has no head."""
        table = super().to_dataframe()
        return table.astype({"head": "Int64"}) if len(table) else table

    def about(self) -> dict[str, Any]:
        receivers = [str(each) for each in self.receivers]
        return {"senders": self.axes["sender"], "receivers": receivers, **super().about()}

    @classmethod
    def _from_about(cls, about: dict[str, Any]) -> dict[str, Any]:
        fields = super()._from_about(about)
        for what in ("senders", "receivers"):
            fields[what] = tuple(part_from(text) for text in about[what])
        return fields

    def plot(self, effect: bool = True, title: str = "") -> "matplotlib.figure.Figure":
        """A heatmap for each kind of sender: layers upwards, heads to the right, MLPs beside them.

        Args:
            effect: Draw the effect, 0 to 1; False draws the metric.
            title: Drawn above.
        """
        from hooked_whisper.figures import plot_sweep

        places = [self._place(i) for i in range(len(self.senders))]
        panels = [f"{each['stack']}.{_panel(each['kind'])}" for each in places]
        sites = list(dict.fromkeys(panels))
        layers = range(max(each["layer"] for each in places) + 1)
        heads = sorted({each["head"] for each in places if each["head"] is not None})
        parts = [*heads, *(["mlp"] if any(each["head"] is None for each in places) else [])]
        table = torch.full((len(sites), len(layers), len(parts)), torch.nan)
        for panel, each, value in zip(panels, places, self.mean(effect), strict=True):
            part = parts.index("mlp" if each["head"] is None else each["head"])
            table[sites.index(panel), each["layer"], part] = value
        return plot_sweep(
            table,
            sites=sites,
            layers=layers,
            parts=parts,
            part_axis="head",
            label=f"effect on {self.metric}" if effect else self.metric,
            title=title or f"paths to {', '.join(map(str, self.receivers))} ({self.direction})",
        )


def _panel(kind: str) -> str:
    return "cross_attn" if kind == "cross_attn" else "attn, mlp"
