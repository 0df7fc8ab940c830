"""Attention patterns made small enough for a page: means over bins, one byte for each.

A page of Whisper-Tiny with 30 s of sound would hold 24 encoder patterns of
1500 × 1500. Here each is reduced while the model runs, layer by layer:
queries and keys are gathered into bins, and a cell is the mean of the pattern
over its bins. Where each query bin looks most is kept to the position.
"""

import base64
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hooked_whisper.analysis.attention import row_entropy
from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.errors import InputError

Kind = Literal["encoder", "cross", "decoder"]
"""Whose attention: the encoder's and the decoder's to themselves, the decoder's to the encoder."""
KINDS: tuple[Kind, ...] = get_args(Kind)

N_PADDING_BINS = 30
"""The padding behind the sound has this many bins at most: nobody looks for detail there."""
BYTES_PER_MB = 1_000_000

_SHARES: dict[Kind, float] = {"encoder": 0.55, "cross": 0.3, "decoder": 0.15}
"""How the bytes of a page are shared out."""
_COARSEST_TIME = 50
"""Bins of 1 s: only when these are too many are tokens of cross-attention gathered too."""
_BYTES_BESIDE = 160
"""For each head, what stands around its numbers."""
_U16 = 65535
_PATTERN = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.(attn|cross_attn)\.hook_pattern")


@dataclass(frozen=True)
class Axis:
    """Positions gathered into bins, in order.

    Args:
        edges: The first position of each bin, and the end of the last one.
        n_sound: The bins that hold sound, or tokens; padding comes after them.
    """

    edges: tuple[int, ...]
    n_sound: int

    def __len__(self) -> int:
        """How many bins there are."""
        return len(self.edges) - 1

    @property
    def width(self) -> int:
        """Positions in a bin of sound; the last one may have fewer."""
        return self.edges[1] - self.edges[0]

    @property
    def end_of_sound(self) -> int:
        """The first position behind the sound."""
        return self.edges[self.n_sound]

    def mean(
        self, values: Float[Tensor, "*batch pos column"]
    ) -> Float[Tensor, "*batch bin column"]:
        """The mean of each bin."""
        sizes = torch.tensor(self.edges, device=values.device).diff()
        if bool((sizes == 1).all()):
            return values
        bins = torch.repeat_interleave(torch.arange(len(sizes), device=values.device), sizes)
        means = values.new_zeros(*values.shape[:-2], len(sizes), values.shape[-1])
        return means.index_add_(-2, bins, values) / sizes[:, None]


def token_axis(n_tokens: int, width: int = 1) -> Axis:
    """Tokens, one in a bin or several.

    >>> token_axis(5, 2).edges
    (0, 2, 4, 5)
    """
    edges = (*range(0, n_tokens, width), n_tokens)
    return Axis(edges, len(edges) - 1)


def time_axis(n_sound: int, n_positions: int, width: int = 1) -> Axis:
    """Encoder positions: those with sound in bins of one width, the padding in wider ones.

    >>> time_axis(4, 64, 2).edges[:5]
    (0, 2, 4, 6, 8)
    """
    sound = [*range(0, n_sound, width)]
    wide = max(width, ceil((n_positions - n_sound) / N_PADDING_BINS))
    padding = [*range(n_sound, n_positions, wide)]
    return Axis((*sound, *padding, n_positions), len(sound))


def choose_axes(
    cfg: HookedWhisperConfig, n_sound: int, n_tokens: int, max_mb: float | int
) -> dict[Kind, tuple[Axis, Axis]]:
    """The finest bins of queries and keys with which all heads fit into so many bytes.

    Args:
        cfg: Sizes of the model.
        n_sound: Encoder positions that hold sound.
        n_tokens: Tokens that the decoder reads.
        max_mb: Megabytes of text that all patterns together may take, however
            badly they compress.

    Raises:
        InputError: Not even the widest bins fit.
    """
    axes = {kind: _finest(kind, cfg, n_sound, n_tokens, max_mb) for kind in KINDS}
    if None in axes.values():
        raise InputError(
            f"max_mb is {max_mb}, which is too little for the patterns of {cfg.model_name!r}: it "
            f"has {cfg.n_audio_layers * cfg.n_audio_heads} encoder heads and "
            f"{2 * cfg.n_text_layers * cfg.n_text_heads} decoder heads. Leave it at its default."
        )
    return {kind: pair for kind, pair in axes.items() if pair}


def _finest(
    kind: Kind, cfg: HookedWhisperConfig, n_sound: int, n_tokens: int, max_mb: float | int
) -> tuple[Axis, Axis] | None:
    stack: Stack = "encoder" if kind == "encoder" else "decoder"
    n_heads = cfg.n_layers(stack) * cfg.n_heads(stack)
    room = max_mb * BYTES_PER_MB * _SHARES[kind] / n_heads - _BYTES_BESIDE
    for query, key in _candidates(kind, n_sound, cfg.n_audio_ctx, n_tokens):
        n_bytes = len(query) * len(key) + 6 * len(query)
        if 1.001 * n_bytes * 4 / 3 <= room:  # what does not compress grows, and base64 adds a third
            return query, key
    return None


