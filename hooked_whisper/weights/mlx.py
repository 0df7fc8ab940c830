"""MLX's folders, which Apple's `mlx_whisper` runs: `config.json` and one file of weights.

Names are OpenAI's but for the MLP's; kernels of convolutions have their last two axes exchanged,
and the encoder's positions are left out, because they are computed. A quantised matrix is integers
of a few bits in words of 32, which stand for themselves times a scale plus a bias, one of each for
a group of neighbours in a row.

Source: `convert.py` and `whisper.py` in mlx-examples; `mlx.nn.quantize`.
"""

import io
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import ArchitectureError, CheckpointError, WeightNameError, shown
from hooked_whisper.weights.files import (
    FLOAT_DTYPES,
    MemoryTensor,
    PieceTensor,
    StoredTensor,
    check_floats,
    is_file,
)
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.native import CONFIG_FILE, MAY_BE_OMITTED, check_omitted, heads_mask
from hooked_whisper.weights.openai import DIMS, config_from_dims
from hooked_whisper.weights.pieces import (
    RawTensor,
    read_part,
    safetensors_tensors,
    zip_parts,
)
from hooked_whisper.weights.rename import match_tensors, openai_name
from hooked_whisper.weights.vocabulary import as_it_says, told_by_files

MLX_FILES = ("weights.safetensors", "weights.npz", "model.safetensors")
"""Where the weights are, the first that is there."""

_HEADS = "alignment_heads"
_DTYPES = {
    "<f2": torch.float16,
    "<f4": torch.float32,
    "<f8": torch.float64,
    "<u4": torch.int32,
    "<i4": torch.int32,
    "<i8": torch.int64,
}
_MOST_HEADS = 10_000
_MOST_COLUMN_BYTES = 2**20
_MOST_HEADER_BYTES = 2**12
_BITS = (2, 4, 8)
"""Those of which a word holds a whole number."""


@dataclass(frozen=True)
class KernelTensor(PieceTensor):
    """The kernel of a convolution with its last two axes exchanged."""

    stored: PieceTensor
    key: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        out, size, n_in = self.stored.shape
        return (out, n_in, size)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.stored.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        return self.stored.rows(start, stop).transpose(1, 2)


