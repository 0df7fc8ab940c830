"""Files in whisper.cpp's format, as its converter and its quantiser write them."""

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Quantise = Callable[[np.ndarray], bytes | np.ndarray]
"""Rows of float32 to blocks."""

FLOATS = {"f32": (0, np.float32), "f16": (1, np.float16)}
NUMBERS = {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
NUMBERS |= {"q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14}
"""ggml's numbers of its types."""
KEPT = ("encoder.positional_embedding", "decoder.positional_embedding")
"""Matrices that stay in float32 in every file."""


def write_ggml(
    path: Path,
    dims: Mapping[str, int],
    state: Mapping[str, Any],
    kind: str = "f16",
    *,
    quantise: Quantise | None = None,
    words: Sequence[bytes] = (b"a", b"", b"\xff"),
    filters: np.ndarray | None = None,
    version: int = 2,
) -> dict[str, np.ndarray]:
    """Write a model; returns what every tensor is in the file, floats by themselves.

    Args:
        dims: OpenAI's dimensions.
        state: OpenAI's state dict.
        kind: The type of its matrices.
        quantise: Makes blocks of rows, where `kind` is no float.
        words: The vocabulary without its special tokens.
        filters: The mel filters; zeros where there are none.
        version: Of the blocks' layout.
    """
    order = "n_vocab n_audio_ctx n_audio_state n_audio_head n_audio_layer n_text_ctx n_text_state"
    names = [*order.split(), "n_text_head", "n_text_layer", "n_mels"]
    file_type = FLOATS[kind][0] if kind in FLOATS else 1000 * version + NUMBERS[kind]
    if filters is None:
        filters = np.zeros((dims["n_mels"], 201), np.float32)
    written = {}
    with path.open("wb") as file:
        file.write(struct.pack("<I", 0x67676D6C))
        file.write(struct.pack("<11i", *(dims[name] for name in names), file_type))
        file.write(struct.pack("<2i", *filters.shape) + filters.astype("<f4").tobytes())
        file.write(struct.pack("<i", len(words)))
        for word in words:
            file.write(struct.pack("<i", len(word)) + word)
        for name, tensor in state.items():
            values = tensor.squeeze().float().numpy()
            number, dtype = FLOATS["f16" if kind not in FLOATS else kind]
            if values.ndim < 2 or name in KEPT:
                number, dtype = FLOATS["f32"]
            if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
                values = values[:, None]
            data = values.astype(dtype)
            if quantise is not None and values.ndim == 2 and dtype == np.float16:
                number, data = NUMBERS[kind], np.frombuffer(bytes(quantise(values)), np.uint8)
            shape = values.shape[::-1]
            file.write(struct.pack("<3i", len(shape), len(name), number))
            file.write(struct.pack(f"<{len(shape)}i", *shape) + name.encode() + data.tobytes())
            written[name] = data
    return written
