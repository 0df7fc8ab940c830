"""Where activations come from when there is more than an iterator: stores, and memory."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import TrainingError


@runtime_checkable
class ActivationSource(Protocol):
    """What gives activations of several hooks in one pass, in an order that a seed decides.

    A `stream` that also takes `skip=` (so many batches from the start, not computed) makes
    resuming quick; of others the batches are made and thrown away. Where it takes
    `turn=(which, n)` besides (only the batches whose number modulo n is `which`), several
    ranks share the reading; of others each rank makes all batches itself.
    """

    def stream(
        self, hook_names: Sequence[str], batch_size: int, *, seed: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Batches of vectors by hook.

        Args:
            hook_names: Which activations.
            batch_size: Vectors in a batch at most.
            seed: Of the order; the same seed gives the same batches.

        Yields:
            `[n, width]` for some or all of the hooks. Those of one stack have the same
            positions in the same order.
        """
        ...


class MemoryActivations:
    """Activations that are held in memory (or mapped from a file), shuffled anew every epoch.

    Args:
        tensors: `[n, width]` by hook. Hooks with as many vectors as each other have the
            same positions in the same order, and keep that order among them.
        n_epochs: How often everything comes; None is without end.

    Raises:
        TrainingError: No hooks, or a tensor that is no `[n, width]`.
    """

    def __init__(
        self, tensors: Mapping[str, Float[Tensor, "batch _"]], n_epochs: int | None = None
    ) -> None:
        if not tensors:
            raise TrainingError("no tensors were given; pass {hook name: activations}.")
        for name, value in tensors.items():
            if value.ndim != 2 or not len(value):
                raise TrainingError(
                    f"the activations of {name!r} are {tuple(value.shape)}; they must be "
                    "[n, width] with at least one vector."
                )
        self.tensors = dict(tensors)
        self.n_epochs = n_epochs

    def __repr__(self) -> str:
        shapes = {name: tuple(value.shape) for name, value in self.tensors.items()}
        return f"MemoryActivations({shapes})"

    def stream(
        self, hook_names: Sequence[str], batch_size: int, *, seed: int = 0, skip: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Shuffled batches; see `ActivationSource`.

        Raises:
            TrainingError: A hook that is not held.
        """
        if missing := [name for name in hook_names if name not in self.tensors]:
            raise TrainingError(
                f"no activations of {missing[0]!r} are held; there are {', '.join(self.tensors)}."
            )
        groups: dict[int, list[str]] = {}
        for name in hook_names:
            groups.setdefault(len(self.tensors[name]), []).append(name)
        return self._stream(groups, batch_size, seed, skip)

    def _stream(
        self, groups: Mapping[int, list[str]], batch_size: int, seed: int, skip: int
    ) -> Iterator[dict[str, Tensor]]:
        per_epoch = sum(-(-n // batch_size) for n in groups)
        first, skip = divmod(skip, per_epoch)
        for epoch in count(first) if self.n_epochs is None else range(first, self.n_epochs):
            starts = [(n, start) for n in groups for start in range(0, n, batch_size)]
            turns = np.random.default_rng([seed, epoch]).permutation(len(starts))
            orders = {n: permutation(n, seed, epoch, n) for n in groups}
            for turn in turns[skip:]:
                n, start = starts[turn]
                rows = orders[n][start : start + batch_size]
                yield {name: self.tensors[name][rows] for name in groups[n]}
            skip = 0


def permutation(n: int, *seeds: int) -> Tensor:
    """An order of `n` things that the seeds alone decide."""
    return torch.from_numpy(np.random.default_rng(seeds).permutation(n))