def _candidates(
    kind: Kind, n_sound: int, n_positions: int, n_tokens: int
) -> Iterator[tuple[Axis, Axis]]:
    """Pairs of axes, the finest first."""
    if kind == "encoder":
        for width in range(1, n_sound + 1):
            yield (time_axis(n_sound, n_positions, width),) * 2
    elif kind == "decoder":
        for width in range(1, n_tokens + 1):
            yield (token_axis(n_tokens, width),) * 2
    else:
        n_written = n_tokens - 1  # the last token's row writes nothing
        coarsest = min(n_sound, _COARSEST_TIME)
        for width in range(1, coarsest + 1):
            yield token_axis(n_written), time_axis(n_sound, n_positions, width)
        for width in range(2, n_written + 1):
            yield token_axis(n_written, width), time_axis(n_sound, n_positions, coarsest)


@dataclass(frozen=True)
class ReducedHead:
    """One head's pattern for a page.

    Args:
        codes: A cell is `largest * (code / 255) ** 2`: the mean of the pattern
            over the bins of its query and of its key.
        largest: What code 255 stands for.
        peaks: The position of sound, or the token, that each query bin looks at
            most: the largest of its mean row, before keys are gathered.
        peak_values: That mean row there.
        on_sound: The share of each query bin's attention that goes to sound;
            1 for tokens.
        entropy_nats: Over the queries and keys with sound, the mean entropy of a row;
            None where a row is empty, as an edit may leave it.
    """

    codes: UInt8[Tensor, "query key"]
    largest: float
    peaks: Int[Tensor, " query"]
    peak_values: Float[Tensor, " query"]
    on_sound: Float[Tensor, " query"]
    entropy_nats: float | None

    def values(self) -> Float[Tensor, "query key"]:
        """What the page shows of the pattern, after rounding to a byte."""
        return self.largest * (self.codes.float() / 255).square()

    def packed(self) -> str:
        """All numbers as deflated bytes in base64: codes, then peaks, their values, shares."""
        numbers = [self.codes.numpy().tobytes()]
        for each in (self.peaks, self.peak_values * _U16, self.on_sound * _U16):
            numbers.append(each.round().clamp(0, _U16).numpy().astype("<u2").tobytes())
        return base64.b64encode(zlib.compress(b"".join(numbers), 9)).decode("ascii")


def reduce_heads(
    pattern: Float[Tensor, "head query key"], query: Axis, key: Axis
) -> list[ReducedHead]:
    """The patterns of a layer's heads, in the bins of a page.

    Args:
        pattern: As `hook_pattern` has it, of one recording; queries that the
            axis does not reach are left out.
        query: Bins of queries.
        key: Bins of keys.
    """
    pattern = pattern[:, : query.edges[-1]].float()
    rows = query.mean(pattern)
    n_key = key.end_of_sound
    peak_values, peaks = rows[..., :n_key].max(dim=-1)
    on_sound = rows[..., :n_key].sum(dim=-1)
    cells = key.mean(rows.mT).mT
    largest = cells.amax(dim=(-2, -1))
    share = cells / largest.where(largest > 0, 1.0)[:, None, None]
    codes = (255 * share.clamp(min=0).sqrt()).round().to(torch.uint8)
    entropy = _mean_entropy(pattern[:, : query.end_of_sound, :n_key])
    return [
        ReducedHead(
            codes=codes[head].cpu(),
            largest=float(largest[head]),
            peaks=peaks[head].cpu(),
            peak_values=peak_values[head].cpu(),
            on_sound=on_sound[head].cpu(),
            entropy_nats=entropy[head],
        )
        for head in range(len(pattern))
    ]


class PatternReducer:
    """A hook for every pattern, which keeps nothing but the reduced heads.

    Args:
        axes: Bins of queries and keys, by kind.
    """

    def __init__(self, axes: Mapping[Kind, tuple[Axis, Axis]]) -> None:
        self.axes = axes
        self.heads: dict[Kind, dict[int, list[ReducedHead]]] = {kind: {} for kind in KINDS}

    def __call__(self, value: Tensor, hook: Any) -> None:
        """Reduce the patterns of one layer."""
        kind, layer = kind_of(hook.name)
        self.heads[kind][layer] = reduce_heads(value[0], *self.axes[kind])


def kind_of(name: str) -> tuple[Kind, int]:
    """Whose pattern a hook has, and in which layer.

    >>> kind_of("decoder.blocks.3.cross_attn.hook_pattern")
    ('cross', 3)
    """
    found = _PATTERN.fullmatch(name)
    if found is None:
        raise InputError(
            f"{name!r} is no hook of a pattern: encoder.blocks.0.attn.hook_pattern is."
        )
    stack, layer, part = found.groups()
    kind: Kind = "cross" if part == "cross_attn" else "encoder" if stack == "encoder" else "decoder"
    return kind, int(layer)


def _mean_entropy(pattern: Float[Tensor, "head query key"]) -> list[float | None]:
    """Each head's mean entropy over its rows, scaled to sum to 1; one head at a time."""
    found: list[float | None] = []
    for p in pattern:
        mean = float(row_entropy(p / p.sum(dim=-1, keepdim=True)).mean())
        found.append(mean if mean == mean else None)
    return found
