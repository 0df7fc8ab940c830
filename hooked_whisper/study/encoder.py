"""The encoder's attention by layer and head: where it looks, how widely, and what the post says."""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper import HookedWhisperConfig, HookPoint
from hooked_whisper.analysis import HeadMeans, attention_entropy, frame_energy, head_table
from hooked_whisper.config import POSITION_S
from hooked_whisper.display import count
from hooked_whisper.figures import plot_by_layer, plot_entropy, plot_offsets, plot_patterns
from hooked_whisper.study.heads import Scores, every_head, highest, lowest
from hooked_whisper.study.report import Exhibit, Section, claim, exhibit, section
from hooked_whisper.study.windows import Hooks, WindowRun

REACH = 50
"""Positions to either side of the query over which attention is averaged: one second."""
MOST_LAYERS = 4
"""Layers of which the example's patterns are drawn."""
MOST_KEYS = 750
"""Positions of the example that are drawn at most: 15 s."""

OF_POST, NEAR = {"n": 24, "peak": 15, "trough": 5}, 1
"""How many encoder heads the post speaks of, and where it sees the highest and the lowest entropy;
how near counts as there."""
SLIGHT, WEAK = 0.3, 0.1
"""A rank correlation of entropy and place over this counts as a trend, or as a weak one."""
EVERY = 8
"""Over whole windows, of the queries one in so many is looked at."""


class EncoderAttention:
    """Takes the encoder's patterns in, layer by layer of window after window.

    A layer's patterns are looked at while they exist and then gone, so that
    memory is that of one layer. Of each window the entropy with the padding is
    taken at every eighth query beside the numbers of speech; of the first, patterns
    are kept to be drawn, and all numbers with the padding.
    """

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        shape = (cfg.n_audio_layers, cfg.n_audio_heads)
        self.cfg = cfg
        self.heads, self.padded = HeadMeans(*shape), HeadMeans(*shape)
        self.offsets = torch.zeros(*shape, 2 * REACH + 1, dtype=torch.float64)
        self.n_windows = 0
        self.whole = torch.zeros(shape, dtype=torch.float64)
        self.padding = 0.0
        self.example: WindowRun | None = None
        self.patterns: dict[int, Float[Tensor, "head query key"]] = {}
        places = torch.linspace(0, shape[0] - 1, min(shape[0], MOST_LAYERS))
        self.drawn_layers = sorted({round(place) for place in places.tolist()})

    @property
    def profile(self) -> Float[Tensor, "layer head offset"]:
        """Mean attention of each head at each distance from the query, from `-REACH` on."""
        return (self.offsets / max(1, self.n_windows)).float()

    @property
    def whole_entropy(self) -> Float[Tensor, "layer head"]:
        """Mean entropy of each head over whole windows, with their padding, in nats."""
        return (self.whole / max(1, self.n_windows)).float()

    def hooks(self, run: WindowRun) -> Hooks:
        """One for all layers."""
        self.example = self.example or run
        self.n_windows += 1
        self.padding += 1 - run.window.n_positions / self.cfg.n_audio_ctx
        energy, n = frame_energy(run.mel.values), run.window.n_positions

        def take(pattern: Float[Tensor, "1 head query key"], *, hook: HookPoint) -> None:
            name = str(hook.name)
            layer = int(name.split(".")[2])
            self.heads.add(head_table({name: pattern}, n, energy=energy, by_recording=True))
            some = pattern[0, :, ::EVERY].float()
            self.whole[layer] += attention_entropy(some).mean(dim=-1).double().cpu()
            spoken = pattern[0, :, :n, :n].float()
            spoken = spoken / spoken.sum(dim=-1, keepdim=True).clamp(min=1e-12)
            self.offsets[layer] += by_offset(spoken, REACH).double().cpu()
            if run is self.example:
                self.padded.add(head_table({name: pattern}, by_recording=True))
                if layer in self.drawn_layers:
                    self.patterns[layer] = spoken[:, :MOST_KEYS, :MOST_KEYS].cpu()

        return [("encoder.blocks.*.attn.hook_pattern", take)]

    def numbers(self) -> dict[str, Any]:
        """Every number over all windows so far."""

        def by_layer(heads: HeadMeans, name: str) -> list[float]:
            return heads[name].nanmean(dim=1).tolist()

        return {
            "n_clips": self.n_windows,
            "heads": self.heads.to_dict(),
            "width_by_layer": by_layer(self.heads, "diagonal_width"),
            "width_of_first_head": self.heads["diagonal_width"][:, 0].tolist(),
            "half_width_90_by_layer": by_layer(self.heads, "half_width_90"),
            "entropy_by_layer": by_layer(self.heads, "entropy_nats"),
            "entropy": trend(self.heads["entropy_nats"]),
            "whole_windows": {
                "entropy": trend(self.whole_entropy),
                "padding": self.padding / max(1, self.n_windows),
            },
            "whole_window_of_first_clip": {
                "entropy": trend(self.padded["entropy_nats"]),
                "half_width_90_by_layer": by_layer(self.padded, "half_width_90"),
                "heads": self.padded.to_dict(),
            },
            "offset_positions": list(range(-REACH, REACH + 1)),
            "attention_by_offset": self.profile.nanmean(dim=1).tolist(),
        }


