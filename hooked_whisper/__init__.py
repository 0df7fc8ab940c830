"""OpenAI's Whisper with every internal activation named, readable and editable."""

import typing

if typing.TYPE_CHECKING:
    from hooked_whisper.config import HookedWhisperConfig, Vocabulary
    from hooked_whisper.hooks.cache import WhisperCache
    from hooked_whisper.hooks.points import HookPoint
    from hooked_whisper.hooks.root import HookedEncoderDecoder
    from hooked_whisper.model.generate import Generation
    from hooked_whisper.model.whisper import HookedWhisper
    from hooked_whisper.speech.audio import load_audio
    from hooked_whisper.speech.mel import Mel

__version__ = "0.1.0"

__all__ = [
    "HookedWhisper",
    "HookedWhisperConfig",
    "Vocabulary",
    "WhisperCache",
    "Generation",
    "Mel",
    "load_audio",
    "HookPoint",
    "HookedEncoderDecoder",
]

_HOMES = {
    "HookPoint": "hooks.points",
    "HookedEncoderDecoder": "hooks.root",
    "HookedWhisper": "model.whisper",
    "HookedWhisperConfig": "config",
    "Vocabulary": "config",
    "Generation": "model.generate",
    "Mel": "speech.mel",
    "WhisperCache": "hooks.cache",
    "load_audio": "speech.audio",
}

if not typing.TYPE_CHECKING:  # which would take every name for known

    def __getattr__(name: str) -> object:
        """A public name, imported when it is first used: PyTorch takes seconds to load."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        from hooked_whisper.arguments import explained

        found = explained(getattr(import_module(f"{__name__}.{_HOMES[name]}"), name))
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__} - {"typing"})
