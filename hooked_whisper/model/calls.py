"""How a Whisper is called: what it takes, checked; what it returns; and its types for editors.

`WhisperBase` is for those types alone: when the program runs, it is `HookedEncoderDecoder`.
"""

import functools
import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.errors import InputError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import FLOATS, Index
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.root import Hook, HookedEncoderDecoder
from hooked_whisper.hooks.splicing import SAEs
from hooked_whisper.model.decoder import Decoder
from hooked_whisper.model.encoder import Encoder
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens

if TYPE_CHECKING:
    from typing import TypedDict, overload

    from typing_extensions import Unpack

ReturnType = Literal["logits", "loss", "both"] | None
StopAt = tuple[Stack, int] | None


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Float[Tensor, "batch pos vocab"]
    loss: Float[Tensor, "*batch_pos"]


def check_call(
    cfg: HookedWhisperConfig,
    mel: Any,
    tokens: Any,
    return_type: Any,
    encoder_output: Tensor | None,
) -> None:
    """Refuse what a forward pass cannot run on."""
    if return_type not in ("logits", "loss", "both", None):
        raise InputError(
            f'return_type is {return_type!r}; it can be "logits", "loss", "both" or None.'
        )
    if (mel is None) == (encoder_output is None):
        what = "neither" if mel is None else "both"
        raise InputError(f"{what} of mel and encoder_output given; pass one of them.")
    if encoder_output is not None:
        check_values("encoder_output", encoder_output)
    if tokens is None and return_type in ("loss", "both") and cfg.has_decoder:
        raise InputError(f"return_type {return_type!r} needs tokens: model.to_tokens(text).")
    if tokens is not None or return_type in ("loss", "both"):
        cfg.need_decoder()
    if tokens is not None:
        check_tokens(tokens, cfg.d_vocab, cfg.n_text_ctx)
        if mel is not None and len(mel) != len(tokens):
            raise InputError(
                f"{len(mel)} recordings and {len(tokens)} rows of tokens do not match. "
                "Pass one row of tokens for each recording."
            )


def check_values(name: str, values: Any) -> None:
    """Refuse what is no plain float tensor, NaN and infinity, as in a mel."""
    if not isinstance(values, Tensor) or values.dtype not in FLOATS:
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{name} is {found}; it must be a tensor of floats. Take model(mel).")
    if values.layout != torch.strided:
        raise InputError(f"{name} is {values.layout}; make it dense with .to_dense().")
    # One sum is quick and shows every NaN and infinity; it may overflow, so then look closely.
    if not values.is_meta and not torch.isfinite(values.detach().sum(dtype=torch.float32)):
        n_bad = int((~torch.isfinite(values)).sum())
        if n_bad:
            raise InputError(f"{name} has {n_bad} values that are NaN or infinite.")


def check_stop(
    cfg: HookedWhisperConfig, stop_at_layer: Any, tokens: Tensor | None
) -> dict[Stack, int]:
    """Where to stop, by stack, with the layer counted from the start."""
    if stop_at_layer is None:
        return {}
    stack, layer = check_layer(cfg, "stop_at_layer", stop_at_layer)
    if stack == "decoder" and tokens is None:
        raise InputError(f"stop_at_layer {stop_at_layer!r} needs tokens for the decoder.")
    return {stack: layer}


def check_layer(cfg: HookedWhisperConfig, name: str, given: Any) -> tuple[Stack, int]:
    """A place before a block, with the layer counted from the start."""
    pair = given if isinstance(given, Sequence) else ()
    if len(pair) != 2 or pair[0] not in ("encoder", "decoder") or not isinstance(pair[1], int):
        raise InputError(
            f'{name} is {given!r}; it can be (stack, layer), for instance ("encoder", 2).'
        )
    stack, layer = cast(tuple[Stack, int], pair)
    if stack == "decoder":
        cfg.need_decoder()
    n_layers = cfg.n_layers(stack)
    if not -n_layers <= layer <= n_layers:
        raise InputError(
            f"{name} is {given!r}; the {stack} has {n_layers} layers, so that "
            f"it can be {-n_layers} to {n_layers}."
        )
    return stack, layer + n_layers if layer < 0 else layer


if TYPE_CHECKING:

    class WhisperBase(HookedEncoderDecoder):
        """What functions beside `HookedWhisper` know of it, and what each call returns.

        A tensor by default and for the loss; with another `return_type`, or one
        that is only known when the program runs, Any. The calls' meaning is said
        where they are.
        """

        encoder: Encoder
        decoder: Decoder
        alignment_heads: Tensor
        adapter_weights: Any

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

else:
    WhisperBase = HookedEncoderDecoder


def check_stream(
    model: WhisperBase,
    stack: Stack,
    resid: Any,
    tokens: Tensor | None,
    encoder_output: Tensor | None,
) -> None:
    """Refuse a residual stream that a stack cannot go on with."""
    cfg, decoder = model.cfg, model.decoder
    longest = cfg.n_audio_ctx if stack == "encoder" else cfg.n_text_ctx
    shape = tuple(resid.shape) if isinstance(resid, Tensor) else ()
    fits = len(shape) == 3 and shape[2] == cfg.d_model and 0 < shape[1] <= longest
    if not fits or (stack == "encoder" and shape[1] != longest):
        raise InputError(
            f"resid is {shape or type(resid).__name__}; the {stack}'s stream is [batch, "
            f"{'' if stack == 'encoder' else 'up to '}{longest}, {cfg.d_model}]."
        )
    check_values("resid", resid)
    if encoder_output is not None:
        check_values("encoder_output", encoder_output)
    if resid.device != model.device:
        raise InputError(f"resid is on {resid.device} and the model on {model.device}.")
    if (stack == "decoder") != (encoder_output is not None):
        raise InputError(
            "the decoder attends to the encoder's output; pass encoder_output=model(mel)."
            if stack == "decoder"
            else "encoder_output is given, which the encoder is about to compute; leave it out."
        )
    if stack == "decoder" and tokens is not None:
        raise InputError("tokens are given, but the stream already holds them; leave them out.")
    if tokens is not None:
        cfg.need_decoder()
        check_tokens(tokens, cfg.d_vocab, cfg.n_text_ctx)
        decoder.check_encoder_output(resid, tokens)
    if encoder_output is not None:
        decoder.check_encoder_output(encoder_output, resid[..., 0])


_PASSES_ON_TO = {
    "run_with_hooks": "forward",
    "run_with_cache": "forward",
    "run_with_saes": "forward",
    "run_with_hooks_with_saes": "run_with_hooks",
    "run_with_cache_with_saes": "run_with_cache",
}
"""The runs, and what gets the arguments that they do not know."""
_Model = TypeVar("_Model", bound=type[WhisperBase])


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
