"""The encoder's attention by layer and head: where it looks, how widely."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis import (
    attention_entropy,
    diagonal_half_width,
    frame_energy,
    head_table,
)
from hooked_whisper.analysis.attention_timing import pearson
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.study.clips import Clip, Hook, Written
from hooked_whisper.study.heads import HeadMeans

COLUMNS = (
    "entropy_nats",
    "entropy_share",
    "mean_distance",
    "diagonal_width",
    "half_width_90",
    "current_token",
    "previous_token",
    "on_padding",
    "energy_correlation",
)
"""What is measured of each head, as `analysis.head_table` calls it."""

REACH = 50
"""Positions to either side of the query over which attention is averaged: one second."""
MOST_LAYERS = 4
"""Layers of which the example's patterns are drawn."""
MOST_KEYS = 750
"""Positions of the example that are drawn at most: 15 s."""


class EncoderAttention:
    """Takes the encoder's patterns in, layer by layer of clip after clip.

    A layer's patterns are looked at while they exist and then gone, so that
    memory is that of one layer. Of the first clip, patterns are kept to be
    drawn, and the numbers of the whole window, padding included, beside those of
    speech.

    Args:
        cfg: Of the model.
    """

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        shape = (cfg.n_audio_layers, cfg.n_audio_heads)
        self.cfg = cfg
        self.heads = HeadMeans(*shape, COLUMNS)
        self.offsets = torch.zeros(*shape, 2 * REACH + 1, dtype=torch.float64)
        self.n_clips = 0
        self.example: Clip | None = None
        self.patterns: dict[int, Float[Tensor, "head query key"]] = {}
        self.window = {
            name: torch.full(shape, torch.nan) for name in ("entropy_nats", "half_width_90")
        }

    @property
    def profile(self) -> Float[Tensor, "layer head offset"]:
        """Mean attention of each head at each distance from the query, from `-REACH` on."""
        return (self.offsets / max(1, self.n_clips)).float()

    def drawn_layers(self) -> list[int]:
        """The layers whose patterns are drawn: all of them, or some from first to last."""
        n = self.cfg.n_audio_layers
        places = torch.linspace(0, n - 1, min(n, MOST_LAYERS))
        return sorted({round(each) for each in places.tolist()})

    def encoder_hooks(self, clip: Clip) -> list[Hook]:
        """One for each layer."""
        if self.example is None:
            self.example = clip
        self.n_clips += 1
        energy = frame_energy(clip.mel.values)

        def take(layer: int) -> Any:
            def function(value: Tensor, *, hook: Any) -> None:
                self._take(layer, value, clip, energy)

            return function

        layers = range(self.cfg.n_audio_layers)
        return [(f"encoder.blocks.{layer}.attn.hook_pattern", take(layer)) for layer in layers]

    def decoder_hooks(self, clip: Clip, written: Written) -> list[Hook]:
        """None."""
        return []

    def _take(
        self,
        layer: int,
        pattern: Float[Tensor, "1 head query key"],
        clip: Clip,
        energy: Float[Tensor, "1 key"],
    ) -> None:
        name = f"encoder.blocks.{layer}.attn.hook_pattern"
        table = head_table({name: pattern}, clip.n_positions, energy=energy, by_recording=True)
        self.heads.add(layer, table)
        n = clip.n_positions
        spoken = pattern[0, :, :n, :n].float()
        spoken = spoken / spoken.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        self.offsets[layer] += by_offset(spoken, REACH).double().cpu()
        if clip is self.example:
            if layer in self.drawn_layers():
                shown = min(n, MOST_KEYS)
                self.patterns[layer] = spoken[:, :shown, :shown].cpu()
            self._take_window(layer, pattern)

    def _take_window(self, layer: int, pattern: Float[Tensor, "1 head query key"]) -> None:
        for head in range(pattern.shape[1]):
            one = pattern[0, head]
            self.window["entropy_nats"][layer, head] = attention_entropy(one).mean()
            self.window["half_width_90"][layer, head] = diagonal_half_width(one).mean()

    def numbers(self) -> dict[str, Any]:
        """Every number over all clips so far."""
        width, half = self.heads["diagonal_width"], self.heads["half_width_90"]
        entropy = self.heads["entropy_nats"]
        return {
            "n_clips": self.n_clips,
            "heads": self.heads.to_dict(),
            "width_by_layer": width.nanmean(dim=1).tolist(),
            "width_of_first_head": width[:, 0].tolist(),
            "half_width_90_by_layer": half.nanmean(dim=1).tolist(),
            "entropy_by_layer": entropy.nanmean(dim=1).tolist(),
            "entropy": trend(entropy),
            "whole_window_of_first_clip": {
                "entropy": trend(self.window["entropy_nats"]),
                "half_width_90_by_layer": self.window["half_width_90"].nanmean(dim=1).tolist(),
                "heads": {name: each.tolist() for name, each in self.window.items()},
            },
            "offset_positions": list(range(-REACH, REACH + 1)),
            "attention_by_offset": self.profile.nanmean(dim=1).tolist(),
        }


def by_offset(pattern: Float[Tensor, "head query key"], reach: int) -> Float[Tensor, "head offset"]:
    """Mean attention at each distance key - query, from -reach to reach; 0 beyond the ends.

    >>> by_offset(torch.eye(3)[None], 1)
    tensor([[0., 1., 0.]])
    """
    padded = F.pad(pattern, (reach, reach)).contiguous()
    n_heads, n_query, n_key = padded.shape
    # Row q shifted by q: its diagonal band becomes a block.
    band = padded.as_strided(
        (n_heads, n_query, 2 * reach + 1), (n_query * n_key, n_key + 1, 1), padded.storage_offset()
    )
    return band.mean(dim=1)


def trend(scores: Float[Tensor, "layer head"]) -> dict[str, Any]:
    """How a score goes over all heads in one row, layer after layer.

    `slope` is that of the least-squares line, for each head further;
    `rank_correlation` is Spearman's of score and place.
    """
    flat = scores.flatten().double()
    place = torch.arange(len(flat), dtype=torch.float64)
    known = ~flat.isnan()
    x, y = place[known], flat[known]
    if len(y) < 2:
        return {"values": flat.tolist(), "n": len(y)}
    x = x - x.mean()
    slope = float((x * y).sum() / x.square().sum())
    ranks = y.argsort().argsort().double()
    return {
        "values": flat.tolist(),
        "n": len(y),
        "mean": float(y.mean()),
        "slope": slope,
        "rank_correlation": float(pearson(x, ranks)) if bool(y.max() > y.min()) else None,
        "peak": int(flat.nan_to_num(-torch.inf).argmax()),
        "peak_value": float(y.max()),
        "trough": int(flat.nan_to_num(torch.inf).argmin()),
        "trough_value": float(y.min()),
    }
