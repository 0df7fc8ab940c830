"""A store as PyTorch's DataLoader takes it, with workers and ranks; and one without an end."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hooked_whisper.hooks.names import NamesFilter
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

    Args:
        store: The store.
    """

    def __init__(self, store: ActivationStore) -> None:
        self._store = store

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
        options: dict[str, Any] = {"seed": seed, "n_epochs": None, "skip": skip, "turn": turn}
        stream: Any = self._store.stream(hook_names, batch_size, **options)
        with closing(stream) as batches:
            for batch in batches:
                yield {name: rows.flatten(1) for name, rows in batch.items()}
