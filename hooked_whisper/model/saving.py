"""A model written to the disk, for this package or for others."""

import os
from typing import Literal

from hooked_whisper.model.calls import WhisperBase
from hooked_whisper.weights.writing import write_weights


def save_pretrained(
    model: WhisperBase,
    path: str | os.PathLike[str],
    *,
    format: Literal["hooked_whisper", "huggingface", "openai"] = "hooked_whisper",
) -> None:
    """Write the weights, with the configuration and the alignment heads.

    Args:
        model: What is written, in the dtype that it is in.
        path: A folder; for OpenAI's format, which has no alignment heads, a new file.
        format: Which package reads it: this one, transformers (safetensors for
            `WhisperForConditionalGeneration`, and the files of its `WhisperProcessor`), or
            openai-whisper (`whisper.load_model`).

    Raises:
        SourceError: No path, or another model is there.
        ConfigError: Weights that were processed, which the others' models cannot hold.
        StoreWriteError: The disk is full, or forbids it; what was there stays.
    """
    is_meta = model.device.type == "meta"  # which is refused, as it has no values
    heads = None if is_meta else model.alignment_heads.to_dense().cpu()
    write_weights(path, model.cfg, model.state_dict(), heads, format)
