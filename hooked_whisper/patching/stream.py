"""Rows joining a residual stream on its way through the blocks, each at its stop."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.patching.resume_point import Entry, Stop

Step = Callable[[Tensor], Tensor]


def ride(blocks: Iterator[list[Step]], boarding: dict[Stop, Tensor], n_layers: int) -> Tensor:
    """Pass the residual stream through the blocks; rows join it at their stops."""
    resid = None
    for layer, steps in enumerate(blocks):
        for stage, step in enumerate(steps):
            resid = join(resid, boarding.get(Stop(layer, stage)))
            if resid is not None:
                resid = step(resid)
    resid = join(resid, boarding.get(Stop(n_layers, 0)))
    assert resid is not None
    return resid


def join(resid: Tensor | None, joining: Tensor | None) -> Tensor | None:
    if resid is None or joining is None:
        return joining if resid is None else resid
    return torch.cat([resid, joining])


def joined(streams: list[Tensor]) -> Tensor:
    return streams[0] if len(streams) == 1 else torch.cat(streams)


def write(block: Any, entry: Entry, patched: Tensor) -> Tensor:
    """What the patched sublayer adds to the stream."""
    if entry.kind == "output":
        return patched
    if entry.kind == "post":
        return block.hook_mlp_out(block.mlp.fc_out(patched))
    written = getattr(block, str(entry.sublayer)).write(patched)
    return (block.hook_attn_out if entry.sublayer == "attn" else block.hook_cross_attn_out)(written)


def resid_behind(block: Any, entry: Entry) -> HookPoint:
    """The hook on the stream behind a sublayer."""
    if entry.sublayer == "mlp":
        return block.hook_resid_post
    return block.hook_resid_mid if entry.sublayer == "attn" else block.hook_resid_mid_cross
