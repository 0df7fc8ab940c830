"""Finding, checking and writing the weights of a Whisper."""

from hooked_whisper.weights.huggingface import from_hf_state
from hooked_whisper.weights.loaded import LoadedWeights, assign_weights
from hooked_whisper.weights.native import save_weights
from hooked_whisper.weights.openai import from_openai_state
from hooked_whisper.weights.registry import Source, load_weights, resolve
from hooked_whisper.weights.writing import write_weights

__all__ = [
    "LoadedWeights",
    "Source",
    "assign_weights",
    "from_hf_state",
    "from_openai_state",
    "load_weights",
    "resolve",
    "save_weights",
    "write_weights",
]
