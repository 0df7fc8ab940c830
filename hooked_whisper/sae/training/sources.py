"""Where activations come from, and how they are cut to training batches."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.training.config import TrainingConfig


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
        """Shuffled batches; see `ActivationSource`."""
        if missing := [name for name in hook_names if name not in self.tensors]:
            raise TrainingError(
                f"no activations of {missing[0]!r} are held; there are {', '.join(self.tensors)}."
            )
        if not hook_names:
            raise TrainingError(f"no hook is named; there are {', '.join(self.tensors)}.")
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


class Position(NamedTuple):
    """The first vector that was not trained on: vector `row` of batch `batch` of the data."""

    batch: int = 0
    row: int = 0


class Piece(NamedTuple):
    """What is left of a batch of the data."""

    position: Position
    x: Tensor
    target: Tensor | None

    def __len__(self) -> int:
        return self.x.shape[0]


class Batches:
    """Cuts and joins batches of the data to the size of a training batch.

    Args:
        position: Where to begin: everything before it is left out as it comes.
    """

    def __init__(self, position: Position = Position()) -> None:  # noqa: B008  # immutable
        self.pieces: deque[Piece] = deque()
        self.n_waiting = 0
        self._end = position

    @property
    def position(self) -> Position:
        """The first vector that was not taken."""
        return self.pieces[0].position if self.pieces else self._end

    def add(
        self,
        number: int,
        x: Float[Tensor, "batch d_in"],
        target: Float[Tensor, "batch d_out"] | None = None,
    ) -> None:
        """Take in batch `number` of the data."""
        if number < self._end.batch:
            return
        row = self._end.row if number == self._end.batch else 0
        rest = Piece(Position(number, row), x[row:], None if target is None else target[row:])
        self._end = Position(number + 1)
        if len(rest):
            self.pieces.append(rest)
            self.n_waiting += len(rest)

    def take(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The next `n` vectors, which must be waiting, and what to reconstruct."""
        taken = []
        missing = n
        while missing:
            piece = self.pieces.popleft()
            if len(piece) > missing:
                batch, row = piece.position
                target = piece.target
                rest = None if target is None else target[missing:]
                self.pieces.appendleft(
                    Piece(Position(batch, row + missing), piece.x[missing:], rest)
                )
                target = None if target is None else target[:missing]
                piece = Piece(piece.position, piece.x[:missing], target)
            missing -= len(piece)
            taken.append(piece)
        self.n_waiting -= n
        if len(taken) == 1:
            return taken[0].x, taken[0].target
        targets = [piece.target for piece in taken if piece.target is not None]
        return torch.cat([piece.x for piece in taken]), torch.cat(targets) if targets else None


def flat_heads(item: Any) -> Any:
    """What a source gives, heads side by side."""
    if not isinstance(item, Mapping):
        return item
    return {name: rows.flatten(1) if rows.ndim > 2 else rows for name, rows in item.items()}


def by_hook(cfg: TrainingConfig, held_out: Any) -> dict[str, Tensor]:
    """Held-out vectors, or a pair of them, by the hooks that they are of."""
    parts = held_out if cfg.sae.is_transcoder else (held_out,)
    return dict(zip(hooks_of(cfg), parts, strict=True))


def of_hooks(item: Any, cfg: TrainingConfig) -> Any:
    """A trainer's part of a dict of batches; None where it has none in this one."""
    if not isinstance(item, Mapping):
        raise TrainingError(
            f"the activations gave a {type(item).__name__}; for several autoencoders they must "
            "give dicts of tensors by hook name."
        )
    parts = [item.get(name) for name in hooks_of(cfg)]
    if any(part is None for part in parts):
        return None
    return tuple(parts) if cfg.sae.is_transcoder else parts[0]


def hooks_of(cfg: TrainingConfig) -> list[str]:
    """What it reads, and for a transcoder what it writes."""
    sae, found = cfg.sae, []
    for which in ("hook_name", "hook_name_out") if cfg.sae.is_transcoder else ("hook_name",):
        name = getattr(sae, which)
        if name is None:
            raise TrainingError(
                f"{which} of the {type(sae).__name__} is None; say which activations to train on, "
                "for instance 'encoder.blocks.0.hook_resid_post'."
            )
        found.append(name)
    return found


def check_batch(
    item: Any, number: int, d_in: int, d_out: int, *, paired: bool, of: str = ""
) -> tuple[Tensor, Tensor | None]:
    """One batch of the data as activations and, for a transcoder, what to reconstruct.

    Args:
        item: What the data gave: a tensor, or a pair of tensors where there is a target.
        number: Its place in the data.
        d_in: Width that the activations must have.
        d_out: Width that the targets must have.
        paired: Whether there are targets.
        of: What the data are of, for the message: `" of 'encoder.blocks.0.hook_resid_post'"`.
    """
    where = f"batch {number} of the activations{of}"
    if not paired:
        return _check_vectors(item, where, d_in), None
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TrainingError(
            f"{where} is {_describe(item)}; a transcoder learns from pairs: the activations that "
            f"it reads, [n, {d_in}], and those that it writes, [n, {d_out}]."
        )
    x = _check_vectors(item[0], where, d_in)
    target = _check_vectors(item[1], f"the second half of {where}", d_out)
    if len(x) != len(target):
        raise TrainingError(
            f"{where} has {len(x)} vectors to read and {len(target)} to write; they must be "
            "those of the same positions."
        )
    return x, target


def _check_vectors(value: Any, where: str, width: int) -> Tensor:
    """Activations, once they are known to be finite vectors of one width."""
    needs = f"this autoencoder takes [n, {width}]"
    if not isinstance(value, Tensor):
        raise TrainingError(f"{where} is {_describe(value)}, not a tensor; {needs}.")
    if not value.is_floating_point():
        raise TrainingError(f"{where} has dtype {value.dtype}; activations are floating point.")
    if value.ndim != 2 or value.shape[1] != width:
        hint = " Flatten the other axes: x.flatten(0, -2)." if value.shape[-1:] == (width,) else ""
        raise TrainingError(f"{where} is {tuple(value.shape)}; {needs}.{hint}")
    # One sum is quick and shows every NaN and infinity; it may overflow, so then look closely.
    total = value.detach().sum(dtype=torch.float32)
    if not torch.isfinite(total):
        bad = ~torch.isfinite(value).all(dim=1)
        if bool(bad.any()):
            raise TrainingError(
                f"{where} holds NaN or infinity in {int(bad.sum())} of {len(value)} vectors, the "
                f"first in row {int(bad.nonzero()[0])}. Nothing was learned from it."
            )
    return value.detach()


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(repr, list(value)[:3]))}"
    return f"a {type(value).__name__}"
