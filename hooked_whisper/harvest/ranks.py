"""The processes of one harvest, as torchrun starts them; one alone where it does not."""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from hooked_whisper.errors import HookedWhisperError, StoreError

_PATIENCE = datetime.timedelta(days=7)
"""How long a rank waits for the others: one may have all the long recordings."""


class Ranks:
    """This process among those that share a harvest.

    Args:
        rank: Its number.
        n: How many there are.
        group: What they talk through; None where there is one.
    """

    def __init__(self, rank: int = 0, n: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.n = n
        self._group = group

    @classmethod
    def current(cls) -> "Ranks":
        """The ranks of PyTorch's process group, where one was made; every rank must call this."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        # NCCL moves tensors of GPUs alone: what ranks say to each other goes through gloo.
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, in their order."""
        if self.n == 1:
            return [value]
        found: list[Any] = [None] * self.n
        dist.all_gather_object(found, value, group=self._group)
        return found

    def share(self, value: Any) -> Any:
        """What the first rank has."""
        if self.n == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def once(self, function: Callable[[], Any]) -> Any:
        """What a function gives, run by the first rank alone; its error is everybody's."""
        result: Any = None
        if self.is_first:
            try:
                result = (True, function())
            except HookedWhisperError as error:
                if self.n == 1:
                    raise
                result = (False, error)
        fine, value = self.share(result)
        if not fine:
            raise value
        return value

    def wait(self) -> None:
        """Go on when everybody is here."""
        if self.n > 1:
            dist.barrier(group=self._group)


@contextmanager
def torchrun_group() -> Iterator[torch.device | None]:
    """The process group of a command that torchrun started, and this rank's device.

    gloo on CPUs, NCCL where every rank of the machine has a GPU of its own.
    Without torchrun, nothing happens, and the device is None.

    Raises:
        StoreError: torchrun's variables are there in part.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield None
        return
    try:
        local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    except KeyError as error:
        raise StoreError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {error} is not set. Start several "
            "processes with torchrun --nproc-per-node."
        ) from error
    has_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= here
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_first_rank() -> bool:
    """Whether this process is the one that speaks for all."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
