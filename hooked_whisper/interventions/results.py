"""What a sweep found: a table of numbers with named axes, which may not be finished yet."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hooked_whisper.errors import InterventionError

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

_FORMAT = "hooked_whisper.sweep/1"


@dataclass(eq=False)
class SweepResult:
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
        names: The hook of each site and layer; None where there is none.
        clean: The metric of each pair's clean run.
        corrupted: The metric of each pair's corrupted run; NaN where the
            activations put in come from no run.
        direction: `"denoising"`: clean activations were put into the corrupted
            run; `"noising"`: corrupted ones into the clean run.
        metric: The metric's name.
    """

    values: Float[Tensor, "pair site layer part"]
    axes: dict[str, list[Any]]
    names: list[list[str | None]]
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    direction: str
    metric: str
    conditions: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(labels)} {name}" for name, labels in self.axes.items())
        done = f"{self.n_done} of {self.n_cells} done"
        return f"SweepResult({self.metric}, {self.direction}: {sizes}; {done})"

    @property
    def part_axis(self) -> str:
        """The name of the last axis."""
        return list(self.axes)[-1]

    @property
    def n_cells(self) -> int:
        """Patched runs that the sweep is made of."""
        n_hooks = sum(name is not None for row in self.names for name in row)
        return n_hooks * self.values.shape[0] * self.values.shape[3]

    @property
    def n_done(self) -> int:
        """Patched runs that are done."""
        return int((~self.values.isnan()).sum())

    @property
    def complete(self) -> bool:
        """Whether every patched run is done."""
        return self.n_done == self.n_cells

    def effect(self) -> Float[Tensor, "pair site layer part"]:
        """How far each patch takes its run to the other one: 0 not at all, 1 all the way.

        Raises:
            InterventionError: The activations put in come from no run, or
                the metric is the same in both.
        """
        base, source = self.clean, self.corrupted
        if self.direction == "denoising":
            base, source = source, base
        if bool(self.corrupted.isnan().all()):
            raise InterventionError(
                "what was put in comes from no run, so that there is nothing to compare with. "
                "Use result.values and result.clean."
            )
        span = source - base
        if bool((span == 0).any()):
            raise InterventionError(
                f"the metric is {float(base[span == 0][0])} in both runs of a pair; choose one "
                "that tells them apart."
            )
        return (self.values - base[:, None, None, None]) / span[:, None, None, None]

    def mean(self, effect: bool = False) -> Float[Tensor, "site layer part"]:
        """The mean over the pairs that are done, of the metric or of the effect."""
        return (self.effect() if effect else self.values).nanmean(dim=0)

    def interval(
        self,
        level: float | int = 0.95,
        *,
        effect: bool = False,
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> tuple[Float[Tensor, "site layer part"], Float[Tensor, "site layer part"]]:
        """Where the mean over pairs lies, by the bootstrap's percentiles.

        Args:
            level: Share of resampled means between the two bounds.
            effect: Of the effect instead of the metric.
            n_resamples: Times that the pairs are drawn again, with replacement.
            seed: Of the draws.

        Returns:
            The lower and the upper bound.

        Raises:
            InterventionError: Fewer than two pairs, a level that is no share, or a
                sweep that is not finished.

        Source: Efron 1979.
        """
        values = self.effect() if effect else self.values
        if len(values) < 2:
            raise InterventionError("an interval needs at least 2 pairs; this sweep has 1.")
        if not 0 < level < 1:
            raise InterventionError(f"level is {level}; it must lie between 0 and 1.")
        if not self.complete:
            raise InterventionError(
                f"{self.n_done} of {self.n_cells} patches are done; finish the sweep with "
                "resume=result."
            )
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randint(len(values), (n_resamples, len(values)), generator=generator)
        weights = torch.zeros(n_resamples, len(values))
        weights.scatter_add_(1, draws, torch.ones(draws.shape) / len(values))
        means = (weights @ values.flatten(1)).nan_to_num(nan=torch.inf)
        low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2]), dim=0)
        shape, exists = values.shape[1:], ~values[0].isnan()
        nan = torch.full(shape, torch.nan)
        return (
            torch.where(exists, low.view(shape), nan),
            torch.where(exists, high.view(shape), nan),
        )

    def best(self, n: int = 5) -> list[dict[str, Any]]:
        """The places with the greatest mean effect, greatest first."""
        effect = self.mean(effect=True)
        order = effect.flatten().nan_to_num(nan=-torch.inf).argsort(descending=True)[:n]
        found = torch.stack(torch.unravel_index(order, effect.shape), dim=1).tolist()
        return [{**self._place(*place), "effect": float(effect[tuple(place)])} for place in found]

    def _place(self, site: int, layer: int, part: int) -> dict[str, Any]:
        labels = list(self.axes.values())
        label = labels[3][part]
        place = {
            "name": self.names[site][layer],
            "stack": labels[1][site].split(".")[0],
            "site": labels[1][site],
            "layer": labels[2][layer],
        }
        if self.part_axis == "window_s":
            return {**place, "start_s": label[0], "end_s": label[1]}
        return {**place, self.part_axis: label}

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each patched run that is done."""
        import pandas

        base, source = self.clean, self.corrupted
        rows = []
        for index in (~self.values.isnan()).nonzero().tolist():
            pair = index[0]
            rows.append(
                {
                    "pair": self.axes["pair"][pair],
                    **self._place(*index[1:]),
                    "value": float(self.values[tuple(index)]),
                    "clean": float(base[pair]),
                    "corrupted": float(source[pair]),
                }
            )
        return pandas.DataFrame(rows)

    def plot(self, effect: bool = True, title: str = "") -> "matplotlib.figure.Figure":
        """A heatmap for each site: layers upwards, parts to the right, mean over pairs.

        Args:
            effect: Draw the effect, 0 to 1; False draws the metric.
            title: Drawn above.
        """
        from hooked_whisper.figures.sweep import plot_sweep

        return plot_sweep(
            self.mean(effect),
            sites=self.axes["site"],
            layers=self.axes["layer"],
            parts=self.axes[self.part_axis],
            part_axis=self.part_axis,
            label=f"effect on {self.metric}" if effect else self.metric,
            title=title or f"{self.direction}, {len(self.values)} pair(s)",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers, their axes and the baselines as safetensors.

        Raises:
            InterventionError: The file cannot be written.
        """
        header = {
            "format": _FORMAT,
            "axes": self.axes,
            "names": self.names,
            "direction": self.direction,
            "metric": self.metric,
            "conditions": self.conditions,
        }
        tensors = {"values": self.values, "clean": self.clean, "corrupted": self.corrupted}
        path = Path(path)
        aside = path.with_name(path.name + ".part")
        try:
            save_file(
                {name: each.contiguous() for name, each in tensors.items()},
                aside,
                metadata={"sweep": json.dumps(header)},
            )
            os.replace(aside, path)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise InterventionError(f"the result cannot be written to {path}: {error}.") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SweepResult":
        """Read what `save` wrote.

        Raises:
            InterventionError: No such file, or another kind of file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("sweep", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise InterventionError(f"{path} cannot be read as a sweep: {error}.") from error
        if header.pop("format", None) != _FORMAT:
            raise InterventionError(f"{path} is no sweep. Write one with result.save(path).")
        return cls(**tensors, **header)
