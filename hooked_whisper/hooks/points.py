"""The hook point: an identity module with a name, declared axes, and checked hooks."""

import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformer_lens import hook_points as lens

from hooked_whisper.errors import ConfigError, HookDisabledError, HookError, HookResultError, shown
from hooked_whisper.interrupts import Temporarily

Direction = Literal["fwd", "bwd"]


HookFunction = Callable[..., Tensor | None]
"""What a user hooks in: reads `(value, hook=point)`, returns what replaces the value, or None."""


class Scope:
    """For how long, and in which thread, something is attached; a copy of it is there to stay.

    Args:
        thread: What `threading.get_ident` says; None is every thread.
    """

    def __init__(self, thread: int | None = None) -> None:
        self.thread = thread

    def __reduce__(self) -> Any:
        return Scope, ()

    def check(self, what: str) -> None:
        """Refuse to act in another thread.

        Raises:
            HookError: Says what to do instead.
        """
        if self.thread not in (None, threading.get_ident()):
            raise HookError(
                f"{what} has hooks or autoencoders that another thread attached for a while, and "
                "that would act here too. Let one thread at a time have the model (a "
                "threading.Lock), give each a copy (copy.deepcopy(model)), or attach them for all "
                "threads with model.add_hook or model.add_sae."
            )


_SILENT: ContextVar[bool] = ContextVar("hooked_whisper_silent", default=False)
"""Whether hook points let values pass unseen, in this thread."""


class _Silence:
    """The work of `without_hooks`."""

    def __init__(self) -> None:
        self.before = _SILENT.get()

    def begin(self) -> None:
        _SILENT.set(True)

    def end(self) -> None:
        _SILENT.set(self.before)


def without_hooks() -> Temporarily[None]:
    """A `with` block in which no hook point of this thread fires, hooked or spliced as it is."""
    return Temporarily(None, _Silence)


