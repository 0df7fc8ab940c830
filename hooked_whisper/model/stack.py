"""What both stacks offer beside their forward pass: running some blocks, and stacked weights."""

import operator
from typing import Any

import torch
from torch import Tensor, nn


class StackedWeight:
    """A weight of every block, joined along a new first axis `layer`.

    A copy, as PyTorch has no view of separate tensors: edit weights in the
    blocks. Gradients flow through it.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __set_name__(self, owner: type, name: str) -> None:
        self.__doc__ = f"`blocks[l].{self.path}` of every layer l, stacked."

    def __get__(self, stack: Any, owner: type | None = None) -> Any:
        if stack is None:
            return self
        read = operator.attrgetter(self.path)
        return torch.stack([read(block) for block in stack.blocks])


class TransformerStack(nn.Module):
    """Blocks that pass a residual stream on, and their weights stacked over layers."""

    blocks: nn.ModuleList

    W_Q = StackedWeight("attn.W_Q")
    W_K = StackedWeight("attn.W_K")
    W_V = StackedWeight("attn.W_V")
    W_O = StackedWeight("attn.W_O")
    b_Q = StackedWeight("attn.b_Q")
    b_K = StackedWeight("attn.b_K")
    b_V = StackedWeight("attn.b_V")
    b_O = StackedWeight("attn.b_O")
    W_in = StackedWeight("mlp.W_in")
    b_in = StackedWeight("mlp.b_in")
    W_out = StackedWeight("mlp.W_out")
    b_out = StackedWeight("mlp.b_out")

    def run_blocks(
        self, resid: Tensor, *args: Any, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Pass the residual stream through the blocks from `start` to just before `stop`.

        Args:
            resid: The stream before block `start`.
            args: What the blocks take beside it.
            start: The first block to run.
            stop: The first block not to run; None runs to the end.
        """
        for block in self.blocks[start:stop]:
            resid = block(resid, *args)
        return resid
