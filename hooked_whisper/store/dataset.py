"""A store as PyTorch's DataLoader takes it, with workers and ranks; and one without an end."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hooked_whisper.errors import StoreError, shown
from hooked_whisper.hooks.names import NamesFilter, match_names
from hooked_whisper.store.provenance import RecordingEntry
from hooked_whisper.store.reader import ActivationStore


class ActivationDataset(IterableDataset[dict[str, Tensor]]):
    """Shuffled batches of a store's rows, for `DataLoader(dataset, batch_size=None)`.

    Every worker gives every n-th batch, and every rank its part of each, so
    that together they give each row once. PyTorch's process group says which
    rank this is, unless it is told.

    Args:
        store: The store, or its folder.
        hook_names: Names or globs, all with rows of one kind.
        batch_size: Rows of a batch, over all ranks.
        seed: Of the order.
        rank: The part of each batch to give.
        n_ranks: How many parts there are.
        options: More of `ActivationStore.stream`.
    """

    def __init__(
        self,
        store: Any,
        hook_names: NamesFilter,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        n_ranks: int | None = None,
        **options: Any,
    ) -> None:
        self.folder = (
            store if isinstance(store, ActivationStore) else ActivationStore(store)
        ).folder
        grouped = dist.is_available() and dist.is_initialized()
        self._options: dict[str, Any] = {
            "hook_names": hook_names,
            "batch_size": batch_size,
            "seed": seed,
            "rank": rank if rank is not None else dist.get_rank() if grouped else 0,
            "n_ranks": n_ranks if n_ranks is not None else dist.get_world_size() if grouped else 1,
            "dtype": torch.float32,
            **options,
        }
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose another order: the one of the seed plus this number."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """This worker's batches; each iteration maps the shards anew."""
        info = get_worker_info()
        turn = (info.id, info.num_workers) if info else (0, 1)
        options = {**self._options, "seed": self._options["seed"] + self.epoch}
        return ActivationStore(self.folder).stream(**options, turn=turn)


