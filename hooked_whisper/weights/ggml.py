"""whisper.cpp's files: sizes, mel filters and tokens, then the tensors, each after its name.

Names are OpenAI's; matrices are in float32 or float16, or quantised in blocks of 32 or 256
numbers, which the `gguf` package turns into float32 as ggml itself does.

Source: `convert-pt-to-ggml.py`, `quantize.cpp` and `whisper_model_load` in whisper.cpp.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hooked_whisper.errors import ArchitectureError, CheckpointError, shown
from hooked_whisper.weights.files import PieceTensor, StoredTensor
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.openai import DIMS, config_from_dims
from hooked_whisper.weights.pieces import RawTensor
from hooked_whisper.weights.rename import match_tensors, openai_name
from hooked_whisper.weights.vocabulary import as_it_says, told_by_words

GGML_MAGIC = b"lmgg"
"""0x67676d6c, little end first."""

_DIMS = (
    "n_vocab",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
    "n_mels",
)
"""OpenAI's dimensions in the file's order."""
_FLOATS = {0: torch.float32, 1: torch.float16}
_BLOCKS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}
"""Name, numbers in a block and its bytes, by ggml's number of the type."""
_QUANTISATION = 2
"""The layout of blocks since May 2023; the file's type holds it in thousands."""
_N_FREQUENCIES = 201
_MOST_TENSORS, _LONGEST_NAME, _MOST_AXES = 10_000, 200, 4


@dataclass(frozen=True)
class BlockTensor(PieceTensor):
    """A matrix whose rows are quantised in blocks."""

    blocks: RawTensor
    """Their bytes, row after row."""
    shape: tuple[int, ...]
    kind: str
    dtype: torch.dtype = torch.float32

    @property
    def key(self) -> str:
        """Its name in the file."""
        return self.blocks.key

    def rows(self, start: int, stop: int) -> Tensor:
        quants = _gguf().quants
        kind = _gguf().GGMLQuantizationType[self.kind]
        values = quants.dequantize(self.blocks.rows(start, stop).numpy(), kind)
        return torch.from_numpy(values).reshape(stop - start, *self.shape[1:])


def read_ggml_file(path: Path, d_vocab: int | None = None) -> LoadedWeights:
    """Weights of a file that whisper.cpp runs."""
    n_held = path.stat().st_size
    try:
        with path.open("rb") as file:
            file.seek(len(GGML_MAGIC))
            dims = dict(zip(_DIMS, _numbers(file, len(_DIMS)), strict=True))
            (file_type,) = _numbers(file, 1)
            _skip_filters(file, dims["n_mels"], path)
            tokens = _read_tokens(file)
            held = _read_tensors(file, path, n_held)
    except (OSError, ValueError, struct.error) as error:
        if isinstance(error, (ArchitectureError, CheckpointError)):
            raise
        raise CheckpointError(
            f"{path} cannot be read as a whisper.cpp model ({str(error)[:120]}): it was cut short, "
            "damaged, or is another kind of file. Download or convert it again."
        ) from error
    cfg = config_from_dims({name: dims[name] for name in DIMS}, path.stem, f"the sizes in {path}")
    _check_layout(held, file_type, path)
    loaded = LoadedWeights(
        cfg=cfg, tensors=match_tensors(held, cfg, openai_name, str(path)), source=str(path)
    )
    return as_it_says(loaded, told_by_words(tokens, path.name), d_vocab)


def _skip_filters(file: BinaryIO, n_mels: int, path: Path) -> None:
    """Pass over the mel filters, which are those of `to_mel` in every Whisper of this size."""
    n_bands, n_frequencies = _numbers(file, 2)
    if (n_bands, n_frequencies) != (n_mels, _N_FREQUENCIES) or not 0 < n_mels < 2**16:
        raise ArchitectureError(
            f"{path} has {n_bands} mel filters of {n_frequencies} frequencies and n_mels {n_mels}; "
            f"Whisper's are n_mels filters of {_N_FREQUENCIES}."
        )
    file.seek(4 * n_bands * n_frequencies, 1)


