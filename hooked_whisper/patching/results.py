"""What a sweep found: a table of numbers with named axes, which may not be finished yet."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.patching.tables import EffectTable

if TYPE_CHECKING:
    import matplotlib.figure


@dataclass(eq=False, repr=False)
class SweepResult(EffectTable):
    """The metric with each patch. NaN where a sweep was stopped, or where there is no hook.

    `axes` names the four axes of `values` in order, and gives their labels:

        pair     pairs of a clean and a corrupted run, 0, 1, ...
        site     hook names without the layer: "decoder.hook_resid_pre"
        layer    blocks; -1 for hooks outside of the blocks
        head, pos, window_s or neuron: the parts that were patched one by one;
                 part, with the one label "all", where they were not

    Args:
        values: The metric of each patched run.
        axes: See above.
        clean: The metric of each pair's clean run.
        corrupted: The metric of each pair's corrupted run; NaN where the
            activations put in come from no run.
        direction: `"denoising"`: clean activations were put into the corrupted
            run; `"noising"`: corrupted ones into the clean run.
        metric: The metric's name.
        names: The hook of each site and layer; None where there is none.
        conditions: What it was measured with: names, and marks to compare by.
        held: What an unfinished estimate goes on from.
    """

    values: Float[Tensor, "pair site layer part"]
    names: list[list[str | None]]

    _kind: ClassVar[str] = "sweep"

    @property
    def part_axis(self) -> str:
        """The name of the last axis."""
        return list(self.axes)[-1]

    @property
    def n_cells(self) -> int:
        """Patched runs that the sweep is made of."""
        n_hooks = sum(name is not None for row in self.names for name in row)
        return n_hooks * self.values.shape[0] * self.values.shape[3]

    def _place(self, *place: int) -> dict[str, Any]:
        site, layer, part = place
        labels = list(self.axes.values())
        label = labels[3][part]
        found = {
            "name": self.names[site][layer],
            "stack": labels[1][site].split(".")[0],
            "site": labels[1][site],
            "layer": labels[2][layer],
        }
        if self.part_axis == "window_s":
            return {**found, "start_s": label[0], "end_s": label[1]}
        return {**found, self.part_axis: label}

    def about(self) -> dict[str, Any]:
        return {"names": self.names, **super().about()}

    def plot(self, effect: bool = True, title: str = "") -> "matplotlib.figure.Figure":
        """A heatmap for each site: layers upwards, parts to the right, mean over pairs.

        Args:
            effect: Draw the effect, 0 to 1; False draws the metric.
            title: Drawn above.
        """
        from hooked_whisper.figures import plot_sweep

        return plot_sweep(
            self.mean(effect),
            sites=self.axes["site"],
            layers=self.axes["layer"],
            parts=self.axes[self.part_axis],
            part_axis=self.part_axis,
            label=f"effect on {self.metric}" if effect else self.metric,
            title=title or f"{self.direction}, {len(self.values)} pair(s)",
        )