class Epochs:
    """A store as a source of training without an end, heads side by side.

    Hooks whose rows are of other kinds (encoder positions, tokens) come in turn, a batch each.

    Args:
        store: The store.
        held_out: Share of the recordings, at least one of them, that training never sees, and
            is judged on while it runs; or their names, such as those of whole speakers. 0 trains
            on all.
        minutes: Train on so much sound of the others alone; None is all. The recordings of
            less sound are among those of more.
        seed: Of which recordings are held out, and come first.

    Raises:
        StoreError: A share that leaves nothing to train on, a name that no recording has, or more
            minutes than there are.
    """

    def __init__(
        self,
        store: ActivationStore,
        held_out: float | int | Collection[str] = 0.0,
        minutes: float | int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.store, self._minutes, self._seed = store, minutes, seed
        self._held_out: float | list[str] = (
            held_out if isinstance(held_out, int | float) else sorted(held_out)
        )
        entries = list(store.recordings())
        order = np.random.default_rng(seed).permutation(len(entries))
        kept = self._numbers_held_out(entries, order)
        mixed = [entries[number] for number in order]
        self._judged = [entry for entry in mixed if entry.index in kept]
        self._trained = [entry for entry in mixed if entry.index not in kept]
        if not self._trained:
            raise StoreError(
                f"held_out is {shown(self._held_out)} of {len(mixed)} recordings, which leaves "
                "none to train on. Pass less, or harvest more recordings."
            )
        if minutes is not None:
            self._trained = self._first_minutes(minutes)
        self._chosen: dict[str, Bool[Tensor, " row"]] = {}

    def __repr__(self) -> str:
        return (
            f"Epochs({self.store!r}: {len(self._trained)} recordings with {self.minutes:.1f} "
            f"minutes, {len(self._judged)} held out)"
        )

    @property
    def chosen(self) -> dict[str, Any]:
        """Which recordings are trained on, as far as it is not all: what a resumed run must share.

        Empty where it is all.
        """
        chosen = {"held_out": self._held_out, "minutes": self._minutes, "chosen_by": self._seed}
        some = self._held_out or self._minutes is not None
        return {name: v for name, v in chosen.items() if some and v is not None}

    @property
    def has_held_out(self) -> bool:
        """Whether any recordings are held out."""
        return bool(self._judged)

    @property
    def minutes(self) -> float:
        """Minutes of sound to train on."""
        return sum(entry.seconds for entry in self._trained) / 60

    def of_minutes(self, minutes: float | int) -> "Epochs":
        """The same with so much sound to train on, and the same held out."""
        return Epochs(self.store, self._held_out, minutes, seed=self._seed)

    def n_rows(self, hook_name: str) -> int:
        """Rows of a hook to train on."""
        return int(self._rows(hook_name, self._trained).sum())

    def held_out(self, hook_names: NamesFilter, n_most: int = 4096) -> dict[str, Tensor] | None:
        """Rows that training never sees, at even distances; None where none are held out."""
        found: dict[str, Tensor] = {}
        for name in match_names(hook_names, self.store.hook_names):
            rows = self._rows(name, self._judged).nonzero()[:, 0]
            chosen = torch.linspace(0, len(rows) - 1, min(n_most, len(rows))).long()
            values = self.store.rows(name, rows[chosen], dtype=torch.float32)[name]
            found[name] = values.flatten(1)
        return found if self._judged else None

    def stream(
        self,
        hook_names: NamesFilter,
        batch_size: int,
        *,
        seed: int = 0,
        skip: int = 0,
        turn: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[str, Tensor]]:
        """The store's rows, shuffled anew each epoch."""
        names = match_names(hook_names, self.store.hook_names)
        kinds: dict[str, list[str]] = {}
        for name in names:
            kinds.setdefault(self.store.kind(name), []).append(name)
        n, (which, n_turns) = len(kinds), turn
        options: dict[str, Any] = {"seed": seed, "n_epochs": None, "with_rows": True}
        if n == 1:  # the store itself leaves out what others read
            options |= {"turn": turn}
        with ExitStack() as opened:
            streams = []
            for number, own in enumerate(kinds.values()):
                before = max(0, skip - number + n - 1) // n  # of the batches before, those of it
                made: Any = self.store.stream(own, batch_size, skip=before, **options)
                streams.append((opened.enter_context(closing(made)), own[0]))
            for number in itertools.count(skip):
                stream, name = streams[number % n]
                if n == 1 or number % n_turns == which:
                    batch = next(stream)
                    kept = self._rows(name, self._trained)[batch.pop("rows")]
                    yield {each: rows[kept].flatten(1) for each, rows in batch.items()}
                else:
                    next(stream)

    def _rows(self, hook_name: str, entries: Sequence[RecordingEntry]) -> Bool[Tensor, " row"]:
        """Which rows of a hook are of some recordings."""
        key = f"{self.store.kind(hook_name)} {entries is self._judged}"
        if key not in self._chosen:
            chosen = torch.zeros(self.store.n_rows(hook_name), dtype=torch.bool)
            for entry in entries:
                rows = self.store.rows_of(entry.index, hook_name)
                chosen[rows.start : rows.stop] = True
            self._chosen[key] = chosen
        return self._chosen[key]

    def _numbers_held_out(self, entries: Sequence[RecordingEntry], order: np.ndarray) -> set[int]:
        """The recordings that are held out: those of a share are the first in the order."""
        if isinstance(self._held_out, list):
            names = set(self._held_out)
            if missing := names - {entry.id for entry in entries}:
                raise StoreError(
                    f"held_out names {shown(min(missing))}, which is no recording of "
                    f"{self.store.folder}. Its first is {shown(entries[0].id)}."
                )
            return {entry.index for entry in entries if entry.id in names}
        if not 0 <= self._held_out < 1:
            raise StoreError(
                f"held_out is {self._held_out} of {len(entries)} recordings, which leaves none to "
                "train on. Pass less, or harvest more recordings."
            )
        n_kept = max(1, round(self._held_out * len(entries))) if self._held_out else 0
        return {entries[number].index for number in order[:n_kept]}

    def _first_minutes(self, minutes: float | int) -> list[RecordingEntry]:
        """The first recordings, as many as have so much sound together."""
        ends = np.cumsum([entry.seconds / 60 for entry in self._trained])
        if not 0 < minutes <= ends[-1] + 1e-6:
            raise StoreError(
                f"minutes is {minutes}; the recordings to train on have {ends[-1]:.2f} minutes. "
                "Pass over 0 and at most that."
            )
        return self._trained[: int(np.searchsorted(ends, minutes - 1e-6)) + 1]
