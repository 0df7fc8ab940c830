"""The plain parts: linear maps, convolution, LayerNorm, GELU, MLP, as openai-whisper computes them.

Activations keep the dtype they arrive in, weights are cast to it where they
are used, and LayerNorm works in float32. With the same weights this gives the
same bits as openai-whisper.
"""

import math
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.hooks.points import HookPoint, is_watched


class Linear(nn.Linear):
    """A linear map in the dtype of what it is given."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # else weights are on their way
            super().reset_parameters()

    @property
    def has_bias(self) -> bool:
        """Whether it adds anything."""
        return self._parameters["bias"] is not None

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if weight.dtype != x.dtype:
            weight = weight.to(x.dtype)
            bias = bias.to(x.dtype) if self.has_bias else bias
        return F.linear(x, weight, bias)


class Conv1d(nn.Conv1d):
    """A convolution over time in the dtype of what it is given."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(
        self, x: Float[Tensor, "batch d_in frame"]
    ) -> Float[Tensor, "batch d_out frame_out"]:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.Module):
    """LayerNorm with hooks on the scale it divides by and on its result.

    Fused, unless `hook_scale` is hooked. `hook_scale` is the standard
    deviation over `d_model`, `sqrt(var + eps)`, in float32;
    `hook_normalized` is what the next layer reads, after weight and bias.

    Source: Ba et al. 2016; hook names of TransformerLens.
    """

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.eps = cfg.ln_eps
        self.weight = nn.Parameter(torch.ones(cfg.d_model))
        self.bias = nn.Parameter(torch.zeros(cfg.d_model))
        self.hook_scale = HookPoint("batch pos d_model")
        self.hook_normalized = HookPoint("batch pos d_model")

    def set_per_head(self, per_head: bool) -> None:
        """Declare whether each head brings its own copy of the residual stream."""
        axes = ("batch", "pos", "head", "d_model") if per_head else ("batch", "pos", "d_model")
        self.hook_scale.axes = self.hook_normalized.axes = axes

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        weight, bias = self.weight.float(), self.bias.float()
        if self.hook_scale.is_hooked:
            wide = x.float()
            centred = wide - wide.mean(dim=-1, keepdim=True)
            variance = centred.pow(2).mean(dim=-1, keepdim=True)
            scale = self.hook_scale((variance + self.eps).sqrt())
            normalized = centred / scale * weight + bias
        else:
            normalized = F.layer_norm(x.float(), weight.shape, weight, bias, self.eps)
        return self.hook_normalized(normalized.to(x.dtype))


def gelu(x: Float[Tensor, "*shape"], overwrite: bool) -> Float[Tensor, "*shape"]:
    """The exact GELU; writes over `x` if it may, which saves the pages of a new tensor.

    Args:
        x: Anything.
        overwrite: Whether nobody else holds `x`. It is left alone all the
            same where autograd needs it.
    """
    if overwrite and not x.requires_grad:
        return torch.ops.aten.gelu_(x)
    return F.gelu(x)


class MLP(nn.Module):
    """Two linear maps with a GELU between, hooked before and after it."""

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.fc_in = Linear(cfg.d_model, cfg.d_mlp)
        self.fc_out = Linear(cfg.d_mlp, cfg.d_model)
        self.hook_pre = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self.hook_pre(self.fc_in(x))
        overwrite = not is_watched(self.fc_in, self.hook_pre)
        return self.fc_out(self.hook_post(gelu(pre, overwrite)))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """What each neuron reads; a view of the weight."""
        return rearrange(self.fc_in.weight, "d_mlp d_model -> d_model d_mlp")

    @property
    def b_in(self) -> Float[Tensor, "d_mlp"]:
        """What is added to each neuron before the GELU."""
        return self.fc_in.bias

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """What each neuron writes; a view of the weight."""
        return rearrange(self.fc_out.weight, "d_model d_mlp -> d_mlp d_model")

    @property
    def b_out(self) -> Float[Tensor, "d_model"]:
        """What the MLP writes whatever its neurons do."""
        return self.fc_out.bias


