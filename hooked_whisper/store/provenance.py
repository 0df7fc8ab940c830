"""Whose rows are in a shard: recordings, their windows, times and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from hooked_whisper.data.hook_rows import RowKind
from hooked_whisper.store.manifest import load_record


@dataclass(frozen=True)
class RecordingEntry:
    """A recording of a store.

    Args:
        index: Its number among all that the harvest was given.
        id: Its name.
        checksum: Of its audio: XXH3, 128 bits.
        seconds: Its length.
        labels: What was known of it.
        windows: `start_s`, `n_frames`, `rows` by kind, and the model's own
            `text` where it wrote one, of each window.
    """

    index: int
    id: str
    checksum: str
    seconds: float
    labels: dict[str, Any]
    windows: tuple[dict[str, Any], ...]

    @property
    def text(self) -> str | None:
        """What the model wrote; None where it was not asked to."""
        texts = [window["text"] for window in self.windows if "text" in window]
        return " ".join(texts) if texts else None


@dataclass(frozen=True)
class RowIndex:
    """Where rows come from.

    Args:
        recording: The recording's number.
        start_s: When the row begins in its recording; for tokens, when their window does.
        pos: The position in its window, or the token's in its text.
        token: The token; None for rows of the encoder.
    """

    recording: Int64[Tensor, " row"]
    start_s: Float64[Tensor, " row"]
    pos: Int64[Tensor, " row"]
    token: Int64[Tensor, " row"] | None


class ShardIndex:
    """The recordings of one shard, and which rows are whose.

    Args:
        recordings: By their numbers.
        kinds: The kinds of rows that there are.
    """

    def __init__(self, recordings: dict[int, RecordingEntry], kinds: Sequence[RowKind]) -> None:
        self.recordings = recordings
        windows = [(each.index, window) for each in recordings.values() for window in each.windows]
        self._recording = torch.tensor([index for index, _ in windows], dtype=torch.int64)
        self._start_s = torch.tensor(
            [window["start_s"] for _, window in windows], dtype=torch.float64
        )
        self._ends = {
            kind: torch.tensor([0, *[window["rows"][kind] for _, window in windows]]).cumsum(0)
            for kind in kinds
        }

    @classmethod
    def read(cls, folder: Path, number: int, kinds: Sequence[RowKind]) -> "ShardIndex":
        """Read the record of a shard.

        Raises:
            StoreDamagedError: It is missing or no record.
        """
        entries = [
            RecordingEntry(
                each["index"],
                each["id"],
                each["xxh3_128"],
                each["seconds"],
                each["labels"],
                tuple(each["windows"]),
            )
            for each in load_record(folder, number)["recordings"]
        ]
        return cls({entry.index: entry for entry in entries}, kinds)

    def lookup(
        self, kind: RowKind, rows: Int64[Tensor, " row"]
    ) -> tuple[Int64[Tensor, " row"], Float64[Tensor, " row"], Int64[Tensor, " row"]]:
        """Recording, start of the window in seconds, and position in it, of rows of this shard."""
        window = torch.searchsorted(self._ends[kind], rows, right=True) - 1
        return self._recording[window], self._start_s[window], rows - self._ends[kind][window]

    def rows_of(self, index: int, kind: RowKind) -> range:
        """A recording's rows in this shard."""
        own = (self._recording == index).nonzero().flatten()
        if len(own) == 0:
            return range(0)
        ends = self._ends[kind]
        return range(int(ends[own[0]]), int(ends[own[-1] + 1]))
