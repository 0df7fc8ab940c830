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
            start = first_pos(model, hook.name or "")
            part = self.site.part(hook.name or "", hook.axes, value.shape, start)
            if part is None:
                return None
            edited = value.clone()
            edited[part.here] = self.change(value[part.here], part, hook).to(value)
            return edited

        return [(name, function) for name in self.site.names(model)]


@dataclass(frozen=True)
class Patch(SiteEdit):
    """Put in what the same place held in another run.

    Args:
        site: Where.
        source: The other run's cache, or the whole activation as a tensor,
            over all positions; a batch of 1 serves every row.
    """

    site: Site
    source: WhisperCache | Tensor

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        for name in self.site.names(model):
            axes, source = model.hook_dict[name].axes, self._source(name)
            if source.ndim != len(axes):
                raise AlignmentError(
                    f"the source for {name!r} has shape {tuple(source.shape)}; its axes are "
                    f"{axes}. Cache it without remove_batch_dim."
                )
        return super().hooks(model)

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        source = self._source(point.name or "")
        n_rows = source.shape[0]
        if n_rows not in (1, old.shape[0]):
            raise AlignmentError(
                f"the source for {point.name!r} has {n_rows} rows and the run {old.shape[0]}. "
                "Give one row, or as many as the run has."
            )
        index = part.whole if n_rows > 1 else (part.whole[0][:1] * 0, *part.whole[1:])
        for axis, (places, size) in enumerate(zip(index, source.shape, strict=True)):
            if int(places.max()) >= size:
                raise AlignmentError(
                    f"the source for {point.name!r} has {size} places on {point.axes[axis]!r}; "
                    f"place {int(places.max())} is asked for. Run both on inputs of one length."
                )
        return source[index]

    def _source(self, name: str) -> Tensor:
        return self.source if isinstance(self.source, Tensor) else self.source[name]


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
