"""What patching found: one number for each pair of runs and place, which may not be there yet."""

import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.intervals import bootstrap_interval
from hooked_whisper.display import box, facts, note, picture, table
from hooked_whisper.errors import InterventionError
from hooked_whisper.patching.partial_result import check_same
from hooked_whisper.patching.saved import HELD, load_result, save_result

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

_Table = TypeVar("_Table", bound="EffectTable")


@dataclass(eq=False)
class EffectTable(ABC):
    """The metric with each patch, and in both runs without one.

    Args:
        values: The metric of each patched run, pairs first; NaN where it was not done.
        axes: The names of the axes of `values` in order, with their labels.
        clean: The metric of each pair's clean run.
        corrupted: The metric of each pair's corrupted run; NaN where what is
            put in comes from no run.
        direction: `"denoising"`: clean activations were put into the corrupted
            run; `"noising"`: corrupted ones into the clean run.
        metric: The metric's name.
        conditions: What it was measured with: names, and marks to compare by.
        held: What an unfinished computation goes on from.
    """

    values: Float[Tensor, "pair *place"]
    axes: dict[str, list[Any]]
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    direction: str
    metric: str
    conditions: dict[str, Any] = field(default_factory=dict, kw_only=True)
    held: dict[str, Tensor] = field(default_factory=dict, kw_only=True, repr=False)

    _kind: ClassVar[str] = ""
    """What the table is called in its file."""

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(labels)} {name}" for name, labels in self.axes.items())
        done = f"{self.n_done} of {self.n_cells} done"
        return f"{type(self).__name__}({self.metric}, {self.direction}: {sizes}; {done})"

    def _repr_html_(self) -> str:
        """The heatmap, the places with the greatest effect, and both runs' own metric."""
        about = f"{self.metric}, {self.direction}, {self.n_done:,} of {self.n_cells:,} done"
        runs = facts(
            {
                "pairs": len(self.values),
                f"{self.metric}, clean run": float(self.clean.nanmean()),
                f"{self.metric}, corrupted run": float(self.corrupted.nanmean()),
            }
        )
        if not self.n_done:
            return box(type(self).__name__, about, note("Nothing is done yet."))
        try:
            best = [each for each in self.best() if each["effect"] == each["effect"]]
        except InterventionError:  # nothing to compare with
            best = []
        drawn = picture(self.plot(effect=bool(best)), f"heatmap: {about}")
        columns = [name for name in (best[0] if best else []) if name not in ("stack", "site")]
        rows = [[each[name] for name in columns] for each in best]
        places = [table(columns, rows)] if best else []
        return box(type(self).__name__, about, drawn, *places, runs)

    def set_baselines(self, pair: int, base: Any, source: Any) -> None:
        """Note down the metric of the run that a pair patches, and of the one that it puts in."""
        is_denoising = self.direction == "denoising"
        clean, corrupted = (source, base) if is_denoising else (base, source)
        self.clean[pair], self.corrupted[pair] = clean, corrupted

    @property
    def n_cells(self) -> int:
        """Patched runs that the table is made of."""
        return self.values.numel()

    @property
    def n_done(self) -> int:
        """Patched runs that are done."""
        return int((~self.values.isnan()).sum())

    @property
    def complete(self) -> bool:
        """Whether every patched run is done."""
        return self.n_done == self.n_cells

    def effect(self) -> Float[Tensor, "pair *place"]:
        """How far each patch takes its run to the other one: 0 not at all, 1 all the way.

        Raises:
            InterventionError: The activations put in come from no run, or
                the metric is the same in both.
        """
        if bool(self.corrupted.isnan().all()):
            raise InterventionError(
                "what was put in comes from no run, so that there is nothing to compare with. "
                "Use result.values and result.clean."
            )
        same = self.clean == self.corrupted
        if bool(same.any()):
            raise InterventionError(
                f"the metric is {float(self.clean[same][0])} in both runs of a pair; choose one "
                "that tells them apart."
            )
        return self._shares()

    def _shares(self) -> Tensor:
        """The effect, not finite where there is none."""
        base, source = self.clean, self.corrupted
        if self.direction == "denoising":
            base, source = source, base
        wide = (-1, *[1] * (self.values.ndim - 1))
        return (self.values - base.view(wide)) / (source - base).view(wide)

    def mean(self, effect: bool = False) -> Float[Tensor, "*place"]:
        """The mean over the pairs that are done, of the metric or of the effect."""
        return (self.effect() if effect else self.values).nanmean(dim=0)

    def interval(
        self,
        level: float | int = 0.95,
        *,
        effect: bool = False,
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> tuple[Float[Tensor, "*place"], Float[Tensor, "*place"]]:
        """Where the mean over pairs lies, by the bootstrap's percentiles.

        Args:
            level: Share of resampled means between the two bounds.
            effect: Of the effect instead of the metric.
            n_resamples: Times that the pairs are drawn again, with replacement.
            seed: Of the draws.

        Returns:
            The lower and the upper bound.

        Source: Efron 1979.
        """
        values = self.effect() if effect else self.values
        if len(values) < 2:
            raise InterventionError("an interval needs at least 2 pairs; this result has 1.")
        if not self.complete:
            raise InterventionError(
                f"{self.n_done} of {self.n_cells} patches are done; finish them with resume=result."
            )
        return bootstrap_interval(values, level, n_resamples, seed)

    def best(self, n: int = 5, *, intervals: bool = False) -> list[dict[str, Any]]:
        """The places with the greatest mean effect, greatest first.

        Args:
            n: How many.
            intervals: Add `low` and `high`, where the mean over pairs lies: `interval`'s bounds.
        """
        effect = self.mean(effect=True)
        tables = {"effect": effect}
        if intervals:
            tables |= dict(zip(("low", "high"), self.interval(effect=True), strict=True))
        return self._rows(effect.flatten().nan_to_num(nan=-torch.inf), n, tables)

    def places(self, n: int = 5, *, intervals: bool = False) -> list[dict[str, Any]]:
        """The places where the mean of the values, as `change`, is furthest from 0; see `best`."""
        change = self.mean()
        tables = {"change": change}
        if intervals:
            tables |= dict(zip(("low", "high"), self.interval(), strict=True))
        return self._rows(change.flatten().abs().nan_to_num(nan=-torch.inf), n, tables)

    def _rows(self, keys: Tensor, n: int, tables: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The places with the greatest keys, and what tables hold there."""
        order = keys.argsort(descending=True)[:n]
        shape = next(iter(tables.values())).shape
        found = torch.stack(torch.unravel_index(order, shape), dim=1).tolist()
        return [
            {
                **self._place(*place),
                **{name: float(each[tuple(place)]) for name, each in tables.items()},
            }
            for place in found
        ]

    @abstractmethod
    def _place(self, *place: int) -> dict[str, Any]:
        """What a place in the table stands for, by the names of the columns."""

    @abstractmethod
    def plot(self, effect: bool = True, title: str = "") -> "matplotlib.figure.Figure":
        """A heatmap of the mean over pairs, of the effect or of the metric."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each patched run that is done; the effect is NaN where there is none."""
        import pandas

        effect = self._shares()
        rows = []
        for index in (~self.values.isnan()).nonzero().tolist():
            pair = index[0]
            rows.append(
                {
                    "pair": self.axes["pair"][pair],
                    **self._place(*index[1:]),
                    "value": float(self.values[tuple(index)]),
                    "clean": float(self.clean[pair]),
                    "corrupted": float(self.corrupted[pair]),
                    "effect": float(effect[tuple(index)]),
                }
            )
        return pandas.DataFrame(rows)

    def go_on_from(self, earlier: Any) -> None:
        """Take over what an unfinished result of the same arguments has, if there is one."""
        if earlier is None:
            return
        if type(earlier) is not type(self):
            raise InterventionError(
                f"the result to resume is of type {type(earlier).__name__}; it must be "
                f"{type(self).__name__}. Leave out resume to begin anew."
            )
        theirs, ours = (json.loads(json.dumps(each.about())) for each in (earlier, self))
        more = theirs.pop("conditions"), ours.pop("conditions")
        check_same(theirs, ours)
        check_same(*more)
        for what in ("values", "clean", "corrupted"):
            setattr(self, what, getattr(earlier, what).clone())
        self.held = dict(earlier.held)

    def about(self) -> dict[str, Any]:
        """All but the numbers: what these are, as JSON can hold it."""
        return {
            "direction": self.direction,
            "metric": self.metric,
            "conditions": self.conditions,
            "axes": self.axes,
        }

    @classmethod
    def _from_about(cls, about: dict[str, Any]) -> dict[str, Any]:
        """The fields that `about` was made of."""
        axes = {
            name: [tuple(each) if isinstance(each, list) else each for each in labels]
            for name, labels in about["axes"].items()
        }
        return {**about, "axes": axes}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers, their axes and the baselines as safetensors."""
        tensors = {"values": self.values, "clean": self.clean, "corrupted": self.corrupted}
        # Gradients of neighbouring hooks may share their memory, which such a file cannot.
        tensors |= {HELD + name: each.clone() for name, each in self.held.items()}
        save_result(path, self._kind, tensors, self.about())

    @classmethod
    def load(cls: type[_Table], path: str | os.PathLike[str]) -> _Table:
        """Read what `save` wrote.

        Raises:
            InterventionError: It cannot be read, is damaged, or is another kind of result.
        """
        tensors, about = load_result(path, cls._kind, cls.__name__)
        names = [name for name in tensors if name.startswith(HELD)]
        held = {name.removeprefix(HELD): tensors.pop(name) for name in names}
        fields: dict[str, Any] = {**tensors, **cls._from_about(about), "held": held}
        return cls(**fields)


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
        names: The hook of each site and layer; None where there is none.

    The others are `EffectTable`'s.
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
