"""A shard: a safetensors file of rows, written in pieces and read through a memory map.

The file holds one tensor a hook, `[row ...]`, and, where the decoder ran,
`tokens`: the token of every decoder row. Beside it lies what was done, as
JSON: its checksum, its recordings and which rows are whose.
"""

import errno
import itertools
import json
import mmap
import os
import struct
import tempfile
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import torch
import xxhash
from jaxtyping import Int64
from msgspec import Meta
from torch import Tensor
from typing_extensions import TypedDict

from hooked_whisper.errors import StoreDamagedError, StoreError
from hooked_whisper.io import PART, bytes_of, parse_json, write_whole

TOKENS = "tokens"
"""The name of the tokens among the tensors of a shard."""

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
}
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32"}
_OF_CODE = {code: DTYPES[name] for name, code in _CODES.items()}

_MOST_OPEN = 128
"""Shards that are mapped at a time."""
SPILL_BYTES = 2**29
"""Rows of one shard beyond this wait on the disk, not in memory (very long recordings)."""


@dataclass
class Pieces:
    """The rows of one tensor, as they come."""

    dtype: torch.dtype
    widths: tuple[int, ...]
    n_rows: int = 0
    held: list[Tensor] = field(default_factory=list)
    spilled: IO[bytes] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        n_values = self.n_rows
        for width in self.widths:
            n_values *= width
        return n_values * self.dtype.itemsize

    def spill(self, folder: Path) -> None:
        """Move what is held to the disk."""
        if self.spilled is None:
            self.spilled = tempfile.TemporaryFile(dir=folder, prefix="spilled", suffix=PART)
        for piece in self.held:
            self.spilled.write(bytes_of(piece))
        self.held.clear()

    def write(self, file: IO[bytes], state: Any) -> None:
        """Write all rows, oldest first, and add them to a checksum."""
        if self.spilled is not None:
            self.spilled.seek(0)
            while part := self.spilled.read(2**22):
                file.write(part)
                state.update(part)
        for piece in self.held:
            data = bytes_of(piece)
            file.write(data)
            state.update(data)


