"""Hooks that go together: attached all or none, and taken away together, whenever Ctrl-C comes."""

from collections.abc import Iterable
from typing import Any

from transformer_lens import hook_points as lens

from hooked_whisper.hooks.points import Direction, HookFunction, HookPoint, Scope


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
        model: Any,
        fwd_hooks: Iterable[Any],
        bwd_hooks: Iterable[Any] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> None:
        self.model = model
        self.hooks: dict[Direction, list[Any]] = {
            "fwd": model._resolve(fwd_hooks),
            "bwd": model._resolve(bwd_hooks),
        }
        self.stays, self.clears = not reset_hooks_end, clear_contexts
        self.scope = Scope()
        self.attached = AttachedHooks(self.scope)
        self.is_whole = False

    def begin(self) -> None:
        self.model._open_scope(self.scope)
        level = len(self.model._scopes)
        for direction, pairs in self.hooks.items():
            for name, function in pairs:
                self.attached.add(self.model.hook_dict[name], function, direction, level=level)
        self.is_whole = True

    def end(self) -> None:
        if not (self.stays and self.is_whole):
            self.attached.remove()
            if self.clears:
                self.model.clear_contexts()
        self.model._close_scope(self.scope)
