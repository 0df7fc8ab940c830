"""Several ranks that train one autoencoder, each with its share of every batch.

Each rank reads its share of the data, and all have all of it: a training batch is the same
on every rank as in one process, whatever the sizes of the batches of the data. Activations
are small beside the gradients of the weights that they train: sending them costs little.

Each rank learns from its part of a training batch, and DistributedDataParallel averages the
gradients. Parts may differ in size by a vector, so each rank's loss is weighted by its share
of the batch before it goes backward.
"""

import atexit
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hooked_whisper.distributed import ProcessGroup, is_torchrun, join_torchrun
from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.base import SAE, Losses
from hooked_whisper.sae.training.config import TrainingConfig

PATIENCE = datetime.timedelta(minutes=30)
"""How long a rank waits for another one that is there but says nothing."""

Numbered = Iterator[tuple[int, Any]]
"""Batches of the data with their numbers."""


def agreed_ranks(cfgs: Mapping[str, TrainingConfig]) -> ProcessGroup:
    """The ranks that train together, which must train the same.

    They are those of PyTorch's process group; under torchrun, it is made if there is none.
    """
    if is_torchrun() and not dist.is_initialized():
        join_torchrun(PATIENCE)
        # Not at the end of this training: under torchrun, a group can be made once only.
        atexit.register(_leave)
    ranks = ProcessGroup.current(TrainingError, PATIENCE)
    own = {name: cfg.to_dict() for name, cfg in cfgs.items()}
    for rank, given in enumerate(ranks.gather_objects(own)):
        if given != own:
            raise TrainingError(
                f"rank {rank} trains {given} and rank {ranks.rank} trains {own}; all must train "
                "the same."
            )
    return ranks


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


# The data


def round_robin(stream: Iterator[Any], ranks: ProcessGroup, first: int) -> Numbered:
    """All batches of a source of which each rank gives every n-th.

    Args:
        stream: The batches from `first` on whose number modulo the ranks is this rank's.
        ranks: The ranks.
        first: The number to begin with.
    """
    if ranks.n == 1:
        yield from enumerate(stream, first)
        return
    for start in count(first, ranks.n):
        given = _exchange(stream, ranks)
        for number in range(start, start + ranks.n):
            item = given[number % ranks.n]
            if item is None:
                return
            yield number, item


def concatenated(items: Iterator[Any], ranks: ProcessGroup, first: int) -> Numbered:
    """Batches put together from what each rank's own iterator gives, in the order of the ranks.

    They end where the first of the iterators ends.

    Args:
        items: This rank's part of each batch.
        ranks: The ranks.
        first: Batches to leave out.
    """
    if ranks.n == 1:
        yield from enumerate(items)
        return
    for _ in range(first):
        next(items, None)
    for number in count(first):
        given = _exchange(items, ranks)
        if any(each is None for each in given):
            return
        if number == first:
            _check_different(given, number)
        yield number, _join(given, number)


class _Header(NamedTuple):
    """What a rank tells the others of its next batch.

    Args:
        kind: `"tensor"`, `"pair"` or `"dict"`; `"end"` where there is none; `"error"`.
        parts: Name, number of rows, shape of a row, and dtype of each tensor; of an error its text.
    """

    kind: str
    parts: Any = ()

    def describe(self) -> str:
        if self.kind == "end":
            return "nothing more"
        return ", ".join(
            f"{name!r} {(rows, *row)} {dtype}" for name, rows, row, dtype in self.parts
        )


def _exchange(items: Iterator[Any], ranks: ProcessGroup) -> list[Any]:
    """The next batch of each rank; None for one that has come to its end."""
    item, own_header = _next(items)
    headers: list[_Header] = ranks.gather_objects(own_header)
    for rank, each in enumerate(headers):
        if each.kind == "error":
            if rank == ranks.rank:
                raise item
            raise TrainingError(f"rank {rank} could not give its activations: {each.parts}")
    own = {} if item is None else _tensors(item) or {}
    found: list[dict[Any, Tensor]] = [{} for _ in headers]
    for name in dict.fromkeys(part[0] for header in headers for part in header.parts):
        forms = [next((p for p in header.parts if p[0] == name), None) for header in headers]
        row_shape, dtype = next(form[2:] for form in forms if form is not None)
        if any(form is not None and form[2:] != (row_shape, dtype) for form in forms):
            raise TrainingError(
                "the ranks' activations do not fit together: "
                f"{'; '.join(each.describe() for each in headers)}."
            )
        sizes = [0 if form is None else form[1] for form in forms]
        x = own.get(name)
        x = torch.empty(0, *row_shape, dtype=dtype) if x is None else x
        for tensors, form, rows in zip(found, forms, ranks.gather_rows(x, sizes), strict=True):
            if form is not None:
                tensors[name] = rows.to(ranks.device) if rows.device.type == "cpu" else rows
    return [_rebuild(each.kind, tensors) for each, tensors in zip(headers, found, strict=True)]


