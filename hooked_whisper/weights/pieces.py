"""Tensors whose bytes lie at a known place of a file, and what becomes of them in reading."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hooked_whisper.errors import CheckpointError
from hooked_whisper.weights.files import PieceTensor


@dataclass(frozen=True)
class RawTensor(PieceTensor):
    """Numbers as they lie in a file, little end first, row after row."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: int
    """The first byte's."""

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Tensor:
        row_shape = self.shape[1:]
        row_bytes = math.prod(row_shape) * self.dtype.itemsize
        data = read_bytes(self.path, self.place + start * row_bytes, (stop - start) * row_bytes)
        values = torch.frombuffer(data, dtype=self.dtype)
        return values.reshape(stop - start, *row_shape) if self.shape else values.reshape(())


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


def read_bytes(path: Path, place: int, n_bytes: int) -> bytearray:
    """Bytes of a file from a place on.

    Raises:
        CheckpointError: The file ends before, or cannot be read.
    """
    data = bytearray(n_bytes)
    try:
        with path.open("rb") as file:
            file.seek(place)
            n_read = file.readinto(data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    if n_read < n_bytes:
        raise CheckpointError(
            f"{path} ends at byte {place + n_read}, and {n_bytes} were to be read from {place} on: "
            "it was cut short. Download or convert it again."
        )
    return data
