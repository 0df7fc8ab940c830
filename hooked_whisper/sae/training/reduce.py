"""From each rank's part of a training batch to the losses and gradients of the whole.

DistributedDataParallel averages the gradients of the ranks. Parts may differ in size by a
vector, so each rank's loss is weighted by its share of the batch before it goes backward.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hooked_whisper.distributed import ProcessGroup
from hooked_whisper.sae.base import SAE, Losses


def is_shared(ranks: ProcessGroup, n_vectors: int) -> bool:
    """Whether a batch is cut into parts; one with fewer vectors than ranks is done by all."""
    return 1 < ranks.n <= n_vectors


def own_part(ranks: ProcessGroup, n_vectors: int) -> slice:
    """The vectors of a batch that this rank learns from."""
    return ranks.part(n_vectors) if is_shared(ranks, n_vectors) else slice(0, n_vectors)


class LossesOfPart(nn.Module):
    """The losses of an autoencoder as a forward pass, which is what can be wrapped."""

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor, target: Tensor | None, **options: Any) -> Losses:
        """`sae.losses(x, target, **options)`."""
        return self.sae.losses(x, target, **options)


def losses_on_all_ranks(sae: SAE, ranks: ProcessGroup) -> nn.Module:
    """What computes the losses of this rank's part so that gradients become those of all parts."""
    module = LossesOfPart(sae)
    if ranks.n == 1:
        return module
    return DistributedDataParallel(module, process_group=ranks.group_of(sae.b_dec))


def go_backward(losses: Losses, ranks: ProcessGroup, n_vectors: int) -> None:
    """Leave the gradient of the whole batch in the weights, on every rank.

    All losses are means over vectors: the whole's is the mean of the parts', each
    weighted by its size.
    """
    if ranks.n == 1:
        losses.total.backward()
        return
    with ranks.reporting_lost_ranks():
        (losses.total * (ranks.n * _weight(ranks, n_vectors))).backward()


@torch.no_grad()
def reduce_losses(losses: Losses, ranks: ProcessGroup, n_vectors: int) -> Losses:
    """The losses of the whole batch from those of the parts.

    Args:
        losses: Those of this rank's part.
        ranks: The ranks.
        n_vectors: Vectors in the whole batch.

    Returns:
        Losses without a graph; the reconstruction is still that of the part.
    """
    if ranks.n == 1:
        return losses
    names = list(losses.parts)
    numbers = [losses.total.detach(), losses.l0, *losses.parts.values()]
    scalars = torch.stack([each.double() for each in numbers]).mul_(_weight(ranks, n_vectors))
    counted = torch.cat([scalars, losses.active.double()])
    ranks.sum_([counted])
    total, l0, *parts = counted[: len(numbers)].to(losses.total.dtype)
    return losses._replace(
        total=total,
        l0=l0,
        parts=dict(zip(names, parts, strict=True)),
        active=counted[len(numbers) :] > 0,
    )


def _weight(ranks: ProcessGroup, n_vectors: int) -> float:
    """This rank's share in a mean over the batch; all ranks' add up to 1."""
    part = own_part(ranks, n_vectors)
    n_counted = n_vectors if is_shared(ranks, n_vectors) else n_vectors * ranks.n
    return (part.stop - part.start) / n_counted


def whole_recons(recons: Tensor, ranks: ProcessGroup, n_vectors: int) -> Tensor:
    """The reconstruction of a whole batch from those of the parts."""
    if not is_shared(ranks, n_vectors):
        return recons
    return torch.cat(ranks.gather_rows(recons, ranks.sizes(n_vectors)))
