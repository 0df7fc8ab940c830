"""Shuffling more rows than fit into memory.

The rows are cut into blocks of 64 neighbours, and the blocks of the whole
store are put into a random order. As many blocks as the buffer holds are read
at a time, and their rows shuffled among themselves. So a batch comes from
blocks drawn from everywhere, whatever the order of recordings and shards, and
two neighbours in time meet in a batch about as rarely as the buffer is
larger than the batch. Reading stays in runs of 64 rows. The order depends on
the seed, the batch size, the buffer and the store alone: any rank and any
worker can tell which rows are its own, and read only these.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Int64
from torch import Tensor

from hooked_whisper.errors import StoreError, check_count

BLOCK_ROWS = 64
"""Neighbouring rows that are read together: 1.3 s of encoder positions."""

ReadSorted = Callable[[Int64[Tensor, " row"]], dict[str, Tensor]]


def shuffled_groups(
    n_rows: int, group_rows: int, generator: torch.Generator
) -> Iterator[Int64[Tensor, " row"]]:
    """Every row once, in groups that are shuffled in themselves and drawn from everywhere."""
    blocks = torch.randperm(-(-n_rows // BLOCK_ROWS), generator=generator)
    for chosen in blocks.split(max(1, group_rows // BLOCK_ROWS)):
        rows = (chosen[:, None] * BLOCK_ROWS + torch.arange(BLOCK_ROWS)).flatten()
        rows = rows[rows < n_rows]
        yield rows[torch.randperm(len(rows), generator=generator)]


class ShuffledReader:
    """All rows of a store in batches, each row once an epoch.

    Args:
        read_sorted: Gives rows by their numbers in rising order.
        n_rows: Rows there are.
        row_bytes: Bytes of one row, over all hooks.
        batch_size: Rows of a batch, over all ranks.
        seed: Of the order.
        rank: The part of each batch that is given.
        n_ranks: How many parts there are; batches are cut to a multiple of it.
        buffer_bytes: Rows in memory, at most: half of it in use, half being read.
        worker: The worker that asks; it gives every `n_workers`-th batch.
        n_workers: Workers that share the batches.

    Raises:
        StoreError: Sizes that do not fit together.
    """

    def __init__(
        self,
        read_sorted: ReadSorted,
        *,
        n_rows: int,
        row_bytes: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        n_ranks: int = 1,
        buffer_bytes: int = 2**28,
        worker: int = 0,
        n_workers: int = 1,
    ) -> None:
        if not 0 <= rank < n_ranks:
            raise StoreError(f"rank is {rank} of {n_ranks}; ranks count from 0.")
        check_count("batch_size", batch_size, 1, StoreError)
        if batch_size % n_ranks:
            raise StoreError(
                f"batch_size is {batch_size}; it must be a positive multiple of the {n_ranks} "
                "ranks, which share each batch."
            )
        self._read_sorted = read_sorted
        self._n_rows = n_rows
        self._group_rows = max(batch_size, buffer_bytes // 2 // max(1, row_bytes))
        self._batch_size = batch_size
        self._seed = seed
        self._part = (rank, n_ranks)
        self._turn = (worker, n_workers)

    def batches(
        self,
        n_epochs: int | None = 1,
        *,
        skip: int = 0,
        dtype: torch.dtype | None = None,
        with_rows: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        """The batches; the next group is read while this one is given out.

        Args:
            n_epochs: How often each row comes; None never ends.
            skip: Batches to leave out at the start, without reading them.
            dtype: What to give; None is as they are stored.
            with_rows: Also give the rows' numbers, as `"rows"`.
        """
        with ThreadPoolExecutor(max_workers=1) as thread:
            plans = self._plans(n_epochs, skip)
            plan = next(plans, None)
            coming = plan and thread.submit(self._read, plan)
            while plan and coming:
                rows, places = coming.result()
                following = next(plans, None)
                coming = following and thread.submit(self._read, following)
                for batch, place in zip(plan, places, strict=True):
                    given = {
                        name: value[place].to(dtype or value.dtype) for name, value in rows.items()
                    }
                    yield given | ({"rows": batch} if with_rows else {})
                plan = following

    def _read(self, plan: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The rows of some batches in rising order, and where each batch's are among them."""
        wanted = torch.cat(plan)
        in_order, order = wanted.sort()
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return self._read_sorted(in_order), list(back.split([len(batch) for batch in plan]))

    def _plans(self, n_epochs: int | None, skip: int) -> Iterator[list[Tensor]]:
        """The batches of each group that are this reader's own, as numbers of rows."""
        (rank, n_ranks), (worker, n_workers) = self._part, self._turn
        number = epoch = 0
        while (n_epochs is None or epoch < n_epochs) and self._n_rows:
            for group in self._grouped_batches(epoch):
                own = []
                for batch in group:
                    size = len(batch) // n_ranks
                    if size and number >= skip and number % n_workers == worker:
                        own.append(batch[rank * size : (rank + 1) * size])
                    number += 1
                if own:
                    yield own
            epoch += 1

    def _grouped_batches(self, epoch: int) -> Iterator[list[Tensor]]:
        """All batches of an epoch; what is left of a group goes before the next."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        left = torch.empty(0, dtype=torch.int64)
        for group in shuffled_groups(self._n_rows, self._group_rows, generator):
            rows = torch.cat([left, group])
            n_whole = len(rows) // self._batch_size * self._batch_size
            left = rows[n_whole:]
            if n_whole:
                yield list(rows[:n_whole].split(self._batch_size))
        if len(left):
            yield [left]
