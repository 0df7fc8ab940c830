"""openai-whisper's decoding for vocabularies with added tokens, which it does not know.

Its functions build their tokenizer by `get_tokenizer(multilingual, num_languages)`, a global name
of their modules. Here they run with another meaning of that name, which nothing else sees.
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

from hooked_whisper.config import HookedWhisperConfig


def decoding_task(cfg: HookedWhisperConfig) -> Callable[..., Any]:
    """openai-whisper's `DecodingTask`, with the model's own tokens."""
    from whisper.decoding import DecodingTask

    return DecodingTask if cfg.vocabulary is None else partial(_own_task, cfg)


def decode(cfg: HookedWhisperConfig) -> Callable[..., Any]:
    """openai-whisper's `decode`, with the model's own tokens."""
    from whisper.decoding import decode

    if cfg.vocabulary is None:
        return decode
    return _with_names(decode.__wrapped__, DecodingTask=decoding_task(cfg))


def transcribe(cfg: HookedWhisperConfig) -> Callable[..., Any]:
    """openai-whisper's `transcribe`, with the model's own tokens."""
    from whisper.transcribe import transcribe

    if cfg.vocabulary is None:
        return transcribe
    return _with_names(transcribe, get_tokenizer=partial(_own_tokenizer, cfg, False))


def _own_task(cfg: HookedWhisperConfig, model: Any, options: Any) -> Any:
    from whisper.decoding import DecodingTask

    class OwnTask(DecodingTask):
        __init__ = _with_names(
            DecodingTask.__init__,
            get_tokenizer=partial(_own_tokenizer, cfg, not options.without_timestamps),
        )

    return OwnTask(model, options)


def _own_tokenizer(cfg: HookedWhisperConfig, timestamps: bool, *args: Any, **options: Any) -> Any:
    from whisper.tokenizer import get_tokenizer

    from hooked_whisper.speech.added_tokens import with_added_tokens

    return with_added_tokens(get_tokenizer(*args, **options), cfg, timestamps)


def _with_names(function: Any, **names: Any) -> Any:
    """A function that finds other things under some of the global names in it."""
    own = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own
