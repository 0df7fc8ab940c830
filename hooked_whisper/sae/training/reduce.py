"""From each rank's part of a training batch to the losses and gradients of the whole.

What DistributedDataParallel does, written out: its averages would be wrong for parts of
different sizes, it looks at `forward` rather than `losses`, and it gains nothing by
sending early where a loss hands out all its gradients at once. Here several autoencoders
take their steps one by one, and losses, counters and gradients travel together.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hooked_whisper.ranks import Ranks
from hooked_whisper.sae.base import SAE, Losses


def is_shared(ranks: Ranks, n_vectors: int) -> bool:
    """Whether a batch is cut into parts; one with fewer vectors than ranks is done by all."""
    return 1 < ranks.n <= n_vectors


def own_part(ranks: Ranks, n_vectors: int) -> slice:
    """The vectors of a batch that this rank learns from."""
    return ranks.part(n_vectors) if is_shared(ranks, n_vectors) else slice(0, n_vectors)


@contextmanager
def selecting_together(sae: SAE, ranks: Ranks, n_vectors: int) -> Iterator[None]:
    """While it lasts, what an autoencoder chooses in a batch, it chooses in all ranks' parts."""
    sae.ranks = ranks if is_shared(ranks, n_vectors) else None
    try:
        yield
    finally:
        sae.ranks = None


@torch.no_grad()
def reduce_losses(losses: Losses, parameters: list[Tensor], ranks: Ranks, n_vectors: int) -> Losses:
    """The losses of the whole batch, whose gradients are put in place of those of the part.

    All losses are means over vectors: the whole's is the mean of the parts', each
    weighted by its size.

    Args:
        losses: Those of this rank's part, gone backward.
        parameters: What has gradients.
        ranks: The ranks.
        n_vectors: Vectors in the whole batch.

    Returns:
        Losses without a graph; the reconstruction is still that of the part.
    """
    if ranks.n == 1:
        return losses
    part = own_part(ranks, n_vectors)
    n_counted = n_vectors if is_shared(ranks, n_vectors) else n_vectors * ranks.n
    weight = (part.stop - part.start) / n_counted
    gradients = [each.grad for each in parameters if each.grad is not None]
    for gradient in gradients:
        gradient.mul_(weight)
    names = list(losses.parts)
    numbers = [losses.total.detach(), losses.l0, *losses.parts.values()]
    scalars = torch.stack([each.double() for each in numbers]).mul_(weight)
    counted = torch.cat([scalars, losses.active.double()])
    ranks.sum_([*gradients, counted])
    total, l0, *parts = counted[: len(numbers)].to(losses.total.dtype)
    return losses._replace(
        total=total,
        l0=l0,
        parts=dict(zip(names, parts, strict=True)),
        active=counted[len(numbers) :] > 0,
    )


def whole_recons(recons: Tensor, ranks: Ranks, n_vectors: int) -> Tensor:
    """The reconstruction of a whole batch from those of the parts."""
    if not is_shared(ranks, n_vectors):
        return recons
    return torch.cat(ranks.gather_rows(recons, ranks.sizes(n_vectors)))
