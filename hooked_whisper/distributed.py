"""The processes that share one piece of work, as torchrun starts them; or one alone."""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from hooked_whisper.errors import HookedWhisperError, InputError

PATIENCE = datetime.timedelta(days=7)
"""How long a rank waits for the others where one may have all the long recordings."""


class ProcessGroup:
    """This process among those that share some work.

    Args:
        rank: Its number.
        n: How many there are.
        group: What they talk through, under gloo; None where there is one.
        error: What is raised when another process is lost.
    """

    def __init__(
        self,
        rank: int = 0,
        n: int = 1,
        group: Any = None,
        error: type[HookedWhisperError] = HookedWhisperError,
    ) -> None:
        self.rank = rank
        self.n = n
        self._group = group
        self._error = error
        self._on_gpus = n > 1 and dist.get_backend() == "nccl"

    @classmethod
    def current(
        cls,
        error: type[HookedWhisperError] = HookedWhisperError,
        patience: datetime.timedelta = PATIENCE,
    ) -> "ProcessGroup":
        """The ranks of PyTorch's process group, where one was made; every rank must call this.

        Args:
            error: What is raised when another process is lost.
            patience: How long to wait for one that says nothing.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls(error=error)
        # NCCL moves tensors of GPUs alone: what ranks say to each other goes through gloo.
        group = dist.new_group(backend="gloo", timeout=patience)
        return cls(dist.get_rank(), dist.get_world_size(), group, error)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where tensors are that ranks give each other: a GPU of its own, or the CPU."""
        if self._on_gpus:
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    # Objects

    def gather_objects(self, value: Any) -> list[Any]:
        """What each rank has, in their order."""
        if self.n == 1:
            return [value]
        found: list[Any] = [None] * self.n
        with self.reporting_lost_ranks():
            dist.all_gather_object(found, value, group=self._group)
        return found

    def broadcast_object(self, value: Any) -> Any:
        """What the first rank has."""
        if self.n == 1:
            return value
        box = [value]
        with self.reporting_lost_ranks():
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def run_on_first(self, function: Callable[[], Any]) -> Any:
        """What a function gives, run by the first rank alone; its error is everybody's."""
        result: Any = None
        if self.is_first:
            try:
                result = (True, function())
            except HookedWhisperError as error:
                if self.n == 1:
                    raise
                result = (False, error)
        fine, value = self.broadcast_object(result)
        if not fine:
            raise value
        return value

    def barrier(self) -> None:
        """Go on when everybody is here."""
        if self.n > 1:
            with self.reporting_lost_ranks():
                dist.barrier(group=self._group)

    # Tensors

    def sum_(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor, which all ranks have in one shape, by its sum over them."""
        if self.n > 1:
            with self.reporting_lost_ranks():
                dist.all_reduce(tensor, group=self.group_of(tensor))

    def minimum(self, number: float) -> float:
        """The least of the ranks' numbers."""
        if self.n == 1:
            return number
        box = torch.tensor(number, dtype=torch.float64)
        with self.reporting_lost_ranks():
            dist.all_reduce(box, dist.ReduceOp.MIN, group=self._group)
        return float(box)

    def gather_counts(self, *own: int) -> list[list[int]]:
        """Each rank's integers; all give as many."""
        if self.n == 1:
            return [list(own)]
        box = torch.zeros(self.n, len(own), dtype=torch.int64)
        box[self.rank] = torch.tensor(own)
        with self.reporting_lost_ranks():
            dist.all_reduce(box, group=self._group)
        found: list[list[int]] = box.tolist()
        return found

    def broadcast_(self, tensor: Tensor) -> None:
        """Make a tensor, which all ranks have in one shape, that of the first rank."""
        if self.n > 1:
            with self.reporting_lost_ranks():
                dist.broadcast(tensor, src=0, group=self.group_of(tensor))

    def gather_rows(self, rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Each rank's rows.

        Args:
            rows: This rank's, of any number; what follows the first axis is alike on all ranks.
            sizes: How many each rank has.
        """
        if self.n == 1:
            return [rows]
        row_shape = rows.shape[1:]
        row_bytes = row_shape.numel() * rows.dtype.itemsize
        own = rows.detach().to(self.device).contiguous().flatten().view(torch.uint8)
        padded = own.new_empty(max(sizes) * row_bytes)
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in sizes]
        with self.reporting_lost_ranks():
            dist.all_gather(found, padded, group=self.group_of(padded))
        return [
            each[: size * row_bytes].view(rows.dtype).view(size, *row_shape).to(rows.device)
            for each, size in zip(found, sizes, strict=True)
        ]

    # Sharing rows

    def sizes(self, n_rows: int) -> list[int]:
        """How many of some rows each rank takes; the shares differ by one at most."""
        ends = [n_rows * (rank + 1) // self.n for rank in range(self.n)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def part(self, n_rows: int) -> slice:
        """Which of some rows this rank takes; in their order, ranks have all of them."""
        return slice(n_rows * self.rank // self.n, n_rows * (self.rank + 1) // self.n)

    def group_of(self, tensor: Tensor) -> Any:
        """The process group that moves tensors of this one's device; None is PyTorch's default."""
        return None if self._on_gpus and tensor.is_cuda else self._group

    @contextmanager
    def reporting_lost_ranks(self) -> Iterator[None]:
        """While it lasts, a failure says that another process is lost."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise  # this one's own
        except RuntimeError as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self._error(
                f"rank {self.rank} of {self.n} lost the others: one of them ended or does not "
                f"answer ({what}). What happened is in that one's own error. Start all of them "
                "again to go on."
            ) from error


# torchrun


def join_torchrun(patience: datetime.timedelta = PATIENCE) -> torch.device | None:
    """Make the process group of a program that torchrun started; this rank's device.

    gloo on CPUs, NCCL where every rank of the machine has a GPU of its own.
    Without torchrun, or with a process group already, nothing happens, and the device is None.

    Raises:
        InputError: torchrun's variables are there in part.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return None
    try:
        local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    except KeyError as error:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {error} is not set. Start several "
            "processes with torchrun --nproc-per-node."
        ) from error
    has_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= here
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    store, rank, n_ranks = next(rendezvous("env://", timeout=patience))
    # torchrun keeps one store over its restarts. Without names of their own, ranks would find
    # the addresses of those that ended, and wait for them.
    number = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    attempt = dist.PrefixStore(number, store)  # type: ignore[attr-defined]
    backend = "nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=n_ranks, timeout=patience)
    return device


def is_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def has_restarted() -> bool:
    """Whether torchrun started this process anew, after one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def torchrun_group() -> Iterator[torch.device | None]:
    """The process group of a command that torchrun started, and this rank's device.

    See `join_torchrun`. The group is given up at the end.
    """
    device = join_torchrun()
    try:
        yield device
    finally:
        if device is not None:
            dist.destroy_process_group()


def is_first_rank() -> bool:
    """Whether this process is the one that speaks for all."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
