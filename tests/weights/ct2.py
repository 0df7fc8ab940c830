"""Folders in CTranslate2's format, written by its own converter."""

import copy
from pathlib import Path
from typing import Any


def convert_to_ct2(model: Any, folder: Path, quantization: str | None, tokens: list[str]) -> Path:
    """A transformers Whisper as CTranslate2's converter writes it.

    Args:
        model: Left as it is; the converter scales weights in place.
        folder: Where it is written.
        quantization: As the converter takes it; None keeps what the weights are.
        tokens: The vocabulary.
    """
    from ctranslate2.converters import TransformersConverter

    class Tokenizer:
        additional_special_tokens = ()

        def get_vocab(self) -> dict[str, int]:
            return {token: number for number, token in enumerate(tokens)}

    class Converter(TransformersConverter):
        """With a model and a vocabulary in memory."""

        def load_model(self, *_: Any, **__: Any) -> Any:
            return copy.deepcopy(model)

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return Tokenizer()

    source = folder.with_name(f"{folder.name}-config")
    model.config.save_pretrained(source)
    Converter(str(source)).convert(str(folder), quantization=quantization, force=True)
    return folder


def small_vocabulary(n_tokens: int) -> list[str]:
    """Tokens of a vocabulary that is none of Whisper's, with those that CTranslate2 looks for."""
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|nospeech|>", "<|notimestamps|>"]
    return [f"t{number}" for number in range(n_tokens - len(special))] + special
