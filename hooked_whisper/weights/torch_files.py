"""Files that `torch.save` wrote, read as plain tensors and never for more than they hold.

A pickle can ask for any amount of memory in a few bytes, and a tensor of
stride 0 claims any shape over one number: both are looked for before memory is given.
"""

import ctypes
import mmap
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import CheckpointError, shown
from hooked_whisper.weights.files import (
    MemoryTensor,
    PieceTensor,
    StoredTensor,
    check_plain,
    is_file,
)

MAX_MADE_BYTES = 2**28
"""Most that calls in a pickle may make of the texts in it."""

_ZIP = b"PK\x03\x04"
_N_LEGACY_PICKLES = 5
"""Before torch 1.6: a number, the version, the machine's sizes, the content, names of storages."""


@dataclass(frozen=True)
class MappedTensor(PieceTensor):
    """A tensor of a mapped file, whose pages are given back once they were copied.

    They would count as this process's memory for as long as the mapping lives.
    """

    path: Path
    n_bytes: int
    """Of the file, as long as it is what was checked."""
    key: str
    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.value.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        return self.value[start:stop] if self.shape else self.value

    def pieces(self) -> Iterator[tuple[Any, Tensor]]:
        if not is_file(self.path) or self.path.stat().st_size < self.n_bytes:
            raise CheckpointError(
                f"{self.path} was cut short while it was read. Download or save it again."
            )
        for rows, piece in super().pieces():
            yield rows, piece
            _give_back(piece)


def _give_back(piece: Tensor) -> None:
    """Tell the system that a mapped file's pages behind a tensor are not needed at the moment."""
    storage = piece.untyped_storage()
    first = piece.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    # A tensor with strides of 0 claims more than it has, and there other memory may lie.
    end = min(piece.data_ptr() + piece.nbytes, storage.data_ptr() + storage.nbytes())
    _madvise()(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


@cache
def _madvise() -> Any:
    return ctypes.CDLL(None).madvise


def torch_tensors(path: Path, values: Any) -> dict[str, StoredTensor]:
    """The tensors of a file that `torch.save` wrote, once they are plain and no larger than it.

    Args:
        path: The file.
        values: Tensors by name.

    Raises:
        CheckpointError: It is no dictionary of plain tensors, or claims more than the file has.
    """
    check_plain(values, path)
    check_claims(values, path)
    if not is_mappable(path):
        return {key: MemoryTensor(value, owned=True) for key, value in values.items()}
    n_bytes = path.stat().st_size
    return {key: MappedTensor(path, n_bytes, key, value) for key, value in values.items()}


def check_claims(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are together larger than the file that they are in."""
    claimed = sum(value.numel() * value.element_size() for value in tensors.values())
    held = path.stat().st_size
    if claimed > held:
        largest = max(tensors, key=lambda key: tensors[key].numel())
        raise CheckpointError(
            f"the tensors in {path} claim {claimed} bytes, and the file has {held}: "
            f"{shown(largest)} is {tuple(tensors[largest].shape)}. They are expanded or share "
            "their memory: save a contiguous copy of each."
        )


def is_mappable(path: Path) -> bool:
    """Whether `torch.load` takes a file for a zip (torch 1.6 and later), which can be mapped."""
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except OSError:
        return False


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, mapped where it can be; no pickled object but plain tensors.

    Raises:
        CheckpointError: The file was cut short, is another kind of file, or
            holds pickled objects. None of them is executed.
    """
    _check_pickles(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to call it in unsafe ways
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable(path))
    except Exception as error:  # a broken or hostile pickle can raise anything at all
        raise CheckpointError(f"{path} {_why_unreadable(error)}") from error


def _check_pickles(path: Path) -> None:
    """Refuse what would take more memory than the file has bytes, before any is given.

    What cannot be looked through is refused too: `torch.load` might read it all the same.
    """
    try:
        claim = _claim_in_zip(path) if is_mappable(path) else _claim_in_legacy(path)
    except CheckpointError:
        raise
    except Exception as error:  # a broken or hostile file can raise anything at all
        raise CheckpointError(f"{path} {_why_unreadable(error)}") from error
    if claim:
        raise CheckpointError(
            f"{path} {claim}: it would take far more memory than the file has bytes. Whisper's "
            "weights need none of it: ask its author for safetensors or for plain tensors."
        )


def _claim_in_zip(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            return "holds compressed parts, which torch.save never writes"
        if sum(member.file_size for member in members) > path.stat().st_size:
            return "holds parts that overlap"
        for member in members:
            if member.filename.endswith("/byteorder") and archive.read(member) != b"little":
                # torch.load would swap the bytes in memory that is given back here
                raise CheckpointError(
                    f"{path} was written by a machine that puts the big end of numbers first, or "
                    "is damaged. Save it again on another machine."
                )
            if member.filename.endswith(".pkl"):
                with archive.open(member) as file:
                    if claim := _claim_in_pickle(file):
                        return claim
    return None


def _claim_in_legacy(path: Path) -> str | None:
    with path.open("rb") as file:
        for _ in range(_N_LEGACY_PICKLES):
            if claim := _claim_in_pickle(file):
                return claim
    return None


def _claim_in_pickle(file: Any) -> str | None:
    """What a pickle would make out of little: a bytearray of any length, texts again and again."""
    n_calls, longest = 0, 0
    for name, argument in _operations(file):
        text = argument if isinstance(argument, (str, bytes, bytearray)) else ""
        longest = max(longest, len(text))
        n_calls += name in ("REDUCE", "NEWOBJ", "BUILD")
        if text and str(text).endswith("bytearray"):
            return "makes a bytearray of any length"
        if n_calls * longest > MAX_MADE_BYTES:
            return "makes many values of one long text"
    return None


def _operations(file: Any) -> Iterator[tuple[str, Any]]:
    for operation, argument, _ in pickletools.genops(file):
        yield operation.name, argument


def _why_unreadable(error: Exception) -> str:
    """The rest of a sentence on what `torch.load` refused: an object, or the whole file."""
    text = str(error)
    is_code = "TorchScript" in text
    if is_code or ("Weights only load failed" in text and "Unsupported operand" not in text):
        found = re.search(r"GLOBAL ([\w.]+)", text)
        what = "TorchScript code" if is_code else found[1].rstrip(".") if found else "see the cause"
        return (
            f"holds pickled objects that are no plain tensors ({what}); nothing of it was "
            "executed. Loading such a file could run any code: ask its author for safetensors or "
            "for plain tensors."
        )
    operand = re.search(r"Unsupported operand \d+", text)
    reason = operand[0] if operand else next(iter(text.splitlines()), type(error).__name__)
    return (
        f"cannot be read as a torch checkpoint ({reason}): it was cut short or is another kind of "
        "file. Download or save it again."
    )
