"""What memory's processes have in common: everything imported, nothing run."""

import whisper.decoding
import whisper.model
import whisper.tokenizer
import whisper.transcribe  # noqa: F401
from transformers import WhisperForConditionalGeneration  # noqa: F401
from transformers.modeling_outputs import BaseModelOutput  # noqa: F401

import hooked_whisper.model.whisper  # noqa: F401
