"""OpenAI's Whisper with every internal activation named, readable and editable."""

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.generation.generate import Generation
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.hooks.root import HookedEncoderDecoder
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.audio import load_audio
from hooked_whisper.speech.mel import Mel

__version__ = "0.1.0"

__all__ = [
    "HookPoint",
    "HookedEncoderDecoder",
    "HookedWhisper",
    "HookedWhisperConfig",
    "Generation",
    "Mel",
    "WhisperCache",
    "load_audio",
]
