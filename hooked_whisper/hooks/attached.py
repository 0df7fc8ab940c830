"""What is there for a while: hooks, all or none, whenever Ctrl-C comes; frozen parameters."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn
from transformer_lens import hook_points as lens

from hooked_whisper.errors import HookError
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.points import Direction, HookFunction, HookPoint, Scope
from hooked_whisper.interrupts import Temporarily


@runtime_checkable
class HookedModel(Protocol):
    """What functions beside `HookedEncoderDecoder` know of it."""

    hook_dict: dict[str, HookPoint]
    mod_dict: dict[str, nn.Module]
    _scopes: list[Scope]
    _attached: list[Any]

    def hook_names(self, names_filter: NamesFilter = None) -> list[str]: ...
    def axis_sizes(self, name: str) -> tuple[int | None, ...]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def clear_contexts(self) -> None: ...


def open_scope(model: HookedModel, scope: Scope) -> None:
    """Have a model for this thread for a while.

    Raises:
        HookError: Another one has it.
    """
    for other in list(model._scopes):
        other.check("the model")
    scope.thread = threading.get_ident()
    model._scopes.append(scope)


def close_scope(model: HookedModel, scope: Scope) -> None:
    """Give it back; what is still attached then stays, for every thread."""
    scope.thread = None
    model._scopes = [each for each in model._scopes if each is not scope]


def by_point(model: HookedModel, hooks: Iterable[Any]) -> list[tuple[HookPoint, HookFunction]]:
    """Each function with every single point that it goes to, all checked before any is used."""
    found = []
    for pair in hooks:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not callable(pair[1]):
            raise HookError(
                f"{pair!r} is no hook. Pass pairs of a name and a function of (value, hook)."
            )
        found += [(model.hook_dict[name], pair[1]) for name in model.hook_names(pair[0])]
    return found


class AttachedHooks:
    """Hooks that go together: all are attached or none, and they are taken away together.

    Args:
        scope: Theirs, where they are there for a while.
    """

    def __init__(self, scope: Scope | None = None) -> None:
        self.scope = scope
        self._handles: list[tuple[HookPoint, lens.LensHandle]] = []
        self._adding: tuple[HookPoint, list[int]] | None = None
        self._points: list[HookPoint] = []

    def add(self, point: HookPoint, hook: HookFunction, dir: Direction, **options: Any) -> None:
        """Attach one more, as `HookPoint.add_hook` does."""
        self._adding = point, list(point._forward_hooks)
        if self.scope is not None:
            self._points.append(point)
            point.scopes.append(self.scope)
        self._handles.append((point, point.add_hook(hook, dir, **options)))
        self._adding = None

    def remove(self) -> None:
        """Take away what is there of them; may be interrupted anywhere, and called again."""
        if self._adding is not None:
            # Its own handle is not known where adding it was interrupted.
            point, before = self._adding
            for handle in (*point.fwd_hooks, *point.bwd_hooks):
                if handle.hook.id not in before:
                    self._handles.append((point, handle))
            for key in [key for key in point._forward_hooks if key not in before]:
                del point._forward_hooks[key]
            self._adding = None
        for point, handle in self._handles:
            handle.hook.remove()
            point.fwd_hooks = [each for each in point.fwd_hooks if each is not handle]
            point.bwd_hooks = [each for each in point.bwd_hooks if each is not handle]
        for point in self._points:
            point.scopes = [each for each in point.scopes if each is not self.scope]
        self._handles, self._points = [], []


class TemporaryHooks:
    """The work of `model.hooks`: functions attached by name, for the thread that begins it.

    The arguments are the model and those of `model.hooks`.
    """

    def __init__(
        self,
        model: HookedModel,
        fwd_hooks: Iterable[Any],
        bwd_hooks: Iterable[Any] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> None:
        self.model = model
        self.hooks: dict[Direction, list[tuple[HookPoint, HookFunction]]] = {
            "fwd": by_point(model, fwd_hooks),
            "bwd": by_point(model, bwd_hooks),
        }
        self.stays, self.clears = not reset_hooks_end, clear_contexts
        self.scope = Scope()
        self.attached = AttachedHooks(self.scope)
        self.is_whole = False

    def begin(self) -> None:
        open_scope(self.model, self.scope)
        level = len(self.model._scopes)
        for direction, pairs in self.hooks.items():
            for point, function in pairs:
                self.attached.add(point, function, direction, level=level)
        self.is_whole = True

    def end(self) -> None:
        if not (self.stays and self.is_whole):
            self.attached.remove()
            if self.clears:
                self.model.clear_contexts()
        close_scope(self.model, self.scope)


@dataclass
class _Freezing:
    """The work of `frozen`."""

    parameters: list[nn.Parameter]

    def begin(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def end(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def frozen(parameters: list[nn.Parameter]) -> Temporarily[None]:
    """Parameters that need no gradients for the length of a `with` block."""
    return Temporarily(None, lambda: _Freezing(parameters))
