"""The blocks of both stacks: attention, in the decoder cross-attention too, and an MLP.

Every sublayer reads the residual stream through a LayerNorm and adds to it:

    resid_mid       = resid_pre + attn_out
    resid_mid_cross = resid_mid + cross_attn_out        (decoder)
    resid_post      = resid_mid(_cross) + mlp_out
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.model.attention import Attention
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.layers import MLP, LayerNorm

Residual = Float[Tensor, "batch pos d_model"]
Step = Callable[[Tensor], Tensor]
"""From the residual stream at one place of a block to it at the next."""

ALL = slice(None)
_PER_HEAD = "batch pos head d_model"


class Block(nn.Module):
    """What the blocks of both stacks share: self-attention first, an MLP last."""

    def __init__(self, cfg: HookedWhisperConfig, stack: Stack) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads(stack)
        self.ln1 = LayerNorm(cfg)
        self.attn = Attention(cfg, stack)
        self.mlp = MLP(cfg)
        self.hook_resid_pre = HookPoint("batch pos d_model")
        self.hook_attn_in = HookPoint(_PER_HEAD, flag="use_attn_in")
        self.hook_q_input = HookPoint(_PER_HEAD, flag="use_split_qkv_input")
        self.hook_k_input = HookPoint(_PER_HEAD, flag="use_split_qkv_input")
        self.hook_v_input = HookPoint(_PER_HEAD, flag="use_split_qkv_input")
        self.hook_attn_out = HookPoint("batch pos d_model")
        self.hook_resid_mid = HookPoint("batch pos d_model")
        self.hook_mlp_in = HookPoint("batch pos d_model", flag="use_hook_mlp_in")
        self.hook_mlp_out = HookPoint("batch pos d_model")
        self.hook_resid_post = HookPoint("batch pos d_model")

    def declare_axes(self) -> None:
        """Bring the axes that LayerNorms declare in line with the flags."""
        self.ln1.set_per_head(self.hook_attn_in.enabled or self.hook_q_input.enabled)

    def attend(
        self,
        resid: Float[Tensor, "batch key d_model"],
        kv_cache: KVCache | None = None,
        queries: slice = ALL,
    ) -> Residual:
        """Self-attention: from the stream before the block to `hook_resid_mid`.

        Args:
            resid: The stream.
            kv_cache: Keys and values of earlier positions, to be extended.
            queries: Positions to compute; they read all. In the decoder all of them, or the last.
        """
        attn_out = self._self_attention(resid, kv_cache, queries)
        return self.hook_resid_mid(resid[:, queries] + attn_out)

    def _self_attention(
        self,
        resid: Float[Tensor, "batch key d_model"],
        kv_cache: KVCache | None,
        queries: slice,
    ) -> Residual:
        """What self-attention writes, from the residual stream before the block."""
        x: Tensor = resid
        if self.hook_attn_in.enabled:
            x = self.hook_attn_in(self._for_each_head(x))
        if self.hook_q_input.enabled:
            # Three inputs to a head, but one LayerNorm: they pass it side by side.
            x = x if x.ndim == 4 else self._for_each_head(x)
            inputs = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
            joined = torch.cat([point(x.clone()) for point in inputs], dim=2)
            q, k, v = self.ln1(joined).chunk(3, dim=2)
        else:
            q = k = v = self.ln1(x)
        return self.hook_attn_out(self.attn(q[:, queries], k, v, kv_cache)[0])

    def _mlp(self, resid: Residual, norm: LayerNorm) -> Residual:
        """What the MLP writes, from the residual stream after attention."""
        if self.hook_mlp_in.enabled:
            resid = self.hook_mlp_in(self.hook_mlp_in.clone_if_hooked(resid))
        return self.hook_mlp_out(self.mlp(norm(resid)))

    def _for_each_head(self, x: Residual) -> Float[Tensor, "batch pos head d_model"]:
        # Real copies, also for one head: an edit to a head's input must reach nothing else.
        return x[:, :, None].repeat(1, 1, self.n_heads, 1)


class EncoderBlock(Block):
    """A block of the encoder: every position attends to every other."""

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__(cfg, "encoder")
        self.ln2 = LayerNorm(cfg)

    def forward(
        self, resid: Float[Tensor, "batch key d_model"], n_queries: int | None = None
    ) -> Residual:
        for step in self.steps(slice(n_queries)):
            resid = step(resid)
        return resid

    def steps(self, queries: slice = ALL) -> list[Step]:
        """What the block does to the residual stream, one after the other."""
        return [self.hook_resid_pre, partial(self.attend, queries=queries), self.feed_forward]

    def feed_forward(self, resid: Residual) -> Residual:
        """The MLP: from the stream after attention to `hook_resid_post`."""
        return self.hook_resid_post(resid + self._mlp(resid, self.ln2))


class DecoderBlock(Block):
    """A block of the decoder: causal self-attention, then attention to the encoder's output."""

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__(cfg, "decoder")
        self.ln2 = LayerNorm(cfg)
        self.cross_attn = Attention(cfg, "decoder", cross=True)
        self.ln3 = LayerNorm(cfg)
        self.hook_cross_attn_in = HookPoint(_PER_HEAD, flag="use_attn_in")
        self.hook_cross_q_input = HookPoint(_PER_HEAD, flag="use_split_qkv_input")
        self.hook_cross_k_input = HookPoint("batch key head d_model", flag="use_split_qkv_input")
        self.hook_cross_v_input = HookPoint("batch key head d_model", flag="use_split_qkv_input")
        self.hook_cross_attn_out = HookPoint("batch pos d_model")
        self.hook_resid_mid_cross = HookPoint("batch pos d_model")

    def declare_axes(self) -> None:
        super().declare_axes()
        self.ln2.set_per_head(self.hook_cross_attn_in.enabled or self.hook_cross_q_input.enabled)

    def forward(
        self,
        resid: Residual,
        encoder_output: Float[Tensor, "audio_batch key d_model"],
        kv_cache: KVCache | None = None,
    ) -> Residual:
        for step in self.steps(encoder_output, kv_cache):
            resid = step(resid)
        return resid

    def steps(
        self, encoder_output: Tensor, kv_cache: KVCache | None = None, queries: slice = ALL
    ) -> list[Step]:
        """What the block does to the residual stream, one after the other; see `attend`."""
        return [
            self.hook_resid_pre,
            partial(self.attend, kv_cache=kv_cache, queries=queries),
            partial(self.cross_attend, encoder_output=encoder_output, kv_cache=kv_cache),
            self.feed_forward,
        ]

    def cross_attend(
        self,
        resid: Residual,
        encoder_output: Float[Tensor, "audio_batch key d_model"],
        kv_cache: KVCache | None = None,
    ) -> Residual:
        """Attention to the encoder: from `hook_resid_mid` to `hook_resid_mid_cross`."""
        cross_attn_out = self._cross_attention(resid, encoder_output, kv_cache)
        return self.hook_resid_mid_cross(resid + cross_attn_out)

    def feed_forward(self, resid: Residual) -> Residual:
        """The MLP: from the stream after cross-attention to `hook_resid_post`."""
        return self.hook_resid_post(resid + self._mlp(resid, self.ln3))

    def _cross_attention(
        self, resid: Residual, encoder_output: Tensor, kv_cache: KVCache | None
    ) -> Residual:
        """What cross-attention writes, from the residual stream after self-attention."""
        x: Tensor = resid
        if self.hook_cross_attn_in.enabled:
            x = self.hook_cross_attn_in(self._for_each_head(x))
        if self.hook_cross_q_input.enabled:
            x = self.hook_cross_q_input(x.clone() if x.ndim == 4 else self._for_each_head(x))
        if kv_cache is not None and self.cross_attn.key in kv_cache:
            k = v = None
        elif self.hook_cross_k_input.enabled:
            k = self.hook_cross_k_input(self._for_each_head(encoder_output))
            v = self.hook_cross_v_input(self._for_each_head(encoder_output))
        else:
            k = v = encoder_output
        return self.hook_cross_attn_out(self.cross_attn(self.ln2(x), k, v, kv_cache)[0])


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
        for block in list(self.blocks)[start:stop]:  # a slice would build a ModuleList
            resid = block(resid, *args)
        return resid
