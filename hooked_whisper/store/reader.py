"""Reading a store: at random, in order, shuffled, by recording, with what is known of each row."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from hooked_whisper.data.hook_rows import SECONDS_PER_ROW, RowKind
from hooked_whisper.display import box, count, facts, fold, size, table
from hooked_whisper.errors import HookNameError, StoreError, shown
from hooked_whisper.hooks.names import NamesFilter, explain_miss, match_names
from hooked_whisper.io import as_path
from hooked_whisper.speech.labels import values_at
from hooked_whisper.store.manifest import read_manifest
from hooked_whisper.store.provenance import RecordingEntry, RowIndex, ShardIndex
from hooked_whisper.store.shards import DTYPES, TOKENS, OpenShards
from hooked_whisper.store.shuffle import ShuffledReader

_MOST_INDEXED = 128
"""Shards of which it is known whose rows they hold, at a time."""
_MOST_SHOWN = 20
"""Recordings that a notebook shows."""


class ActivationStore:
    """The activations that `harvest` stored.

    Rows are numbered from 0, in the recordings' order; hooks of one kind of
    rows (encoder positions, mel frames, tokens) are aligned row by row.

    Args:
        folder: Where the store is.

    Raises:
        StoreError: There is none, or it is not complete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = as_path(folder, StoreError)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise StoreError(
                f"{self.folder} holds no activation store. Make one with harvest(...)."
            )
        if not manifest["complete"]:
            raise StoreError(
                f"{self.folder} holds a store that is not complete. Run the same harvest again: it "
                "goes on where it stopped."
            )
        self.manifest = manifest
        self._indexes: dict[int, ShardIndex] = {}
        self._ids: dict[str, list[int]] | None = None
        self._ends = {
            kind: torch.tensor([0, *[shard["rows"][kind] for shard in manifest["shards"]]]).cumsum(
                0
            )
            for kind in manifest["rows"]
        }
        self._shards = OpenShards(self.folder, manifest, self._ends)

    # What there is

    @property
    def identity(self) -> dict[str, Any]:
        """What made the store the one that it is: model, hooks, rules, recordings."""
        return self.manifest["identity"]

    @property
    def hook_names(self) -> list[str]:
        """The hooks, in the model's order."""
        return list(self.identity["hooks"])

    @property
    def dtype(self) -> torch.dtype:
        """What rows are stored in."""
        return DTYPES[self.identity["dtype"]]

    @property
    def n_recordings(self) -> int:
        """Recordings with rows, the skipped ones left out."""
        return self.manifest["n_recordings"]

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Recordings that could not be used: `index`, `id` and `reason` of each."""
        return self.manifest["skipped"]

    def __repr__(self) -> str:
        rows = ", ".join(f"{n} {kind} rows" for kind, n in self.manifest["rows"].items())
        return (
            f"ActivationStore({str(self.folder)!r}: {len(self.hook_names)} hooks, "
            f"{self.n_recordings} recordings, {rows}, {self.identity['dtype']})"
        )

    def _repr_html_(self) -> str:
        """Hooks with their rows and bytes, recordings, and what the store was made with."""
        n_rows, identity = self.manifest["rows"], self.identity
        rows = []
        for name in self.hook_names:
            kind = identity["kinds"][name]
            n_bytes = n_rows[kind] * self._shards.row_bytes([name])
            shape = self.row_shape(name) if self.manifest["shards"] else ()
            rows.append([name, kind, n_rows[kind], list(shape), size(n_bytes)])
        n_bytes = sum(shard["bytes"] for shard in self.manifest["shards"])
        heard = itertools.islice(self.recordings(), _MOST_SHOWN)
        recordings = [
            [each.id, each.seconds, each.text, json.dumps(each.labels, ensure_ascii=False)]
            for each in heard
        ]
        if more := self.n_recordings - len(recordings):
            recordings.append([f"… and {more:,} more"])
        skipped = [[each["id"], each["reason"]] for each in self.skipped]
        made = {key: each for key, each in identity.items() if key not in ("hooks", "kinds")}
        parts = [
            table(["hook", "row is", "rows", "shape of a row", "size"], rows),
            fold(
                f"{count(self.n_recordings, 'recording')}, {self.manifest['seconds']:,.1f} s",
                table(["recording", "seconds", "text the model wrote", "labels"], recordings),
            ),
            fold("made with", facts({"folder": self.folder, **made})),
        ]
        if skipped:
            parts.append(
                fold(f"{count(len(skipped), 'recording')} skipped", table([], skipped, _MOST_SHOWN))
            )
        about = f"{count(len(rows), 'hook')}, {size(n_bytes)} of {identity['dtype']} on disk"
        return box(type(self).__name__, about, *parts)

    def kind(self, hook_names: NamesFilter) -> RowKind:
        """What a row of these hooks is: `"encoder"`, `"frame"` or `"decoder"`.

        Raises:
            HookNameError: A hook that the store does not have.
            StoreError: Hooks with rows of several kinds, which cannot be aligned.
        """
        return self._aligned(hook_names)[1]

    def n_rows(self, hook_names: NamesFilter) -> int:
        """Rows of a hook, or of hooks of one kind."""
        return self.manifest["rows"][self.kind(hook_names)]

    def row_shape(self, hook_name: str) -> tuple[int, ...]:
        """The axes of one row of a hook.

        Raises:
            HookNameError: It was not harvested.
        """
        if hook_name not in self.hook_names:
            raise HookNameError(explain_miss(hook_name, self.hook_names))
        return tuple(self._shards.open(0).tensors[hook_name].shape[1:])

    # Rows

    def rows(
        self,
        hook_names: NamesFilter,
        rows: Sequence[int] | Int64[Tensor, " row"] | slice,
        *,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Any rows of some hooks, `[row ...]` each, in memory of their own.

        Args:
            hook_names: Names or globs, all with rows of one kind.
            rows: Their numbers, in any order, some perhaps several times; or a slice.
            dtype: What to return them in; None is as they are stored.

        Raises:
            HookNameError: A hook that the store does not have.
            StoreError: Rows that do not exist.
            StoreDamagedError: A shard cannot be read.
        """
        names, kind = self._aligned(hook_names)
        wanted = self._numbers(rows, kind)
        in_order, order = wanted.sort()
        found = self._shards.read_sorted(names, kind, in_order)
        back = order.argsort()
        return {name: value[back].to(dtype or value.dtype) for name, value in found.items()}

    def batches(
        self, hook_names: NamesFilter, batch_size: int, *, dtype: torch.dtype | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """All rows of some hooks, in order, `batch_size` at a time; the last may be fewer."""
        _check_positive("batch_size", batch_size)
        n_rows = self.n_rows(hook_names)
        for start in range(0, n_rows, batch_size):
            yield self.rows(hook_names, slice(start, min(n_rows, start + batch_size)), dtype=dtype)

    def stream(
        self,
        hook_names: NamesFilter,
        batch_size: int,
        *,
        seed: int = 0,
        n_epochs: int | None = 1,
        dtype: torch.dtype | None = torch.float32,
        with_rows: bool = False,
        rank: int = 0,
        n_ranks: int = 1,
        skip: int = 0,
        turn: tuple[int, int] = (0, 1),
        buffer_bytes: int = 2**28,
    ) -> Iterator[dict[str, Tensor]]:
        """Every row once an epoch, shuffled; see `ShuffledReader` for how.

        Args:
            hook_names: Names or globs, all with rows of one kind.
            batch_size: Rows of a batch, over all ranks. The last of an epoch has what is left.
            seed: Of the order.
            n_epochs: How often; None never ends.
            dtype: What to give; None is as they are stored.
            with_rows: Also give the rows' numbers, as `"rows"`.
            rank: The part of each batch to give.
            n_ranks: How many parts there are.
            skip: Batches to leave out at the start, without reading them.
            turn: Give only every n-th batch, from one on: `(which, n)`.
            buffer_bytes: Memory for rows that are being shuffled, at most.

        Raises:
            HookNameError: A hook that the store does not have.
            StoreError: Hooks that cannot be aligned, or sizes that do not fit.
        """
        names, kind = self._aligned(hook_names)
        reader = ShuffledReader(
            lambda rows: self._shards.read_sorted(names, kind, rows),
            n_rows=self.manifest["rows"][kind],
            row_bytes=self._shards.row_bytes(names),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            n_ranks=n_ranks,
            buffer_bytes=buffer_bytes,
            worker=turn[0],
            n_workers=turn[1],
        )
        return reader.batches(n_epochs, skip=skip, dtype=dtype, with_rows=with_rows)

    # Whose rows they are

    def recording(self, recording: int | str) -> RecordingEntry:
        """What is known of a recording.

        Args:
            recording: Its number, or its id.

        Raises:
            StoreError: The store has no such recording, or several.
        """
        index = self._index_of(recording)
        number = index // self.identity["recordings_per_shard"]
        if 0 <= number < len(self.manifest["shards"]):
            found = self._index_of_shard(number).recordings.get(index)
            if found is not None:
                return found
        raise StoreError(f"recording {recording!r} is not in {self.folder}, or was skipped.")

    def recordings(self) -> Iterator[RecordingEntry]:
        """All recordings in order, the skipped ones left out."""
        for number in range(len(self.manifest["shards"])):
            yield from self._index_of_shard(number).recordings.values()

    def rows_of(self, recording: int | str, hook_names: NamesFilter) -> range:
        """The numbers of a recording's rows."""
        kind, index = self.kind(hook_names), self._index_of(recording)
        self.recording(index)
        number = index // self.identity["recordings_per_shard"]
        start = int(self._ends[kind][number])
        own = self._index_of_shard(number).rows_of(index, kind)
        return range(start + own.start, start + own.stop)

    def of_recording(
        self,
        recording: int | str,
        hook_names: NamesFilter,
        *,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """The rows of one recording at some hooks, in order."""
        rows = self.rows_of(recording, hook_names)
        return self.rows(hook_names, slice(rows.start, rows.stop), dtype=dtype)

    def where(
        self, hook_names: NamesFilter, rows: Sequence[int] | Int64[Tensor, " row"] | slice
    ) -> RowIndex:
        """Where rows come from: recording, and time in seconds or token."""
        kind = self.kind(hook_names)
        wanted = self._numbers(rows, kind)
        n = len(wanted)
        shard_of = torch.searchsorted(self._ends[kind], wanted, right=True) - 1
        recording = torch.zeros(n, dtype=torch.int64)
        start_s = torch.zeros(n, dtype=torch.float64)
        pos, token = torch.zeros(n, dtype=torch.int64), None
        if kind == "decoder":
            token = torch.zeros(n, dtype=torch.int64)
        for number in shard_of.unique().tolist():
            own = shard_of == number
            local = wanted[own] - self._ends[kind][number]
            index = self._index_of_shard(number)
            recording[own], window_s, pos[own] = index.lookup(kind, local)
            step = 0.0 if kind == "decoder" else SECONDS_PER_ROW[kind]
            start_s[own] = window_s + step * pos[own]
            if token is not None:
                token[own] = self._shards.open(number).tensors[TOKENS][local].long()
        return RowIndex(recording, start_s, pos, token)

    def labels(
        self,
        label: str,
        hook_names: NamesFilter,
        rows: Sequence[int] | Int64[Tensor, " row"] | slice,
    ) -> list[Any]:
        """A label of each row; None where its recording, or that moment, has none.

        A label that is a list of `[start_s, end_s, value]` is read at the
        row's middle.
        """
        kind, where = self.kind(hook_names), self.where(hook_names, rows)
        middle = where.start_s + SECONDS_PER_ROW.get(kind, 0.0) / 2
        found: list[Any] = [None] * len(middle)
        for index in where.recording.unique().tolist():
            rows_there = (where.recording == index).nonzero().flatten().tolist()
            values = values_at(self.recording(index).labels.get(label), middle[rows_there].tolist())
            for row, value in zip(rows_there, values, strict=True):
                found[row] = value
        return found

    def _index_of_shard(self, number: int) -> ShardIndex:
        if number not in self._indexes:
            while len(self._indexes) >= _MOST_INDEXED:
                self._indexes.pop(next(iter(self._indexes)))
            self._indexes[number] = ShardIndex.read(self.folder, number, list(self._ends))
        return self._indexes[number]

    def _index_of(self, recording: int | str) -> int:
        if isinstance(recording, int):
            return recording
        if self._ids is None:
            self._ids = {}
            for each in self.recordings():
                self._ids.setdefault(each.id, []).append(each.index)
        found = self._ids.get(recording, [])
        if len(found) != 1:
            what = "no recording" if not found else f"{len(found)} recordings"
            raise StoreError(f"{what} in {self.folder} with the id {recording!r}. Pass its number.")
        return found[0]

    def _aligned(self, hook_names: NamesFilter) -> tuple[list[str], RowKind]:
        names = match_names(hook_names, self.hook_names)
        kinds: Mapping[str, RowKind] = self.identity["kinds"]
        if len({kinds[name] for name in names}) != 1:
            told = ", ".join(f"{name} ({kinds[name]})" for name in names[:4])
            raise StoreError(
                f"these hooks have rows of different kinds, which cannot be aligned: {told}. Ask "
                "for them one kind at a time."
            )
        return names, kinds[names[0]]

    def _numbers(
        self, rows: Sequence[int] | Int64[Tensor, " row"] | slice, kind: RowKind
    ) -> Int64[Tensor, " row"]:
        n_rows = self.manifest["rows"][kind]
        if isinstance(rows, slice):
            return torch.arange(n_rows)[rows] if rows.step else _arange(rows, n_rows)
        try:
            wanted = torch.as_tensor(rows).flatten()
            if len(wanted) and wanted.dtype not in _INTEGERS:
                raise TypeError(f"they are {wanted.dtype}")
            wanted = wanted.to_dense().long()
            wanted.tolist()  # what has no values says so
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise StoreError(f"rows are {shown(rows)}; they must be integers.") from error
        bad = wanted[(wanted < 0) | (wanted >= n_rows)]
        if len(bad):
            raise StoreError(
                f"row {int(bad[0])} is not there: the store has {kind} rows 0 to {n_rows - 1}."
            )
        return wanted


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _arange(rows: slice, n_rows: int) -> Int64[Tensor, " row"]:
    return torch.arange(*rows.indices(n_rows)[:2])


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise StoreError(f"{name} is {value}; it must be at least 1.")
