"""Checksums of files, of models and of what describes them: XXH3, 128 bits, in hexadecimal.

It finds every damage that happens by chance, at the speed of memory. `xxhsum
-H2` computes the same numbers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

_PIECE_BYTES = 2**22


def checksum_of_file(path: str | Path) -> str:
    """Of a file's bytes."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            state.update(piece)
    return state.hexdigest()


def checksum_of_json(value: Any) -> str:
    """Of a value that JSON can hold, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return xxhash.xxh3_128_hexdigest(text.encode())


def checksum_of_audio(audio: Any) -> str:
    """Of a recording: a file's bytes, wherever they are, or samples with their rate.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(audio, str | Path):
        return checksum_of_file(audio)
    if isinstance(audio, bytes):
        return xxhash.xxh3_128_hexdigest(audio)
    if hasattr(audio, "n_frames"):  # a Mel of one recording
        audio = (audio.values, int(audio.n_frames[0]))
    samples, rate_hz = audio
    values = samples.numpy(force=True) if isinstance(samples, Tensor) else np.asarray(samples)
    state = xxhash.xxh3_128(f"{values.dtype} {values.shape} {rate_hz}".encode())
    state.update(np.ascontiguousarray(values).data)
    return state.hexdigest()


def checksum_of_model(model: nn.Module) -> str:
    """Of every parameter and buffer: name, dtype, shape and bytes."""
    state = xxhash.xxh3_128()
    for name, value in sorted(model.state_dict().items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        state.update(bytes_of(value.detach().cpu().contiguous()))
    return state.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
