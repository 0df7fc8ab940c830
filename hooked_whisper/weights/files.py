"""Tensors that are not in the model yet, read piece by piece where they are converted.

Loading so needs little more than the weights, whatever the dtype of the file and of the model, and
a piece is still in the processor's cache when it is looked at.
"""

import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hooked_whisper import io
from hooked_whisper.errors import ArchitectureError, CheckpointError, shown

PIECE_BYTES = 2**19
"""Most bytes that are read and converted at once."""
_HUGE_BYTES = 2**21
"""Of a huge page."""

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


Look = Callable[[Tensor], None]


@runtime_checkable
class StoredTensor(Protocol):
    """A tensor that is not in the model yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype where it is stored."""

    def take(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Its values, in memory that belongs to the caller alone."""


@dataclass(frozen=True)
class MemoryTensor:
    """A tensor that is in memory already.

    `owned` says that nobody else will use it: then it is handed over instead
    of copied, where device and dtype allow.
    """

    value: Tensor
    owned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def take(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        whole = self.value.untyped_storage().nbytes() == self.value.nbytes
        hand_over = self.owned and whole and self.value.is_contiguous()
        taken = self.value.detach().to(device=device, dtype=dtype, copy=not hand_over)
        return taken.contiguous()


@dataclass(frozen=True)
class RowsTensor:
    """An embedding of which only some rows are stored; all others share one row."""

    rows: StoredTensor
    row_ids: StoredTensor
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, *self.rows.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def take(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        rows = self.rows.take(device, dtype)
        row_ids = self.row_ids.take(device, torch.int64)
        whole = rows[-1].repeat(self.n_rows, 1)
        whole[row_ids] = rows[:-1]
        return whole


@dataclass(frozen=True)
class FirstRows:
    """The first rows of another tensor."""

    whole: StoredTensor
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, *self.whole.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    def take(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.whole.take(device, dtype)[: self.n_rows].clone()


class PieceTensor:
    """A tensor that is read some rows at a time; a subclass says how."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        """Its rows from `start` to before `stop`; the whole of what has no axes."""
        raise NotImplementedError

    def take(self, device: torch.device, dtype: torch.dtype, look: Look | None = None) -> Tensor:
        """Its values, in memory that belongs to the caller alone.

        Args:
            look: Sees every piece of them while the processor's cache has it.
        """
        out = new_memory(self.shape, device, dtype)
        for rows, piece in self.pieces():
            out[rows].copy_(piece)
            if look is not None:
                look(out[rows])
        return out

    def pieces(self) -> Iterator[tuple[Any, Tensor]]:
        """Its values, some rows at a time, and which rows."""
        for rows in self.steps():
            yield rows, self.rows(0, 1) if rows is ... else self.rows(rows.start, rows.stop)

    def steps(self) -> Iterator[Any]:
        """Which rows are read at a time; `...` for what has no axes."""
        if not self.shape:
            yield ...
            return
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, PIECE_BYTES // max(1, row_bytes))
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))


def new_memory(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor to be filled; a large one is in huge pages where Linux has them.

    Small pages of new memory take longer to be had than to be filled.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or n_bytes < _HUGE_BYTES:
        return torch.empty(shape, device=device, dtype=dtype)
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # other systems, and a Linux without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)


def is_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return all(math.isfinite(bound) for bound in value.detach().aminmax())


def check_finite(name: str, value: Tensor, stored: StoredTensor, source: str) -> None:
    """Refuse NaN and infinity among weights that were copied."""
    if not is_finite(value):
        raise not_finite(name, value.dtype, stored, source)


def not_finite(name: str, dtype: torch.dtype, stored: StoredTensor, source: str) -> CheckpointError:
    """The error for a tensor that is not finite in a dtype.

    Args:
        name: Its name here; the file's own goes before it.
        dtype: What was wanted; it may hold less than the stored one.
        stored: Looked at again, to tell why.
    """
    name = getattr(stored, "key", name)
    largest = stored.take(torch.device("cpu"), stored.dtype).double().abs().max()
    if largest.isfinite():
        return CheckpointError(
            f"{name!r} in {source} holds values of up to {float(largest):.3g}, which overflow in "
            f"{str(dtype).removeprefix('torch.')}. Load it with dtype=torch.float32 or "
            "torch.bfloat16."
        )
    return CheckpointError(
        f"{name!r} in {source} holds NaN or infinite values. The training that made it diverged, "
        "or the file is damaged: use an earlier checkpoint, or download it again."
    )


def equal_tensors(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two stored tensors agree in shape, dtype and every value."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    cpu = torch.device("cpu")
    return torch.equal(first.take(cpu, first.dtype), second.take(cpu, second.dtype))


def check_plain(tensors: Mapping[Any, Any], path: object) -> None:
    """Refuse a dictionary that holds anything but dense floating-point tensors by name."""
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{shown(key)} in {path} is a {kind_of(value)}; weights are tensors by name."
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "meta" if value.is_meta else "quantised or sparse"
            raise CheckpointError(
                f"{shown(key)} in {path} is a {kind} tensor; weights are plain dense tensors."
            )
        if value.dtype not in FLOAT_DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
            raise CheckpointError(
                f"{shown(key)} in {path} holds {str(value.dtype).removeprefix('torch.')} values; "
                f"weights are one of {allowed}. Save the model unquantised."
            )


def kind_of(value: object) -> str:
    """What to call a value in errors; a tensor is one wherever it is."""
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__


def check_floats(stored: Mapping[str, StoredTensor], path: object) -> None:
    """Refuse integers among the weights of a file."""
    for key, tensor in stored.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{shown(key)} in {path} holds {tensor.dtype} values, not weights."
            )


def check_types(values: Mapping[Any, Any], types: Mapping[str, Any], source: object) -> None:
    """Refuse sizes and switches of other types than a config has.

    Args:
        values: By name; names that `types` does not know are left alone.
        types: What each must be; bool is no int.
    """
    for name, wanted in types.items():
        if name in values and type(values[name]) is not wanted:
            raise ArchitectureError(
                f"{name} in {source} is {shown(values[name])}; it must be of type "
                f"{wanted.__name__}."
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    remedy = "It must hold one object: download or save it again."
    values: dict[str, Any] = io.read_json(path, dict[str, Any], CheckpointError, remedy)
    return values


def is_file(path: Path) -> bool:
    """Whether there is a regular file; what forbids to look is no file either."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def names_in(folder: Path) -> str:
    """What a folder holds, as the rest of a sentence."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return f"it cannot be looked into ({error.strerror})"
    return f"it holds {shown(names[:12])}"