def _next(items: Iterator[Any]) -> tuple[Any, _Header]:
    """The next batch of this rank, and what the others are told of it."""
    try:
        item = next(items, None)
    except Exception as error:
        return error, _Header("error", f"{type(error).__name__}: {error}")
    if item is None:
        return None, _Header("end")
    tensors = _tensors(item)
    if tensors is None:
        text = f"it gave a {type(item).__name__} where a batch of activations was expected"
        return TrainingError(text), _Header("error", text)
    parts = [(name, len(x), tuple(x.shape[1:]), x.dtype) for name, x in tensors.items()]
    return item, _Header(_kind(item), parts)


def _join(given: list[Any], number: int) -> Any:
    """The ranks' parts of a batch as one."""
    tensors = [_tensors(each) or {} for each in given]
    if any(list(each) != list(tensors[0]) for each in tensors):
        raise TrainingError(
            f"the ranks' parts of batch {number} are of {[list(each) for each in tensors]}; all "
            "must be of the same hooks."
        )
    joined = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
    return _rebuild(_kind(given[0]), joined)


def _check_different(given: list[Any], number: int) -> None:
    """Find out where ranks were given all the data rather than their parts."""
    first, *others = [_tensors(each) or {} for each in given]
    if all(
        list(other) == list(first) and all(torch.equal(other[name], first[name]) for name in first)
        for other in others
    ):
        raise TrainingError(
            f"all {len(given)} ranks give the same activations in batch {number}. Under torchrun, "
            "an iterable gives the part of its own rank: pass ActivationDataset(store, ...), or "
            "batches[rank::n_ranks], or a source such as a store, which the ranks share by "
            "themselves."
        )


def _kind(item: Any) -> str:
    if isinstance(item, Tensor):
        return "tensor"
    return "dict" if isinstance(item, Mapping) else "pair"


def _tensors(item: Any) -> dict[Any, Tensor] | None:
    """The tensors of a batch by hook, or by their place in a pair; None where it is no batch."""
    if isinstance(item, Tensor):
        found = {0: item}
    elif isinstance(item, Mapping):
        found = {name: value for name, value in item.items() if value is not None}
    elif isinstance(item, tuple | list):
        found = dict(enumerate(item))
    else:
        return None
    fine = all(isinstance(each, Tensor) and each.ndim >= 1 for each in found.values())
    return found if fine else None


def _rebuild(kind: str, tensors: dict[Any, Tensor]) -> Any:
    if kind == "end":
        return None
    if kind == "dict":
        return tensors
    return tensors[0] if kind == "tensor" else tuple(tensors.values())


# A step


class _LossesOfPart(nn.Module):
    """The losses of an autoencoder as a forward pass, which is what can be wrapped."""

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor, target: Tensor | None, **options: Any) -> Losses:
        return self.sae.losses(x, target, **options)


def losses_on_all_ranks(sae: SAE, ranks: ProcessGroup) -> nn.Module:
    """What computes the losses of this rank's part so that gradients become those of all parts."""
    module = _LossesOfPart(sae)
    if ranks.n == 1:
        return module
    return DistributedDataParallel(module, process_group=ranks.group_of(sae.b_dec))


@dataclass(frozen=True)
class SharedBatch:
    """How a training batch is cut into the parts of ranks, and put together again.

    Args:
        ranks: The ranks.
        n_vectors: Vectors in the whole batch.
    """

    ranks: ProcessGroup
    n_vectors: int

    @property
    def is_cut(self) -> bool:
        """Whether it is cut into parts; one with fewer vectors than ranks is done by all."""
        return 1 < self.ranks.n <= self.n_vectors

    @property
    def own_part(self) -> slice:
        """The vectors that this rank learns from."""
        return self.ranks.part(self.n_vectors) if self.is_cut else slice(0, self.n_vectors)

    @property
    def _weight(self) -> float:
        """This rank's share in a mean over the batch; all ranks' add up to 1."""
        n_counted = self.n_vectors if self.is_cut else self.n_vectors * self.ranks.n
        return (self.own_part.stop - self.own_part.start) / n_counted

    def go_backward(self, losses: Losses) -> None:
        """Leave the gradient of the whole batch in the weights, on every rank.

        All losses are means over vectors: the whole's is the mean of the parts', each
        weighted by its size.
        """
        if self.ranks.n == 1:
            losses.total.backward()
            return
        with self.ranks.reporting_lost_ranks():
            (losses.total * (self.ranks.n * self._weight)).backward()

    @torch.no_grad()
    def whole_losses(self, losses: Losses) -> Losses:
        """The losses of the whole from those of this part, whose reconstruction they keep."""
        if self.ranks.n == 1:
            return losses
        names = list(losses.parts)
        numbers = [losses.total.detach(), losses.l0, *losses.parts.values()]
        scalars = torch.stack([each.double() for each in numbers]).mul_(self._weight)
        counted = torch.cat([scalars, losses.active.double()])
        self.ranks.sum_(counted)
        total, l0, *parts = counted[: len(numbers)].to(losses.total.dtype)
        return losses._replace(
            total=total,
            l0=l0,
            parts=dict(zip(names, parts, strict=True)),
            active=counted[len(numbers) :] > 0,
        )

    def whole_recons(self, recons: Tensor) -> Tensor:
        """The reconstruction of the whole from those of the parts."""
        if not self.is_cut:
            return recons
        return torch.cat(self.ranks.gather_rows(recons, self.ranks.sizes(self.n_vectors)))
