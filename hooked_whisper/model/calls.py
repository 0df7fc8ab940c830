"""What running the model takes and returns, for editors, type checkers and `help`."""

import functools
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import Stack
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import Index
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.root import Hook
from hooked_whisper.model.splicing import SAEs, Splicing
from hooked_whisper.speech.mel import Mel

if TYPE_CHECKING:
    from typing import TypedDict, overload

    from typing_extensions import Unpack

ReturnType = Literal["logits", "loss", "both"] | None
StopAt = tuple[Stack, int] | None


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Float[Tensor, "batch pos vocab"]
    loss: Float[Tensor, "*batch_pos"]


class Calls(Splicing):
    """The calls of `HookedWhisper` with what each returns; their meaning is said where they are.

    A tensor by default and for the loss; with another `return_type`, or one
    that is only known when the program runs, Any.
    """

    if TYPE_CHECKING:

        class _Call(TypedDict, total=False):
            encoder_output: Tensor | None
            stop_at_layer: StopAt
            loss_per_token: bool

        class _Hooked(_Call, total=False):
            fwd_hooks: Iterable[Hook]
            bwd_hooks: Iterable[Hook]
            reset_hooks_end: bool
            clear_contexts: bool

        class _Cached(_Hooked, total=False):
            names_filter: NamesFilter
            device: torch.device | str | None
            dtype: torch.dtype | None
            remove_batch_dim: bool
            incl_bwd: bool
            pos_slice: Index | None
            frame_slice: Index | None

        class _SAEs(TypedDict, total=False):
            saes: SAEs
            use_error_term: bool | None
            speech_only: bool

        class _Spliced(_SAEs, _Call): ...

        class _SplicedHooked(_SAEs, _Hooked): ...

        class _SplicedCached(_SAEs, _Cached): ...

        @overload
        def __call__(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: Literal["logits", "loss"] = "logits",
            **options: Unpack[_Call],
        ) -> Tensor: ...

        @overload
        def __call__(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: ReturnType = "logits",
            **options: Unpack[_Call],
        ) -> Any: ...

        def __call__(self, *args: Any, **options: Any) -> Any: ...

        @overload  # type: ignore[override]
        def run_with_hooks(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: Literal["logits", "loss"] = "logits",
            **options: Unpack[_Hooked],
        ) -> Tensor: ...

        @overload
        def run_with_hooks(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: ReturnType = "logits",
            **options: Unpack[_Hooked],
        ) -> Any: ...

        def run_with_hooks(self, *args: Any, **options: Any) -> Any: ...

        @overload  # type: ignore[override]
        def run_with_cache(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: Literal["logits", "loss"] = "logits",
            **options: Unpack[_Cached],
        ) -> tuple[Tensor, WhisperCache]: ...

        @overload
        def run_with_cache(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: ReturnType = "logits",
            **options: Unpack[_Cached],
        ) -> tuple[Any, WhisperCache]: ...

        def run_with_cache(self, *args: Any, **options: Any) -> tuple[Any, WhisperCache]: ...

        @overload  # type: ignore[override]
        def run_with_saes(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: Literal["logits", "loss"] = "logits",
            **options: Unpack[_Spliced],
        ) -> Tensor: ...

        @overload
        def run_with_saes(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: ReturnType = "logits",
            **options: Unpack[_Spliced],
        ) -> Any: ...

        def run_with_saes(self, *args: Any, **options: Any) -> Any: ...

        @overload  # type: ignore[override]
        def run_with_hooks_with_saes(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: Literal["logits", "loss"] = "logits",
            **options: Unpack[_SplicedHooked],
        ) -> Tensor: ...

        @overload
        def run_with_hooks_with_saes(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: ReturnType = "logits",
            **options: Unpack[_SplicedHooked],
        ) -> Any: ...

        def run_with_hooks_with_saes(self, *args: Any, **options: Any) -> Any: ...

        @overload  # type: ignore[override]
        def run_with_cache_with_saes(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: Literal["logits", "loss"] = "logits",
            **options: Unpack[_SplicedCached],
        ) -> tuple[Tensor, WhisperCache]: ...

        @overload
        def run_with_cache_with_saes(
            self,
            mel: Mel | Tensor | None = None,
            tokens: Tensor | None = None,
            return_type: ReturnType = "logits",
            **options: Unpack[_SplicedCached],
        ) -> tuple[Any, WhisperCache]: ...

        def run_with_cache_with_saes(
            self, *args: Any, **options: Any
        ) -> tuple[Any, WhisperCache]: ...


_PASSES_ON_TO = {
    "run_with_hooks": "forward",
    "run_with_cache": "forward",
    "run_with_saes": "forward",
    "run_with_hooks_with_saes": "run_with_hooks",
    "run_with_cache_with_saes": "run_with_cache",
}
"""The runs, and what gets the arguments that they do not know."""
_Model = TypeVar("_Model", bound=type[Calls])


def by_name(model: _Model) -> _Model:
    """Have `help` and notebooks show what the runs of a class of models take.

    They pass on what they do not know: `run_with_cache(*args, names_filter=None, ..., **kwargs)`
    becomes `run_with_cache(mel=None, tokens=None, return_type="logits", *, names_filter=None,
    ...)`. Types are left to the docstrings and to editors.
    """
    for name, target in _PASSES_ON_TO.items():
        run = _passing_on(getattr(model, name))
        own, passed = inspect.signature(run), inspect.signature(getattr(model, target))
        run.__signature__ = _joined(own, passed)
        setattr(model, name, run)
    return model


def _passing_on(method: Any) -> Any:
    @functools.wraps(method)
    def run(self: Any, *args: Any, **options: Any) -> Any:
        return method(self, *args, **options)

    return run


def _joined(own: inspect.Signature, passed: inspect.Signature) -> inspect.Signature:
    """A signature with the parameters of another one in place of `*args` and `**kwargs`."""
    named = [each for each in own.parameters.values() if each.kind is each.KEYWORD_ONLY]
    first = [each for each in passed.parameters.values() if each.kind is not each.KEYWORD_ONLY]
    rest = [each for each in passed.parameters.values() if each.kind is each.KEYWORD_ONLY]
    bare = [each.replace(annotation=each.empty) for each in (*first, *named, *rest)]
    return own.replace(parameters=bare)