class ShardRows:
    """The rows of one shard while it is made.

    Args:
        folder: Where rows go that memory shall not hold.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pieces: dict[str, Pieces] = {}
        self._n_held = 0

    def add(self, name: str, rows: Tensor) -> None:
        """Append rows to a tensor.

        Raises:
            StoreError: NaN or infinity, or rows of another width than before.
        """
        widths = tuple(rows.shape[1:])
        pieces = self.pieces.setdefault(name, Pieces(rows.dtype, widths))
        if pieces.widths != widths:
            raise StoreError(f"rows of {name!r} are {widths}, after rows of {pieces.widths}.")
        if rows.is_floating_point() and rows.numel():
            low, high = torch.aminmax(rows)
            if not torch.isfinite(low + 0.0) or not torch.isfinite(high + 0.0):
                raise StoreError(
                    f"{name!r} holds NaN or values beyond what {str(rows.dtype)[6:]} can hold. "
                    'Store it as dtype="bf16" or "fp32".'
                )
        pieces.held.append(rows)
        pieces.n_rows += len(rows)
        self._n_held += rows.nbytes
        if self._n_held > SPILL_BYTES:
            for each in self.pieces.values():
                each.spill(self.folder)
            self._n_held = 0

    def write(self, path: Path) -> dict[str, Any]:
        """Write the shard as safetensors.

        Returns:
            Its size and checksum.

        Raises:
            StoreWriteError: The disk is full, or forbids it.
        """
        # Tokens are the widest type or as wide as any: first, so that everything lies aligned.
        names = sorted(self.pieces, key=lambda name: name != TOKENS)
        header, start = {}, 0
        for name in names:
            pieces = self.pieces[name]
            header[name] = {
                "dtype": _CODES[str(pieces.dtype)[6:]],
                "shape": [pieces.n_rows, *pieces.widths],
                "data_offsets": [start, start + pieces.nbytes],
            }
            start += pieces.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head, state = struct.pack("<Q", len(text)) + text, xxhash.xxh3_128()

        def write(file: IO[bytes]) -> None:
            file.write(head)
            state.update(head)
            for name in names:
                self.pieces[name].write(file, state)

        try:
            write_whole(path, write)
        finally:
            for pieces in self.pieces.values():
                if pieces.spilled is not None:
                    pieces.spilled.close()
        return {"bytes": len(head) + start, "xxh3_128": state.hexdigest()}


class _Entry(TypedDict):
    """A tensor in the header of a shard."""

    dtype: Literal["F32", "F16", "BF16", "I32"]
    shape: list[Annotated[int, Meta(ge=0)]]
    data_offsets: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


_REMEDY = (
    "hooked-whisper store verify finds what is damaged; the same harvest, run again with "
    "verify=True, makes it again."
)


class OpenShard:
    """A shard mapped into memory.

    Args:
        path: A safetensors file.
        names: The tensors that are wanted.

    Raises:
        StoreDamagedError: It is gone, cut short, or lacks one of them.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        try:
            with path.open("rb") as file:
                (n_header,) = struct.unpack("<Q", file.read(8))
                if n_header > os.fstat(file.fileno()).st_size - 8:
                    raise ValueError(f"a header of {n_header} bytes")
                header = parse_json(
                    file.read(n_header), dict[str, _Entry], StoreDamagedError, str(path), _REMEDY
                )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self.tensors = {name: self._view(header[name], 8 + n_header) for name in names}
        except OSError as error:
            few = error.errno in (errno.EMFILE, errno.ENFILE)
            why = "too many files are open (see ulimit -n)" if few else "it is missing"
            raise StoreDamagedError(f"{path} cannot be read ({error}): {why}. {_REMEDY}") from error
        except (ValueError, KeyError, struct.error) as error:
            raise StoreDamagedError(
                f"{path} cannot be read ({error}): it is cut short, or no shard. {_REMEDY}"
            ) from error

    def _view(self, entry: "_Entry", base: int) -> Tensor:
        dtype, shape = _OF_CODE[entry["dtype"]], entry["shape"]
        start, stop = entry["data_offsets"]
        if stop - start != prod(shape) * dtype.itemsize or base + stop > len(self._map):
            raise ValueError(f"{shape} values of {dtype} between bytes {start} and {stop}")
        if start == stop:
            return torch.empty(shape, dtype=dtype)
        count = (stop - start) // dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=base + start).reshape(
            shape
        )

    def release(self) -> None:
        """Give back the memory of the pages that were read; they can be read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class OpenShards:
    """All shards of a store, each mapped when it is needed.

    Args:
        folder: The store's.
        manifest: The store's.
        ends: Where each shard's rows end, by kind, a 0 first.
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], ends: dict[str, Int64[Tensor, " shard"]]
    ) -> None:
        self.folder, self.manifest, self.ends = folder, manifest, ends
        self._hook_names = list(manifest["identity"]["hooks"])
        self._open: dict[int, OpenShard] = {}

    def open(self, number: int) -> OpenShard:
        """A shard, mapped.

        Raises:
            StoreDamagedError: It cannot be read, or holds other rows than the manifest says.
        """
        if number not in self._open:
            while len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            names = self._hook_names + ([TOKENS] if "decoder" in self.ends else [])
            shard = OpenShard(self.folder / shard_name(number), names)
            self._check_shapes(number, shard)
            self._open[number] = shard
        return self._open[number]

    def _check_shapes(self, number: int, shard: OpenShard) -> None:
        kinds = self.manifest["identity"]["kinds"]
        for name in self._hook_names:
            n_rows = self.manifest["shards"][number]["rows"][kinds[name]]
            if len(shard.tensors[name]) != n_rows:
                raise StoreDamagedError(
                    f"{shard_name(number)} has {len(shard.tensors[name])} rows of {name!r}; the "
                    f"manifest says {n_rows}. Run the same harvest again with verify=True."
                )

    def read_sorted(
        self, names: list[str], kind: str, rows: Int64[Tensor, " row"]
    ) -> dict[str, Tensor]:
        """Rows by their numbers in rising order: every shard is mapped once."""
        ends = self.ends[kind]
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        bounds = torch.searchsorted(rows, ends).tolist()
        for number, (low, high) in enumerate(itertools.pairwise(bounds)):
            if low == high:
                continue
            shard = self.open(number)
            local = rows[low:high] - ends[number]
            for name in names:
                found[name].append(shard.tensors[name].index_select(0, local))
            shard.release()
        if len(rows) == 0:
            return {name: self.open(0).tensors[name][:0].clone() for name in names}
        return {
            name: pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            for name, pieces in found.items()
        }

    def row_bytes(self, names: list[str]) -> int:
        """Bytes of one row, over some hooks."""
        if not self.manifest["shards"]:
            return 1
        rows = [self.open(0).tensors[name] for name in names]
        return sum(value.shape[1:].numel() * value.element_size() for value in rows)


def shard_name(number: int) -> str:
    """The name of a shard's file."""
    return f"shard-{number:06d}.safetensors"


def record_name(number: int) -> str:
    """The name of what was done for a shard."""
    return f"shard-{number:06d}.json"


def file_size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None