def by_offset(pattern: Float[Tensor, "head query key"], reach: int) -> Float[Tensor, "head offset"]:
    """Mean attention at each distance key - query, from -reach to reach; 0 beyond the ends.

    >>> by_offset(torch.eye(3)[None], 1)
    tensor([[0., 1., 0.]])
    """
    offsets = range(-reach, reach + 1)
    sums = [pattern.diagonal(offset, dim1=1, dim2=2).sum(dim=-1) for offset in offsets]
    return torch.stack(sums, dim=-1) / pattern.shape[1]


def trend(scores: Scores) -> dict[str, Any]:
    """How a score goes over all heads in one row, layer after layer.

    `slope` is that of the least-squares line, for each head further;
    `rank_correlation` is Spearman's of score and place. None where one head has none.
    """
    values = scores.flatten().tolist()
    y = pd.Series(values).dropna()
    places = pd.Series(y.index, y.index)
    return {
        "values": values,
        "n": len(y),
        "mean": y.mean(),
        "slope": places.cov(y) / places.var() if len(y) > 1 else None,
        "rank_correlation": y.rank().corr(places) if y.nunique() > 1 else None,
        "peak": int(y.idxmax()) if len(y) else None,
        "peak_value": y.max(),
        "trough": int(y.idxmin()) if len(y) else None,
        "trough_value": y.min(),
    }


def encoder_section(found: EncoderAttention) -> Section:
    """Patterns, widths, entropy and scores of the encoder's heads, with what the post says."""
    numbers = found.numbers()
    exhibits = [
        *(_patterns(found, layer) for layer in sorted(found.patterns)),
        _offsets(found),
        _widths(numbers),
        *_entropy(found, numbers),
        _scores(found.heads),
    ]
    return section("encoder_attention", numbers, exhibits)


def _patterns(found: EncoderAttention, layer: int) -> Exhibit:
    """All heads of one layer, of the first window."""
    assert found.example is not None
    name, patterns = found.example.window.name, found.patterns[layer]
    distance = POSITION_S * found.heads["mean_distance"][layer : layer + 1]
    sound_s = min(patterns.shape[1] * POSITION_S, float(found.example.mel.seconds[0]))
    return exhibit(
        "encoder_patterns",
        called=f"encoder_patterns_{layer}",
        figure=plot_patterns(patterns, sound_s=sound_s, title=f"{name}, layer {layer}"),
        name=name,
        layer=layer,
        n_heads=len(patterns),
        mean_s=float(distance.nanmean()),
        near=lowest(distance),
        far=highest(distance),
    )


