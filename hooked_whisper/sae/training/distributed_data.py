"""The data of several ranks: each reads its share, and all have all of it.

A training batch is then the same on every rank as in one process, whatever the sizes
of the batches of the data, and each rank learns from its part of it. Activations are
small beside the gradients of the weights that they train: sending them costs little.
"""

import atexit
import datetime
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hooked_whisper.distributed import ProcessGroup, is_torchrun, join_torchrun
from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.training.config import TrainingConfig

PATIENCE = datetime.timedelta(minutes=30)
"""How long a rank waits for another one that is there but says nothing."""

Numbered = Iterator[tuple[int, Any]]
"""Batches of the data with their numbers."""


class Said(NamedTuple):
    """What a rank tells the others of its next batch.

    Args:
        kind: `"tensor"`, `"pair"` or `"dict"`; `"end"` where there is none; `"error"`.
        parts: Name, number of rows, shape of a row, and dtype of each tensor; of an error its text.
    """

    kind: str
    parts: Any = ()


def agreed_ranks(cfgs: Mapping[str, TrainingConfig]) -> ProcessGroup:
    """The ranks that train together, which must train the same.

    They are those of PyTorch's process group; under torchrun, it is made if there is none.

    Raises:
        TrainingError: Their configs differ.
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


def in_turns(stream: Iterator[Any], ranks: ProcessGroup, first: int) -> Numbered:
    """All batches of a source of which each rank reads every n-th.

    Args:
        stream: The batches from `first` on whose number modulo the ranks is this rank's.
        ranks: The ranks.
        first: The number to begin with.
    """
    for start in count(first, ranks.n):
        given = _exchange(stream, ranks)
        for number in range(start, start + ranks.n):
            item = given[number % ranks.n]
            if item is None:
                return
            yield number, item


def alike(stream: Iterator[Any], ranks: ProcessGroup, first: int) -> Numbered:
    """All batches of a source that every rank reads as a whole.

    Raises:
        TrainingError: They are not alike on all ranks.
    """
    if ranks.n == 1:
        yield from enumerate(stream, first)
        return
    for number in count(first):
        item, said = _next(stream)
        everyone = ranks.gather_objects(said)
        _raise_errors(everyone, ranks, item)
        if "end" in [each.kind for each in everyone]:
            return
        if any(each != said for each in everyone):
            raise TrainingError(
                f"batch {number} of the activations is not the same on all ranks: "
                f"{'; '.join(_describe(each) for each in everyone)}. A source gives every rank the "
                "same batches in the same order, or takes turn=(rank, n_ranks)."
            )
        yield number, item


def in_parts(items: Iterator[Any], ranks: ProcessGroup, first: int) -> Numbered:
    """Batches put together from what each rank's own iterator gives, in the order of the ranks.

    They end where the first of the iterators ends.

    Args:
        items: This rank's part of each batch.
        ranks: The ranks.
        first: Batches to leave out.

    Raises:
        TrainingError: The parts do not fit together, or are the same on all ranks.
    """
    for _ in range(first):
        next(items, None)
    for number in count(first):
        given = _exchange(items, ranks)
        if any(each is None for each in given):
            return
        if number == first:
            _check_different(given, number)
        yield number, _join(given, number)


def _next(items: Iterator[Any]) -> tuple[Any, Said]:
    """The next batch of this rank, and what the others are told of it."""
    try:
        item = next(items, None)
    except Exception as error:
        return error, Said("error", f"{type(error).__name__}: {error}")
    if item is None:
        return None, Said("end")
    tensors = _tensors(item)
    if tensors is None:
        text = f"it gave a {type(item).__name__} where a batch of activations was expected"
        return TrainingError(text), Said("error", text)
    kind = "tensor" if isinstance(item, Tensor) else "dict" if _is_dict(item) else "pair"
    parts = [(name, len(x), tuple(x.shape[1:]), x.dtype) for name, x in tensors.items()]
    return item, Said(kind, parts)


def _exchange(items: Iterator[Any], ranks: ProcessGroup) -> list[Any]:
    """The next batch of each rank; None for one that has come to its end."""
    item, said = _next(items)
    everyone: list[Said] = ranks.gather_objects(said)
    _raise_errors(everyone, ranks, item)
    own = {} if item is None else _tensors(item) or {}
    found: list[dict[Any, Tensor]] = [{} for _ in everyone]
    for name in dict.fromkeys(part[0] for each in everyone for part in each.parts):
        forms = [next((p for p in each.parts if p[0] == name), None) for each in everyone]
        row_shape, dtype = next(form[2:] for form in forms if form is not None)
        if any(form is not None and form[2:] != (row_shape, dtype) for form in forms):
            raise TrainingError(
                "the ranks' activations do not fit together: "
                f"{'; '.join(_describe(each) for each in everyone)}."
            )
        sizes = [0 if form is None else form[1] for form in forms]
        x = own.get(name)
        x = torch.empty(0, *row_shape, dtype=dtype) if x is None else x
        for each, form, rows in zip(found, forms, ranks.gather_rows(x, sizes), strict=True):
            if form is not None:
                each[name] = rows.to(ranks.device) if rows.device.type == "cpu" else rows
    return [_rebuild(each.kind, parts) for each, parts in zip(everyone, found, strict=True)]


def _raise_errors(everyone: list[Said], ranks: ProcessGroup, own: Any) -> None:
    """Stop on all ranks where one has no batch to give."""
    for rank, each in enumerate(everyone):
        if each.kind == "error":
            if rank == ranks.rank:
                raise own
            raise TrainingError(f"rank {rank} could not give its activations: {each.parts}")


def _join(given: list[Any], number: int) -> Any:
    """The ranks' parts of a batch as one."""
    tensors = [_tensors(each) or {} for each in given]
    if any(list(each) != list(tensors[0]) for each in tensors):
        raise TrainingError(
            f"the ranks' parts of batch {number} are of {[list(each) for each in tensors]}; all "
            "must be of the same hooks."
        )
    joined = {name: torch.cat([each[name] for each in tensors]) for name in tensors[0]}
    kind = "tensor" if isinstance(given[0], Tensor) else "dict" if _is_dict(given[0]) else "pair"
    return _rebuild(kind, joined)


def _check_different(given: list[Any], number: int) -> None:
    """Find out where ranks were given all the data rather than their parts."""
    first, *others = [_tensors(each) or {} for each in given]
    if all(
        list(each) == list(first) and all(torch.equal(each[name], first[name]) for name in first)
        for each in others
    ):
        raise TrainingError(
            f"all {len(given)} ranks give the same activations in batch {number}. Under torchrun, "
            "an iterable gives the part of its own rank: pass ActivationDataset(store, ...), or "
            "batches[rank::n_ranks], or a source such as a store, which the ranks share by "
            "themselves."
        )


def _tensors(item: Any) -> dict[Any, Tensor] | None:
    """The tensors of a batch by hook, or by their place in a pair; None where it is no batch."""
    if isinstance(item, Tensor):
        found = {0: item}
    elif _is_dict(item):
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
    return (
        tensors if kind == "dict" else tensors[0] if kind == "tensor" else tuple(tensors.values())
    )


def _is_dict(item: Any) -> bool:
    return isinstance(item, Mapping)


def _describe(said: Said) -> str:
    if said.kind == "end":
        return "nothing more"
    return ", ".join(f"{name!r} {(rows, *row)} {dtype}" for name, rows, row, dtype in said.parts)
