"""What running the model returns, for type checkers: torch's own types say Any."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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

        class _Spliced(_Call, total=False):
            saes: SAEs
            use_error_term: bool | None
            speech_only: bool

        class _SplicedCached(_Cached, total=False):
            saes: SAEs
            use_error_term: bool | None
            speech_only: bool

        _Audio = Mel | Tensor | None
        _Tokens = Tensor | None
        _One = Literal["logits", "loss"]

        @overload
        def __call__(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: _One = ...,
            **options: Unpack[_Call],
        ) -> Tensor: ...

        @overload
        def __call__(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: ReturnType = ...,
            **options: Unpack[_Call],
        ) -> Any: ...

        def __call__(self, *args: Any, **options: Any) -> Any: ...

        @overload  # type: ignore[override]
        def run_with_hooks(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: _One = ...,
            **options: Unpack[_Hooked],
        ) -> Tensor: ...

        @overload
        def run_with_hooks(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: ReturnType = ...,
            **options: Unpack[_Hooked],
        ) -> Any: ...

        def run_with_hooks(self, *args: Any, **options: Any) -> Any: ...

        @overload  # type: ignore[override]
        def run_with_cache(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: _One = ...,
            **options: Unpack[_Cached],
        ) -> tuple[Tensor, WhisperCache]: ...

        @overload
        def run_with_cache(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: ReturnType = ...,
            **options: Unpack[_Cached],
        ) -> tuple[Any, WhisperCache]: ...

        def run_with_cache(self, *args: Any, **options: Any) -> tuple[Any, WhisperCache]: ...

        @overload  # type: ignore[override]
        def run_with_saes(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: _One = ...,
            **options: Unpack[_Spliced],
        ) -> Tensor: ...

        @overload
        def run_with_saes(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: ReturnType = ...,
            **options: Unpack[_Spliced],
        ) -> Any: ...

        def run_with_saes(self, *args: Any, **options: Any) -> Any: ...

        @overload  # type: ignore[override]
        def run_with_cache_with_saes(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: _One = ...,
            **options: Unpack[_SplicedCached],
        ) -> tuple[Tensor, WhisperCache]: ...

        @overload
        def run_with_cache_with_saes(
            self,
            mel: _Audio = ...,
            tokens: _Tokens = ...,
            return_type: ReturnType = ...,
            **options: Unpack[_SplicedCached],
        ) -> tuple[Any, WhisperCache]: ...

        def run_with_cache_with_saes(
            self, *args: Any, **options: Any
        ) -> tuple[Any, WhisperCache]: ...