def _offsets(found: EncoderAttention) -> Exhibit:
    profile = found.profile.nanmean(dim=1)
    near = profile[:, REACH - 5 : REACH + 6].sum(dim=1)
    figure = plot_offsets(
        {f"layer {layer}": profile[layer] for layer in found.drawn_layers},
        title="Mean attention by distance from the query, all heads",
    )
    own = profile[:, REACH].tolist()
    return exhibit("encoder_offsets", figure=figure, near=near.tolist(), own=own)


def _widths(numbers: dict[str, Any]) -> Exhibit:
    width, half, first = (
        [POSITION_S * positions for positions in numbers[name]]
        for name in ("width_by_layer", "half_width_90_by_layer", "width_of_first_head")
    )
    lines = {"mean over heads": torch.tensor(width), "first head": torch.tensor(first)}
    panels = {
        "width of the diagonal (s)": lines,
        "half-width holding 90 % (s)": {"mean over heads": torch.tensor(half)},
    }
    figure = plot_by_layer(panels, title="How wide the encoder's diagonal is")
    says = width_claim(width, first)
    return exhibit("encoder_widths", figure=figure, claim=says, width=width, half=half)


def width_claim(width: list[float], first: list[float]) -> dict[str, Any]:
    """Whether the diagonal gets wider over the first three layers."""
    rises, first_rises = (each[:3] == sorted(set(each[:3])) for each in (width, first))
    found = {"width": width, "first": first, "first_rises": first_rises}
    parts = {"mean over heads": rises, "first head": first_rises}
    return claim("claim_widths", parts if len(width) > 2 else None, found)


def _entropy(found: EncoderAttention, numbers: dict[str, Any]) -> list[Exhibit]:
    """Of speech, and of whole windows, with their padding."""
    speech, whole = numbers["entropy"], numbers["whole_windows"]["entropy"]
    heads, padded = found.heads["entropy_nats"], found.whole_entropy
    of_speech = plot_entropy(
        {"encoder": heads}, title="Entropy of the encoder's heads, speech only"
    )
    of_both = plot_entropy(
        {"speech": heads, "whole window": padded},
        title="Speech, and the whole window, of all clips",
    )
    of_windows = f"the whole windows of {count(found.n_windows, 'clip')}"
    claims = entropy_claim(speech, "speech"), entropy_claim(whole, of_windows)
    return [
        exhibit("encoder_entropy", figure=of_speech, claim=claims[0], **speech),
        exhibit(
            "encoder_entropy_window",
            figure=of_both,
            claim=claims[1],
            padding=numbers["whole_windows"]["padding"],
            n_clips=found.n_windows,
            speech=speech,
            whole=whole,
        ),
    ]


def entropy_claim(entropy: dict[str, Any], of: str) -> dict[str, Any]:
    """Whether the entropy of all heads has the post's trend, peak and trough."""
    found = entropy | {"of_post": OF_POST, "of": of}
    if entropy["n"] != OF_POST["n"]:
        return claim("claim_entropy", None, found)
    correlation = entropy["rank_correlation"] or 0.0
    way = "upward" if correlation > 0 else "downward"
    strength = abs(correlation)
    way = way if strength > SLIGHT else f"weaker, {way}" if strength > WEAK else "none"
    same = {name: abs(entropy[name] - OF_POST[name]) <= NEAR for name in ("peak", "trough")}
    same["trend"] = way == "upward"
    return claim("claim_entropy", same, found | {"way": way, "same": same})


def _scores(heads: HeadMeans) -> Exhibit:
    columns = {
        "entropy (nats)": heads["entropy_nats"],
        "share of the most": heads["entropy_share"],
        "width (s)": POSITION_S * heads["diagonal_width"],
        "90 % within (s)": POSITION_S * heads["half_width_90"],
        "distance (s)": POSITION_S * heads["mean_distance"],
        "on itself": heads["current_token"],
        "on padding": heads["on_padding"],
        "loudness correlation": heads["energy_correlation"],
    }
    loud, padded = highest(heads["energy_correlation"]), highest(heads["on_padding"])
    return exhibit("encoder_heads", table=every_head(columns), loud=loud, padded=padded)
