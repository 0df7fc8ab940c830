"""Audio in, log-mel and tokens: what a Whisper reads and writes.

Nothing here knows a model; sizes come in as numbers or as a configuration.
"""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.speech.audio import load_audio
from hooked_whisper.speech.labels import TimedLabel
from hooked_whisper.speech.mel import Mel, check_mel, to_mel
from hooked_whisper.speech.phones import MANNER, PLACE
from hooked_whisper.speech.tokens import (
    check_tokens,
    get_tokenizer,
    has_tokenizer,
    to_str_tokens,
    to_string,
    to_tokens,
)
from hooked_whisper.speech.wer import comparable, n_wrong_words, word_error_rate

__all__ = [
    "MANNER",
    "PLACE",
    "Mel",
    "TimedLabel",
    "check_mel",
    "check_tokens",
    "comparable",
    "get_tokenizer",
    "has_tokenizer",
    "load_audio",
    "n_wrong_words",
    "to_mel",
    "to_str_tokens",
    "to_string",
    "to_tokens",
    "word_error_rate",
]

explain_arguments(globals())
