"""Edits of activations, and the `with` block in which they act.

An edit says what happens at a site. `edit.hooks(model)` gives the pairs that
`run_with_hooks` and `run_with_cache` take; `Interventions` holds several for
the length of a `with` block, also while the model decodes or transcribes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import (
    AlignmentError,
    InterventionError,
    SiteError,
    check_number,
    shown,
)
from hooked_whisper.hooks.attached import TemporaryHooks
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import FLOATS
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interrupts import Temporarily
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
            old: The part's value in this pass, in all rows; a copy.
            part: Where it lies.
            point: The hook.
        """

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        def function(value: Tensor, hook: HookPoint) -> Tensor | None:
            edited = value.clone()
            return edited if self.write_to(edited, hook, first_pos(hook.name or "")) else None

        return [(name, function) for name in site_names(self.site, model)]

    def write_to(self, value: Tensor, point: HookPoint, first_pos: int) -> bool:
        """Edit an activation in place; False if the pass has nothing of the site.

        Args:
            value: What some rows hold at the hook in this pass.
            point: The hook.
            first_pos: The position of the first token in this pass.
        """
        part = self.site.part(point, value.shape, first_pos)
        if part is None:
            return False
        new = self.change(value[part.local_index].clone(), part, point)
        value[part.local_index] = new.to(value)
        return True


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
        for name in site_names(self.site, model):
            axes, source = model.hook_dict[name].axes, source_at(self.source, name)
            if source.ndim != len(axes):
                raise AlignmentError(
                    f"the source for {name!r} has shape {tuple(source.shape)}; its axes are "
                    f"{axes}. Cache it without remove_batch_dim."
                )
            check_fits(source, model, name, "the source")
        return super().hooks(model)

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        name = point.name or ""
        source = source_at(self.source, name)
        rows = rows_for(len(old), len(source), name)
        return part.read(source, point)[rows]


@dataclass(frozen=True, eq=False)
class _NumberEdit(SiteEdit):
    """An edit of single values by one number: latents of an autoencoder, neurons, heads."""

    site: Site

    @property
    @abstractmethod
    def _number(self) -> float | int:
        """The number."""

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        check_number(f"what {type(self).__name__} is given", self._number, InterventionError)
        return super().hooks(model)


@dataclass(frozen=True, eq=False)
class Clamp(_NumberEdit):
    """Set values to a number, whatever they were: a latent that is not active becomes so.

    Args:
        site: Which values, for instance `Site(name, latent=7, window_s=(0.5, 1.0))`.
        to: The number.

    Source: feature clamping in Templeton et al. 2024, "Scaling Monosemanticity".
    """

    to: float | int = 0.0

    @property
    def _number(self) -> float | int:
        return self.to

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        return torch.full_like(old, float(self.to))


@dataclass(frozen=True, eq=False)
class Scale(_NumberEdit):
    """Multiply values with a number; what is 0 stays 0.

    Args:
        site: Which values.
        factor: The number; 0 ablates, negative turns them round.
    """

    factor: float | int = 1.0

    @property
    def _number(self) -> float | int:
        return self.factor

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        return old * float(self.factor)


@dataclass(frozen=True, eq=False)
class Add(_NumberEdit):
    """Add a number to values; for a vector of its own for each place, see `Steer`.

    Args:
        site: Which values.
        amount: The number.
    """

    amount: float | int = 0.0

    @property
    def _number(self) -> float | int:
        return self.amount

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        return old + float(self.amount)


class Interventions(Temporarily[Any]):
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
        if not isinstance(model, HookedWhisper):
            raise InterventionError(f"{shown(model)} is no model. Pass a HookedWhisper first.")
        for edit in edits:
            if not isinstance(edit, Edit):
                raise InterventionError(
                    f"{edit!r} is no edit. Pass edits such as Patch(site, cache); functions of "
                    "your own go to model.hooks(fwd_hooks=...)."
                )
        self.model = model
        self.edits = edits
        super().__init__(None, lambda: TemporaryHooks(model, _pairs(model, edits)))

    @property
    def fwd_hooks(self) -> list[HookPair]:
        """Pairs for `run_with_hooks` and `run_with_cache`."""
        return _pairs(self.model, self.edits)

    def __enter__(self) -> "Interventions":
        super().__enter__()
        return self


def _pairs(model: HookedWhisper, edits: tuple[Edit, ...]) -> list[HookPair]:
    return [pair for edit in edits for pair in edit.hooks(model)]


def site_names(site: Any, model: HookedWhisper) -> list[str]:
    """The hooks of a site."""
    if not isinstance(site, Site):
        raise SiteError(f"{shown(site)} is no place to edit; Site(name) is.")
    return site.names(model)


# What edits take from elsewhere


def source_at(source: WhisperCache | Tensor, name: str) -> Tensor:
    """One tensor for every hook, or what a cache holds for this one.

    Raises:
        InterventionError: Neither, or numbers that are missing: sparse, on the meta device.
    """
    if not isinstance(source, (Tensor, Mapping)):
        raise InterventionError(
            f"{shown(source)} is no source of activations for {name!r}; a cache or a tensor is."
        )
    found: Tensor = source if isinstance(source, Tensor) else source[name]
    if found.layout != torch.strided or found.is_meta or found.dtype not in FLOATS:
        kind = "on the meta device" if found.is_meta else f"{found.dtype}, {found.layout}"
        raise InterventionError(
            f"the source for {name!r} is {kind}; it must hold plain floats, as a cache does."
        )
    return found


def check_fits(
    source: Tensor, model: HookedWhisper, name: str, what: str, broadcasts: bool = False
) -> None:
    """Refuse values that are not of an activation's size, on every axis whose size is fixed."""
    axes = model.hook_dict[name].axes
    for axis, size, got in zip(axes, model.axis_sizes(name), source.shape, strict=True):
        if size is not None and got != size and not (broadcasts and got == 1):
            raise AlignmentError(
                f"{what} for {name!r} has shape {tuple(source.shape)} = [{' '.join(axes)}]; "
                f"{axis!r} must be {size}. Take it from this model, whole."
            )


def check_broadcasts(source: Tensor, model: HookedWhisper, name: str, what: str) -> None:
    """Refuse values that do not serve all rows of an activation, with some of its last axes."""
    axes = model.hook_dict[name].axes
    if source.ndim > len(axes):
        raise AlignmentError(
            f"{what} for {name!r} has shape {tuple(source.shape)}; the activation has axes {axes}."
        )
    wide = with_leading_axes(source, len(axes))
    check_fits(wide, model, name, what, broadcasts=True)
    if len(wide) != 1:
        raise AlignmentError(
            f"{what} for {name!r} has shape {tuple(source.shape)}, with {len(wide)} rows; "
            "it must be one for all rows of the run."
        )


def with_leading_axes(source: Tensor, n_axes: int) -> Tensor:
    """Values with so many axes: those missing in front have length 1."""
    return source[(None,) * (n_axes - source.ndim)]


def rows_for(n_rows: int, n_source: int, name: str) -> Tensor | slice:
    """Which row of a source each row of a run gets."""
    if n_source in (1, n_rows):
        return slice(None)
    if not name.startswith("decoder") or n_source == 0 or n_rows % n_source:
        raise AlignmentError(
            f"the source for {name!r} has {n_source} rows and the run {n_rows}. "
            "Give one row, or as many as the run has."
        )
    return torch.arange(n_source).repeat_interleave(n_rows // n_source)
