"""Tensors whose bytes lie at a known place of a file, and what becomes of them in reading.

They are read into the memory where they stay: a mapped file's pages would count as this process's,
and every page of new memory that is only passed through costs as much as reading it.
"""

import json
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooked_whisper.errors import CheckpointError, shown
from hooked_whisper.io import bytes_of
from hooked_whisper.weights.files import Look, PieceTensor, new_memory

_SAFETENSORS_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I32": torch.int32,
    "I64": torch.int64,
    "U32": torch.uint32,
}


@dataclass(frozen=True)
class RawTensor(PieceTensor):
    """Numbers as they lie in a file, little end first, row after row."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: int
    """The first byte's."""

    crc: int | None = None
    """CRC-32 of some bytes before it and all of its own, where the file has that."""
    crc_before: int = 0
    """Of the bytes before it."""

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Tensor:
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return self._read(start, torch.empty(shape, dtype=self.dtype))

    def take(self, device: torch.device, dtype: torch.dtype, look: Look | None = None) -> Tensor:
        is_there = device.type == "cpu" and dtype == self.dtype
        out, crc = new_memory(self.shape, device, dtype), self.crc_before
        for rows in self.steps():
            here = out[rows]
            piece = here if is_there else torch.empty(here.shape, dtype=self.dtype)
            self._read(0 if rows is ... else rows.start, piece)
            if self.crc is not None:
                crc = zlib.crc32(bytes_of(piece), crc)
            if not is_there:
                here.copy_(piece)
            if look is not None:
                look(here)
        if self.crc not in (None, crc):
            raise CheckpointError(
                f"{self.key!r} in {self.path} is damaged: its checksum is {crc:08x}, and the file "
                f"says {self.crc:08x}. Download or save it again."
            )
        return out

    def _read(self, start: int, values: Tensor) -> Tensor:
        """The values of some rows, from a row on."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        read_into(self.path, self.place + start * row_bytes, bytes_of(values))
        return values


@dataclass(frozen=True)
class SomeRows(PieceTensor):
    """Rows of another tensor, from `first` on."""

    whole: PieceTensor
    key: str
    first: int
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.n_rows, *self.whole.shape[1:])

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.whole.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        return self.whole.rows(self.first + start, self.first + stop)


@dataclass(frozen=True)
class ScaledTensor(PieceTensor):
    """Integers that stand for themselves times 1 / scale, in float32.

    The scale has a number for each row, or one for all of them.
    """

    integers: RawTensor
    scale: RawTensor
    dtype: torch.dtype = torch.float32

    @property
    def key(self) -> str:
        """The integers' name."""
        return self.integers.key

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.integers.shape

    def rows(self, start: int, stop: int) -> Tensor:
        scale = self.scale.rows(start, stop) if self.scale.shape else self.scale.rows(0, 1)
        factor = 1 / scale.reshape(-1, *[1] * (len(self.shape) - 1))
        return self.integers.rows(start, stop).float().mul_(factor)


def safetensors_tensors(path: Path, header: dict[str, str] | None = None) -> dict[str, RawTensor]:
    """Every tensor of a safetensors file by its name there.

    Args:
        path: The file.
        header: Takes the texts that are in the file beside its tensors.

    Raises:
        CheckpointError: Another kind of file, one that was cut short, or quantised tensors.
    """
    try:
        with safe_open(str(path), framework="pt") as file:  # checks sizes and places
            texts = file.metadata() or {}
        with path.open("rb") as opened:
            n_header = int.from_bytes(opened.read(8), "little")
            rows = json.loads(opened.read(n_header))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): it was cut short or is "
            "another kind of file. Download or save it again."
        ) from error
    if header is not None:
        header |= texts
    rows.pop("__metadata__", None)
    found: dict[str, RawTensor] = {}
    for key, row in rows.items():
        dtype = _SAFETENSORS_DTYPES.get(row["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"{shown(key)} in {path} holds {row['dtype']} values; weights are F16, "
                "BF16, F32 or F64. Save the model unquantised."
            )
        place = 8 + n_header + row["data_offsets"][0]
        found[key] = RawTensor(path, key, tuple(row["shape"]), dtype, place)
    return found


@dataclass(frozen=True)
class ZipPart:
    """A part of a zip that lies in it as it is."""

    place: int
    n_bytes: int
    crc: int | None


def zip_parts(path: Path) -> dict[str, ZipPart]:
    """The parts of a zip by name.

    Raises:
        CheckpointError: Parts that are compressed or overlap, and so hold more than the file.
    """
    found: dict[str, ZipPart] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise CheckpointError(
                f"{path} holds compressed parts, or ones that overlap: they would take far more "
                "memory than the file has bytes. Save it again, uncompressed."
            )
        for member in members:
            file.seek(member.header_offset + 26)
            n_name, n_extra = struct.unpack("<2H", file.read(4))
            place = member.header_offset + 30 + n_name + n_extra
            # torch.save writes 0 where it was told to count none.
            found[member.filename] = ZipPart(place, member.file_size, member.CRC or None)
    return found


def read_part(path: Path, part: ZipPart) -> bytes:
    """The bytes of a part of a zip."""
    data = bytearray(part.n_bytes)
    read_into(path, part.place, memoryview(data))
    return bytes(data)


def read_into(path: Path, place: int, data: memoryview) -> None:
    """Fill memory with the bytes of a file from a place on.

    Raises:
        CheckpointError: The file ends before, or cannot be read.
    """
    n_read = 0
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while n_read < len(data):  # Linux reads 2 GB at most
                n_more = os.preadv(file, [data[n_read:]], place + n_read)
                if not n_more:
                    break
                n_read += n_more
        finally:
            os.close(file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    if n_read < len(data):
        raise CheckpointError(
            f"{path} ends at byte {place + n_read}, and {len(data)} were to be read from {place} "
            "on: it was cut short. Download or convert it again."
        )