@dataclass(frozen=True)
class GroupTensor(PieceTensor):
    """A matrix of small integers, with a scale and a bias for each group in a row."""

    words: PieceTensor
    scales: PieceTensor
    biases: PieceTensor
    n_bits: int
    group: int
    key: str
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.words.shape[0], self.words.shape[1] * (32 // self.n_bits))

    def rows(self, start: int, stop: int) -> Tensor:
        words = self.words.rows(start, stop).view(torch.uint8)
        shifts = torch.arange(0, 8, self.n_bits, dtype=torch.uint8)
        integers = words[..., None].bitwise_right_shift(shifts) & (2**self.n_bits - 1)
        grouped = integers.reshape(stop - start, -1, self.group).float()
        scales, biases = (part.rows(start, stop).float() for part in (self.scales, self.biases))
        return grouped.mul_(scales[..., None]).add_(biases[..., None]).flatten(1)


def is_mlx(values: Mapping[str, Any]) -> bool:
    """Whether a `config.json` has OpenAI's dimensions, as MLX's folders do."""
    return "n_audio_state" in values


def read_mlx_folder(
    folder: Path, values: Mapping[str, Any], d_vocab: int | None = None
) -> LoadedWeights:
    """Weights of a folder of `mlx_whisper`.

    Args:
        values: What its `config.json` holds.
        d_vocab: As in `load_weights`.
    """
    config = folder / CONFIG_FILE
    dims = {name: values[name] for name in DIMS if name in values}
    cfg = config_from_dims(dims, folder.resolve().name, f"the dimensions in {config}")
    path = next((folder / name for name in MLX_FILES if is_file(folder / name)), None)
    if path is None:
        raise CheckpointError(f"{folder} has none of {', '.join(MLX_FILES)} beside {CONFIG_FILE}.")
    stored: dict[str, StoredTensor] = (
        npz_tensors(path) if path.suffix == ".npz" else {**safetensors_tensors(path)}
    )
    pairs = _pairs(stored.pop(_HEADS)) if _HEADS in stored else None
    stored = _ungroup(stored, values.get("quantization"), path)
    check_floats(stored, path)
    omitted = [name for name in MAY_BE_OMITTED if name not in stored]
    check_omitted(omitted, cfg, config)
    loaded = LoadedWeights(
        cfg=cfg,
        tensors=match_tensors(_turn_kernels(stored), cfg, _mlx_name, str(path), omitted),
        source=str(path),
        alignment_heads=heads_mask(pairs, cfg, path),
        omitted=tuple(omitted),
    )
    return as_it_says(loaded, told_by_files(folder), d_vocab)


def npz_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every array of a file that `numpy.savez` wrote, by its name there.

    Raises:
        CheckpointError: Another kind of file, one that was cut short, or compressed, or that
            claims more than it holds.
    """
    from numpy.lib import format as npy

    found: dict[str, StoredTensor] = {}
    try:
        for file_name, part in zip_parts(path).items():
            begin = read_part(path, replace(part, n_bytes=min(part.n_bytes, _MOST_HEADER_BYTES)))
            file = io.BytesIO(begin)
            version = npy.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"{file_name!r} is in version {version} of npy")
            shape, by_columns, dtype = npy.read_array_header_1_0(file)
            place, header = part.place + file.tell(), begin[: file.tell()]
            name = file_name.removesuffix(".npy")
            if dtype.str not in _DTYPES:
                raise ValueError(f"{name!r} holds {dtype.str}")
            order, kind = tuple(shape[::-1] if by_columns else shape), _DTYPES[dtype.str]
            tensor = RawTensor(path, name, order, kind, place, part.crc, zlib.crc32(header))
            if tensor.n_bytes != part.n_bytes - len(header):
                raise ValueError(f"{name!r} is {shape} and has {part.n_bytes} bytes")
            found[name] = _by_rows(tensor) if by_columns and len(shape) > 1 else tensor
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and numpy raise a dozen kinds on what is damaged
        raise CheckpointError(
            f"{path} cannot be read as numpy arrays ({str(error)[:120]}): it was cut short, "
            "damaged, or is another kind of file. Download or save it again."
        ) from error
    return found


def _by_rows(tensor: RawTensor) -> StoredTensor:
    """A small matrix that lies column by column, as MLX writes the alignment heads."""
    if len(tensor.shape) != 2 or tensor.n_bytes > _MOST_COLUMN_BYTES:
        raise ValueError(f"{tensor.key!r} lies column by column")
    return MemoryTensor(tensor.rows(0, tensor.shape[0]).T.contiguous(), owned=True)


def _mlx_name(name: str) -> str:
    return re.sub(r"\.mlp\.([02])\.", lambda m: f".mlp{1 + int(m[1]) // 2}.", openai_name(name))


def _pairs(heads: StoredTensor) -> list[list[int]] | None:
    """Heads as pairs of layer and head; None where they are none, or too many."""
    if len(heads.shape) != 2 or heads.shape[0] > _MOST_HEADS:
        return None
    pairs: list[list[int]] = heads.take(torch.device("cpu"), torch.int64).tolist()
    return pairs


def _turn_kernels(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {
        name: KernelTensor(tensor, name)
        if re.fullmatch(r"encoder\.conv\d\.weight", name)
        and len(tensor.shape) == 3
        and isinstance(tensor, PieceTensor)
        else tensor
        for name, tensor in stored.items()
    }


def _ungroup(stored: dict[str, StoredTensor], how: Any, path: Path) -> dict[str, StoredTensor]:
    """Matrices with scales and biases as one tensor each."""
    if how is None:
        return stored
    n_bits, group = (
        how.get(key) if isinstance(how, dict) else None for key in ("bits", "group_size")
    )
    if n_bits not in _BITS or type(group) is not int or group < 1:
        raise ArchitectureError(
            f"'quantization' in {CONFIG_FILE} beside {path.name} is {shown(how)}; read are bits of "
            f"{_BITS} with a group_size. Convert the model with one of these, or unquantised."
        )
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        base = name.removesuffix(".weight")
        scales, biases = (stored.get(f"{base}.{part}") for part in ("scales", "biases"))
        if name.endswith((".scales", ".biases")):
            if name.rpartition(".")[0] + ".weight" not in stored:
                raise WeightNameError(f"{path} holds {name!r} without a weight.")
        elif name == base or scales is None or biases is None:
            found[name] = tensor
        else:
            found[name] = _group(name, (tensor, scales, biases), n_bits, group, path)
    return found


def _group(
    name: str, parts: tuple[StoredTensor, ...], n_bits: int, group: int, path: Path
) -> GroupTensor:
    """Words, scales and biases as the matrix that they are, once they fit."""
    stored = [part for part in parts if isinstance(part, PieceTensor) and len(part.shape) == 2]
    if len(stored) == 3 and stored[0].dtype in (torch.int32, torch.uint32):
        whole = GroupTensor(stored[0], stored[1], stored[2], n_bits, group, name)
        if all(
            (part.shape[0], part.shape[1] * group) == whole.shape and part.dtype in FLOAT_DTYPES
            for part in stored[1:]
        ):
            return whole
    shapes = ", ".join(f"{part.shape} {str(part.dtype).removeprefix('torch.')}" for part in parts)
    raise CheckpointError(
        f"words, scales and biases of {name!r} in {path} are {shapes}; a group is of {group} "
        f"numbers of {n_bits} bits. Convert the model again."
    )