def unembed(
    x: Float[Tensor, "batch pos d_model"], weight: Float[Tensor, "vocab d_model"]
) -> Float[Tensor, "batch pos vocab"]:
    """`x @ weight.T`; of a single position, as decoding has it, at the speed of memory.

    BLAS multiplies one row by a matrix on one core, and may wait for each line of memory.
    Pieces of the vocabulary are a batch of products for all cores, and of the same bits where
    the library works through every piece alike. Which way is the fastest with these bits is
    seen at the first product of a shape.
    """
    n_threads = torch.get_num_threads()
    is_plain = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    is_single = x.numel() == x.shape[-1] and len(weight) >= _CHUNK * n_threads
    if not is_plain or not is_single or torch.compiler.is_compiling():
        return x @ weight.T
    shape = (n_threads, *weight.shape)
    if shape not in _FASTEST:
        ways: list[_Way] = [lambda x, weight: x @ weight.T]
        ways.append(partial(_unembed_in_pieces, n_pieces=n_threads, reads_ahead=False))
        ways.append(partial(_unembed_in_pieces, n_pieces=n_threads, reads_ahead=True))
        _FASTEST[shape] = _fastest_of(ways, x, weight)
    return _FASTEST[shape](x, weight)


_Way = Callable[[Tensor, Tensor], Tensor]
_CHUNK = 512
"""Rows of a piece that is read ahead, so that it stays in a core's cache."""
_FASTEST: dict[tuple[int, ...], _Way] = {}
"""By number of threads and shape: how a single position is unembedded."""


def _fastest_of(ways: list[_Way], x: Tensor, weight: Tensor) -> _Way:
    """The one that takes least of those with the bits of the first."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    whole, seconds = ways[0](x, weight), [math.inf] * len(ways)
    for _ in range(3):
        for number, way in enumerate(ways):
            start = clock()
            if torch.equal(way(x, weight), whole):
                seconds[number] = min(seconds[number], clock() - start)
    return ways[seconds.index(min(seconds))]


def _unembed_in_pieces(x: Tensor, weight: Tensor, n_pieces: int, reads_ahead: bool) -> Tensor:
    """Products of pieces of the vocabulary, each on a core; all of it, or a chunk after another."""
    n_rows = _CHUNK if reads_ahead else len(weight) // n_pieces // 4 * 4  # BLAS takes fours
    row, out, size = x.view(1, -1), x.new_empty(1, len(weight)), n_pieces * n_rows
    n_done = len(weight) // size * size
    for start in range(0, n_done, size):
        chunk = weight[start : start + size]
        if reads_ahead:
            chunk.sum()  # has it in the cache as fast as memory can give it
        into = out[:, start : start + size].view(n_pieces, 1, n_rows)
        pieces = chunk.view(n_pieces, n_rows, -1).mT
        torch.bmm(row.expand(n_pieces, 1, -1), pieces, out=into)
    torch.mm(row, weight[n_done:].T, out=out[:, n_done:])
    return out.view(*x.shape[:2], -1)


def sinusoids(length: int, channels: int, max_timescale: float = 10_000) -> Tensor:
    """Whisper's fixed audio positions: sines, then cosines, of falling frequency.

    Source: Vaswani et al. 2017, section 3.5, in the layout of openai-whisper
    (all sines first), in its own order of operations so that the bits agree.
    """
    step = math.log(max_timescale) / (channels // 2 - 1)
    rates = torch.exp(-step * torch.arange(channels // 2, device="cpu"))
    angles = torch.arange(length, device="cpu")[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


_NO_TARGET = -100


def next_token_loss(
    logits: Float[Tensor, "batch pos vocab"],
    tokens: Int[Tensor, "batch pos"],
    counts: Bool[Tensor, "batch pos"],
    per_token: bool,
) -> Float[Tensor, "*batch_pos"]:
    """Cross-entropy of each token given those before it, in nats; 0 for those that do not count."""
    targets = tokens[:, 1:].long().masked_fill(~counts[:, 1:], _NO_TARGET)
    reduction = "none" if per_token else "mean"
    return F.cross_entropy(
        logits[:, :-1].transpose(1, 2), targets, ignore_index=_NO_TARGET, reduction=reduction
    )