class HookPoint(lens.HookPoint):
    """A named place in the model where an activation can be read and replaced.

    TransformerLens's `HookPoint` that also knows its axes, refuses results
    which cannot take the activation's place, and refuses hooks while the flag
    that would make it fire is off.

    Args:
        axes: Names of the activation's axes, in order, separated by spaces.
        flag: The configuration switch that the point fires under, if any.
        sizes: Lengths of axes that the model's configuration does not tell.
    """

    __setattr__ = object.__setattr__  # type: ignore[assignment]
    """A plain attribute's: there are hundreds of points, and none has parameters or modules."""

    def __init__(
        self, axes: str, flag: str | None = None, sizes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        self.axes = tuple(axes.split())
        self.flag = flag
        self.enabled = flag is None
        self.sizes = dict(sizes or {})
        self.splices: list[Callable[[Tensor], Tensor]] = []
        """What the activation passes behind all hooks, in order: spliced autoencoders."""
        self.scopes: list[Scope] = []
        """Of what is here for the length of a `with` block."""

    def clear_context(self) -> None:
        """Empty `ctx`, which hooks may keep things in; there is one at every moment."""
        self.ctx = {}

    def __call__(self, value: Tensor) -> Tensor:
        """The value, as the hooks leave it; with no hook, without the cost of a module's call.

        Raises:
            HookError: Another thread has hooks here for a while.
        """
        if not self.is_hooked or _SILENT.get():
            return value
        for scope in self.scopes:
            if not self.__dict__.get("_is_replica"):  # DataParallel runs those in threads
                scope.check(repr(self.name))
        return self.splice(super().__call__(value))

    def splice(self, value: Tensor) -> Tensor:
        """What flows on, from the value as the hooks left it."""
        for splice in self.splices:
            value = splice(value)
        return value

    @property
    def is_hooked(self) -> bool:
        """Whether anything would see the activation: a hook, a bare torch one, an autoencoder."""
        return self.has_any_hook or bool(self.splices)

    @property
    def has_any_hook(self) -> bool:
        """Whether a hook, ours or a bare torch one, sees the activation."""
        return bool(self._forward_hooks or self._backward_hooks or self._forward_pre_hooks)

    def clone_if_hooked(self, value: Tensor) -> Tensor:
        """The value itself, or a copy of it where hooks could keep or edit it in place.

        For values that somebody else holds too: a user's input, a parameter,
        another activation, what the model is about to return.
        """
        return value.clone() if self.is_hooked else value

    def own(self, value: Tensor) -> Tensor:
        """The former name of `clone_if_hooked`."""
        warnings.warn("own is now called clone_if_hooked.", DeprecationWarning, stacklevel=2)
        return self.clone_if_hooked(value)

    def add_hook(  # type: ignore[override]
        self,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        **kwargs: Any,
    ) -> lens.LensHandle:
        """Attach a function of `(value, hook)` whose result, unless None, replaces the value.

        A backward hook sees the gradient of the activation, also where nothing
        before the activation needs a gradient, and replaces it likewise.

        Raises:
            HookDisabledError: The point's flag is off, so that it would never fire.
            HookError: A direction that is neither `"fwd"` nor `"bwd"`.
        """
        if not callable(hook):
            raise HookError(f"{shown(hook)} is no hook; a function of (value, hook) is.")
        if dir not in ("fwd", "bwd"):
            raise HookError(f'dir is {dir!r}; it can be "fwd" or "bwd".')
        if not self.enabled:
            raise HookDisabledError(
                f"{self.name!r} fires only while {self.flag} is on; it is off. "
                f"Turn it on with model.set_{self.flag}(True)."
            )
        handles = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        if dir == "fwd":
            run = functools.partial(_run_checked, hook)
            super().add_hook(run, "fwd", is_permanent, level, prepend, **kwargs)
        else:
            torch_handle = self.register_forward_hook(
                functools.partial(_watch_gradient, hook), prepend=prepend
            )
            handle = lens.LensHandle(torch_handle, is_permanent, level)
            handles.insert(0 if prepend else len(handles), handle)
        handle = handles[0 if prepend else -1]
        handle.user_hook = hook
        return handle


def set_enabled(points: Iterable[HookPoint], flag: str, use: bool) -> None:
    """Let the points that wait for a flag fire, or not.

    Raises:
        ConfigError: One of them has hooks, which would never fire; nothing was changed.
    """
    waiting = [point for point in points if point.flag == flag]
    if not use and (hooked := [point.name for point in waiting if point.is_hooked]):
        raise ConfigError(
            f"{flag} cannot go off while {hooked[0]!r} has hooks or an SAE, which would never "
            "fire. Call model.reset_hooks() or model.reset_saes() first."
        )
    for point in waiting:
        point.enabled = use


def is_watched(*modules: nn.Module) -> bool:
    """Whether a hook of any kind, or a splice, sees what one of the modules takes or gives."""
    for module in modules:
        if module._forward_hooks or module._backward_hooks or module._forward_pre_hooks:
            return True
        if module.__dict__.get("splices"):
            return True
    return False


def _run_checked(function: HookFunction, value: Tensor, hook: HookPoint) -> Tensor | None:
    """The function's result, if it can take the value's place."""
    result = function(value, hook=hook)
    if result is None:
        return None
    where = f"the function hooked at {hook.name!r}"
    if not isinstance(result, Tensor):
        raise HookResultError(
            f"{where} returned a {type(result).__name__}; it must return a tensor to replace the "
            "activation, or None to leave it."
        )
    for what in ("shape", "dtype", "device", "layout"):
        got, needed = getattr(result, what), getattr(value, what)
        if got != needed:
            if what == "shape":
                got, needed = tuple(got), f"{tuple(needed)} = [{' '.join(hook.axes)}]"
            raise HookResultError(
                f"{where} returned a tensor of {what} {got}; the activation has {what} {needed}."
            )
    return result


def _watch_gradient(function: HookFunction, point: HookPoint, _: Any, value: Tensor) -> Any:
    """Let a function see and replace the gradient of a value, from a forward hook."""
    if not torch.is_grad_enabled():
        return None
    # An alias of its own, so that the gradient is this point's and no other's.
    watched = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
    watched.register_hook(lambda gradient: _run_checked(function, gradient, point))
    return watched
