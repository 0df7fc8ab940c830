"""Files that `torch.save` wrote, read as plain tensors and never for more than they hold.

A pickle can ask for any amount of memory in a few bytes, and a tensor of
stride 0 claims any shape over one number: both are looked for before memory is given.
"""

import io
import math
import pickle
import pickletools
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import CheckpointError, shown
from hooked_whisper.weights.files import (
    MemoryTensor,
    StoredTensor,
    check_plain,
)
from hooked_whisper.weights.pieces import RawTensor, ZipPart, read_part, zip_parts

MAX_MADE_BYTES = 2**28
"""Most that calls in a pickle may make of the texts in it."""

_MOST_OBJECTS = 2**20
"""Of which a pickle keeps the numbers; an optimizer's state of a large Whisper has 50,000."""
_ZIP = b"PK\x03\x04"
_N_LEGACY_PICKLES = 5
"""Before torch 1.6: a number, the version, the machine's sizes, the content, names of storages."""


class _Places(pickle.Unpickler):
    """Reads the pickle of a file with tensors as places in that file.

    It knows what a dictionary of tensors is made of, and nothing that could do anything.
    """

    def __init__(self, path: Path, parts: Mapping[str, ZipPart], folder: str) -> None:
        super().__init__(io.BytesIO(read_part(path, parts[f"{folder}/data.pkl"])))
        self.path, self.parts, self.folder = path, parts, folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is unknown here")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, size = pid
        part = self.parts[f"{self.folder}/data/{key}"]
        if kind != "storage" or size * dtype.itemsize != part.n_bytes:
            raise pickle.UnpicklingError(f"the storage {key!r} has another size")
        return self.path, part, dtype


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> RawTensor:
    """A tensor that lies in its storage row after row; others are left to `torch.load`."""
    path, part, dtype = storage
    rows = torch.empty(shape, dtype=dtype, device="meta")
    end = (offset + rows.numel()) * dtype.itemsize
    if offset < 0 or end > part.n_bytes or (rows.stride() != stride and rows.numel() > 1):
        raise pickle.UnpicklingError("no rows one after the other")
    crc = part.crc if rows.nbytes == part.n_bytes else None
    return RawTensor(path, "", tuple(shape), dtype, part.place + offset * dtype.itemsize, crc)


def _data(data: Any, *_: Any) -> Any:
    """What is in a `Parameter`."""
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _data,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
}


def read_stored(path: Path) -> Any:
    """What `torch.save` wrote, of which tensors stay in the file where they are simple.

    Raises:
        CheckpointError: As `read_torch` does.
    """
    _check_pickles(path)
    if is_mappable(path):
        try:
            parts = zip_parts(path)
            folder = next(iter(parts)).partition("/")[0]
            order = parts.get(f"{folder}/byteorder")
            if order is None or read_part(path, order) == b"little":
                return _Places(path, parts, folder).load()
        except Exception:  # what is wrong, or only unusual, `torch.load` finds out
            pass
    return _load(path)


def torch_tensors(path: Path, values: Any) -> dict[str, StoredTensor]:
    """The tensors of a file that `torch.save` wrote, once they are plain and no larger than it.

    Args:
        path: The file.
        values: Tensors by name, as `read_stored` gives them.

    Raises:
        CheckpointError: It is no dictionary of plain tensors, or claims more than the file has.
    """
    rest = {
        key: value
        for key, value in values.items()
        if not (isinstance(key, str) and isinstance(value, RawTensor))
    }
    check_plain(rest, path)
    check_claims(values, path)
    owned = not is_mappable(path)  # else it is the file's, as long as that is mapped
    return {
        key: MemoryTensor(value, owned) if key in rest else replace(value, key=key)
        for key, value in values.items()
    }


def are_one(first: Any, second: Any) -> bool:
    """Whether two values that `read_stored` gave are one tensor that the file has once."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        same = first.data_ptr() == second.data_ptr() and first.shape == second.shape
        return same and first.stride() == second.stride()
    return isinstance(first, RawTensor) and first == second


def check_claims(tensors: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that are together larger than the file that they are in."""
    sizes = {key: math.prod(each.shape) * each.dtype.itemsize for key, each in tensors.items()}
    claimed, held = sum(sizes.values()), path.stat().st_size
    if claimed > held:
        largest = max(sizes, key=sizes.__getitem__)
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
    return _load(path)


def _load(path: Path) -> Any:
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
    for name, part in zip_parts(path).items():
        if name.endswith(".pkl"):
            if claim := _claim_in_pickle(io.BytesIO(read_part(path, part))):
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
        if name == "LONG_BINPUT" and argument > _MOST_OBJECTS:
            return "counts its objects up to any number"
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
