"""The three sweeps of activation patching that are measured, and what they read."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.models import Models, make_inputs
from hooked_whisper import HookedWhisperConfig
from hooked_whisper.metrics.base import Metric
from hooked_whisper.metrics.sequences import SequenceLogProb
from hooked_whisper.metrics.tokens import LogitDifference

Per = Literal["pos", "head", "window"]

WINDOW = 50
"""Encoder positions in 1 s."""


@dataclass(frozen=True)
class Place:
    """One patch: which part of which activation is taken from the clean run.

    Args:
        stack: `"encoder"` or `"decoder"`.
        layer: The block.
        hook: The hook's name within the block.
        per: What `index` counts.
        index: The position, head or window.
    """

    stack: str
    layer: int
    hook: str
    per: Per
    index: int

    @property
    def name(self) -> str:
        """The hook's full name."""
        return f"{self.stack}.blocks.{self.layer}.{self.hook}"

    def part(self, activation: Tensor, n_heads: int) -> Tensor:
        """The patched part as a view, which can be written to; heads may be apart or joined."""
        if self.per == "pos":
            return activation[:, self.index]
        if self.per == "window":
            return activation[:, WINDOW * self.index : WINDOW * (self.index + 1)]
        if activation.ndim == 3:
            activation = activation.unflatten(2, (n_heads, -1))
        return activation[:, :, self.index]


@dataclass(frozen=True)
class Judge:
    """A metric to measure with.

    Args:
        name: For the command line.
        title: For the table.
        metric: One of this package's, which all contestants use.
    """

    name: str
    title: str
    metric: Metric


@dataclass(frozen=True)
class Inputs:
    """What the runs are given: two recordings and one text."""

    clean: Tensor
    corrupted: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Sweep:
    """A patch at each of these places.

    Args:
        name: Short, for the command line.
        title: For the tables.
        per: What a hook is divided into.
        hooks: The hooks' full names.
        places: All patches: hook by hook, and in each by index.
        target: How many times faster than a plain loop this package should be.
    """

    name: str
    title: str
    per: Per
    hooks: list[str]
    places: list[Place]
    target: float


def make_sweeps(cfg: HookedWhisperConfig, n_tokens: int) -> list[Sweep]:
    """The sweeps that the targets are about."""
    sites = ["hook_resid_pre", "hook_resid_mid", "hook_resid_mid_cross"]
    n_windows = cfg.n_audio_ctx // WINDOW
    n_audio, n_text, n_heads = cfg.n_audio_layers, cfg.n_text_layers, cfg.n_audio_heads
    return [
        _sweep(
            "decoder",
            f"Decoder residual: {n_text} layers x {len(sites)} sites x {n_tokens} positions",
            [Place("decoder", i, site, "pos", 0) for i in range(n_text) for site in sites],
            n_tokens,
            30.0,
        ),
        _sweep(
            "heads",
            f"Encoder heads, hook_z: {n_audio} layers x {n_heads} heads",
            [Place("encoder", i, "attn.hook_z", "head", 0) for i in range(n_audio)],
            n_heads,
            1.8,
        ),
        _sweep(
            "encoder",
            f"Encoder residual, hook_resid_post: {n_audio} layers x {n_windows} windows of 1 s",
            [Place("encoder", i, "hook_resid_post", "window", 0) for i in range(n_audio)],
            n_windows,
            1.8,
        ),
    ]


def _sweep(name: str, title: str, firsts: list[Place], n: int, target: float) -> Sweep:
    places = [
        Place(first.stack, first.layer, first.hook, first.per, i)
        for first in firsts
        for i in range(n)
    ]
    return Sweep(name, title, firsts[0].per, [first.name for first in firsts], places, target)


def make_judges(tokens: Tensor) -> list[Judge]:
    """One that reads the last position, and one that reads all that predict a token."""
    return [
        Judge("last", "logit difference at the last position", LogitDifference(1000, 2000)),
        Judge("text", "log-probability of the whole text", SequenceLogProb(tokens)),
    ]


def make_sweep_inputs(models: Models, n_tokens: int) -> Inputs:
    """Two random recordings, and the same random text for both."""
    clean, tokens = make_inputs(models, n_tokens)
    generator = torch.Generator().manual_seed(models.seed + 3)
    corrupted = torch.randn(clean.shape, generator=generator).clamp(-1, 1).to(clean)
    return Inputs(clean, corrupted, tokens)
