"""Blocks of an encoder that have computed the same before need not compute it again.

Of the 30 s that Whisper's encoder attends to, a digit takes one: most of the time of a test that
runs a command, a page or an example on the shipped recordings goes into blocks of a hundredth of
them. Tests of the model itself do not use this.
"""

import hashlib
from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from hooked_whisper.hooks.points import HookPoint, is_watched
from hooked_whisper.model.blocks import EncoderBlock

MOST_BYTES = 2**26
"""Of the outputs that are kept."""

_real = EncoderBlock.forward
_kept: OrderedDict[bytes, Tensor] = OrderedDict()
"""Outputs by the digest of all that they hang on, the one last used at the end."""


def run_blocks_once(patch: pytest.MonkeyPatch) -> None:
    """Have every encoder compute a block once, until the patch is undone."""
    patch.setattr(EncoderBlock, "forward", run_once)


def run_once(block: EncoderBlock, resid: Tensor, n_queries: int | None = None) -> Tensor:
    """In the place of `EncoderBlock.forward`: what it gave for this input and these weights.

    Where somebody looks on, gradients are kept or the window is short, the block itself runs.
    """
    if torch.is_grad_enabled() or resid.shape[1] < 1000 or is_watched(*block.modules()):
        return _real(block, resid, n_queries)
    key = _digest(block, resid, n_queries)
    if key not in _kept:
        _kept[key] = _real(block, resid, n_queries).clone()
    _kept.move_to_end(key)
    while sum(output.nbytes for output in _kept.values()) > MOST_BYTES and len(_kept) > 1:
        _kept.popitem(last=False)
    return _kept[key].clone()


def _digest(block: EncoderBlock, resid: Tensor, n_queries: int | None) -> bytes:
    """Of the input with its place in memory, every weight, and what is switched on."""
    flags = [module.enabled for module in block.modules() if isinstance(module, HookPoint)]
    digest = hashlib.blake2b(repr((resid.shape, resid.stride(), n_queries, flags)).encode())
    for value in (resid, *block.state_dict().values()):
        digest.update(f"{value.dtype}{value.device}".encode())
        digest.update(value.detach().contiguous().view(torch.uint8).numpy())
    return digest.digest()