def _read_tokens(file: BinaryIO) -> list[bytes]:
    (count,) = _numbers(file, 1)
    if not 0 <= count < 2**20:
        raise ValueError(f"it claims {count} tokens")
    tokens = []
    for _ in range(count):
        (length,) = _numbers(file, 1)
        if not 0 <= length < 2**12:
            raise ValueError(f"a token of it claims {length} bytes")
        tokens.append(file.read(length))
    return tokens


def _read_tensors(file: BinaryIO, path: Path, n_held: int) -> dict[str, StoredTensor]:
    """Every tensor by its name, none of them read yet."""
    found: dict[str, StoredTensor] = {}
    while (place := file.tell()) < n_held:
        n_axes, length, number = _numbers(file, 3)
        if not (1 <= n_axes <= _MOST_AXES and 0 < length <= _LONGEST_NAME):
            raise ValueError(f"no tensor begins at byte {place}")
        shape = tuple(reversed(_numbers(file, n_axes)))
        name = file.read(length).decode()
        if min(shape) < 1 or name in found or len(found) >= _MOST_TENSORS:
            raise ValueError(f"{name!r} is {shape}, or is there twice")
        raw, found[name] = _tensor(path, name, shape, number, file.tell())
        if file.tell() + raw.n_bytes > n_held:
            raise ValueError(f"{name!r} lies beyond its end")
        file.seek(raw.n_bytes, 1)
    return found


def _tensor(
    path: Path, name: str, shape: tuple[int, ...], number: int, place: int
) -> tuple[RawTensor, StoredTensor]:
    """What lies in the file, and the tensor that it is."""
    if number in _FLOATS:
        if len(shape) == 2 and shape[1] == 1 and name.endswith(".bias"):
            shape = shape[:1]  # those of the convolutions are columns
        raw = RawTensor(path, name, shape, _FLOATS[number], place)
        return raw, raw
    if number not in _BLOCKS:
        kinds = ["F32", "F16", *(kind for kind, _, _ in _BLOCKS.values())]
        raise CheckpointError(
            f"{shown(name)} in {path} is of ggml's type {number}; read are {', '.join(kinds)}. "
            "Quantise the model to one of these."
        )
    kind, n_numbers, n_bytes = _BLOCKS[number]
    if shape[-1] % n_numbers:
        raise ValueError(f"{name!r} is {shape}, and its rows are no whole blocks of {n_numbers}")
    row_bytes = math.prod(shape[1:]) // n_numbers * n_bytes
    raw = RawTensor(path, name, (shape[0], row_bytes), torch.uint8, place)
    return raw, BlockTensor(raw, shape, kind)


def _check_layout(held: dict[str, StoredTensor], file_type: int, path: Path) -> None:
    """Refuse an older layout of blocks, and quantised tensors where gguf is not installed."""
    first = next((tensor for tensor in held.values() if isinstance(tensor, BlockTensor)), None)
    if first is None:
        return
    if file_type // 1000 != _QUANTISATION:
        raise CheckpointError(
            f"{path} is quantised in version {file_type // 1000} of ggml's blocks, and version "
            f"{_QUANTISATION} is read (since May 2023). Quantise the model again."
        )
    try:
        _gguf()
    except ImportError as error:
        raise CheckpointError(
            f"{first.key!r} in {path} is in {first.kind}, which the gguf package dequantises, and "
            f"that cannot be imported ({error}). Install it: pip install 'hooked-whisper[ggml]'"
        ) from error


def _gguf() -> Any:
    import gguf

    return gguf


def _numbers(file: BinaryIO, count: int) -> tuple[int, ...]:
    """Signed numbers of 4 bytes; struct.error where the file ends."""
    return struct.unpack(f"<{count}i", file.read(4 * count))
