"""Edits of activations, and the `with` block in which they act.

An edit says what happens at a site. `edit.hooks(model)` gives the pairs that
`run_with_hooks` and `run_with_cache` take; `Interventions` holds several for
the length of a `with` block, also while the model decodes or transcribes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import AlignmentError, InterventionError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.sites import Part, Site, first_pos
from hooked_whisper.model.whisper import HookedWhisper

HookPair = tuple[str, Callable[..., Any]]


class Edit(ABC):
    """A change to a model's activations."""

    @abstractmethod
    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        """Names and functions to hook in, all checked: nothing has been attached yet.

        Raises:
            HookNameError: No such hook.
            InterventionError: What cannot be done there; its subclasses say why.
        """


class SiteEdit(Edit):
    """An edit that computes a new value for some part of an activation."""

    site: Site

    @abstractmethod
    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        """The new value of the part, which broadcasts to the old one.

        Args:
            old: The part's value in this pass; a copy.
            part: Where it lies.
            point: The hook.
        """

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        def function(value: Tensor, hook: HookPoint) -> Tensor | None:
            start = first_pos(hook.name or "")
            part = self.site.part(hook.name or "", hook.axes, value.shape, start)
            if part is None:
                return None
            edited = value.clone()
            edited[part.here] = self.change(value[part.here], part, hook).to(value)
            return edited

        return [(name, function) for name in self.site.names(model)]


@dataclass(frozen=True, eq=False)
class Patch(SiteEdit):
    """Put in what the same place held in another run.

    Args:
        site: Where.
        source: The other run's cache, or the whole activation as a tensor,
            over all positions; a batch of 1 serves every row. In beam search,
            one row for each recording serves its hypotheses.
    """

    site: Site
    source: WhisperCache | Tensor

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        for name in self.site.names(model):
            axes, source = model.hook_dict[name].axes, source_at(self.source, name)
            if source.ndim != len(axes):
                raise AlignmentError(
                    f"the source for {name!r} has shape {tuple(source.shape)}; its axes are "
                    f"{axes}. Cache it without remove_batch_dim."
                )
            check_fits(source, model, name, "the source")
        return super().hooks(model)

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        source, name = source_at(self.source, point.name or ""), point.name or ""
        rows = rows_for(old.shape[0], source.shape[0], name)
        return take(source, part, point, rows)


def source_at(source: WhisperCache | Tensor, name: str) -> Tensor:
    """One tensor for every hook, or what a cache holds for this one."""
    return source if isinstance(source, Tensor) else source[name]


def check_fits(
    source: Tensor, model: HookedWhisper, name: str, what: str, broadcasts: bool = False
) -> None:
    """Refuse values that are not of an activation's size, on every axis whose size is fixed.

    Args:
        source: The values, with all the activation's axes.
        model: The model.
        name: The activation.
        what: What to call the values.
        broadcasts: Whether an axis of length 1 serves all places.

    Raises:
        AlignmentError: Another length.
    """
    axes = model.hook_dict[name].axes
    for axis, size, got in zip(axes, model.axis_sizes(name), source.shape, strict=True):
        if size is not None and got != size and not (broadcasts and got == 1):
            raise AlignmentError(
                f"{what} for {name!r} has shape {tuple(source.shape)} = [{' '.join(axes)}]; "
                f"{axis!r} must be {size}. Take it from this model, whole."
            )


def widen(source: Tensor, model: HookedWhisper, name: str, what: str) -> Tensor:
    """Values with all of an activation's axes: those missing in front get length 1.

    Raises:
        AlignmentError: More axes, or lengths that do not fit.
    """
    axes = model.hook_dict[name].axes
    if source.ndim > len(axes):
        raise AlignmentError(
            f"{what} for {name!r} has shape {tuple(source.shape)}; the activation has axes {axes}."
        )
    wide = source[(None,) * (len(axes) - source.ndim)]
    check_fits(wide, model, name, what, broadcasts=True)
    if wide.shape[0] != 1:
        raise AlignmentError(
            f"{what} for {name!r} has shape {tuple(source.shape)}, with {wide.shape[0]} rows; "
            "it must be one for all rows of the run."
        )
    return wide


def rows_for(n_rows: int, n_source: int, name: str) -> Tensor:
    """Which row of a source each row of a run gets.

    Raises:
        AlignmentError: Numbers of rows that do not fit together.
    """
    if n_source == 1:
        return torch.zeros(n_rows, dtype=torch.long)
    is_group = name.startswith("decoder") and n_source > 0 and n_rows % n_source == 0
    if n_source != n_rows and not is_group:
        raise AlignmentError(
            f"the source for {name!r} has {n_source} rows and the run {n_rows}. "
            "Give one row, or as many as the run has."
        )
    return torch.arange(n_source).repeat_interleave(n_rows // n_source)


def take(
    source: Tensor, part: Part, point: HookPoint, rows: Tensor, broadcasts: bool = False
) -> Tensor:
    """What a whole activation holds where a part lies.

    Args:
        source: The activation of a pass over all positions.
        part: Where; its rows are not used.
        point: The hook.
        rows: The source's row for each row of the run.
        broadcasts: Whether an axis of length 1 serves all places.

    Raises:
        AlignmentError: The source is too short.
    """
    index = [rows[part.whole[0]], *part.whole[1:]]
    for axis, size in enumerate(source.shape):
        last = int(index[axis].max())
        if broadcasts and size == 1:
            index[axis] = index[axis] * 0
        elif last >= size:
            raise AlignmentError(
                f"the source for {point.name!r} has {size} places on {point.axes[axis]!r}; "
                f"place {last} is asked for. Run both on inputs of one length."
            )
    return source[tuple(index)]


class Interventions(AbstractContextManager["Interventions"]):
    """Edits that act for the length of a `with` block, whatever the model does in it.

        with Interventions(model, Steer(...), ZeroAblation(...)):
            model.transcribe("speech.flac")

    It can be entered again and again, and leaves no hook behind.

    Args:
        model: The model to edit.
        edits: What to do; at one hook, in this order.

    Raises:
        InterventionError: Something that is no edit. Names and parts are
            checked on entering.
    """

    def __init__(self, model: HookedWhisper, *edits: Edit) -> None:
        for edit in edits:
            if not isinstance(edit, Edit):
                raise InterventionError(
                    f"{edit!r} is no edit. Pass edits such as Patch(site, cache); functions of "
                    "your own go to model.hooks(fwd_hooks=...)."
                )
        self.model = model
        self.edits = edits
        self._entered: list[Any] = []

    @property
    def fwd_hooks(self) -> list[HookPair]:
        """Pairs for `run_with_hooks` and `run_with_cache`."""
        return [pair for edit in self.edits for pair in edit.hooks(self.model)]

    def __enter__(self) -> "Interventions":
        attached = self.model.hooks(fwd_hooks=self.fwd_hooks)
        attached.__enter__()
        self._entered.append(attached)
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)
