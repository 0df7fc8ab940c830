"""What a sweep goes through: hooks by site and layer, and the parts of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hooked_whisper.config import FRAMES_PER_SECOND
from hooked_whisper.errors import AlignmentError, InterventionError
from hooked_whisper.hooks.names import NamesFilter, stack_of
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import Site, check_window
from hooked_whisper.model.whisper import HookedWhisper

Per = Literal["head", "pos", "window", "neuron", "latent"] | None

_AXES = {None: "part", "window": "window_s"} | {
    each: each for each in ("head", "pos", "neuron", "latent")
}


@dataclass(frozen=True)
class Grid:
    """The hooks of a sweep, and the parts of each that are patched one by one.

    Args:
        sites: Hook names without the layer.
        layers: Blocks; -1 for hooks outside of the blocks.
        names: The hook of each site and layer; None where there is none.
        part_axis: What the parts are.
        parts: Their labels.
    """

    sites: list[str]
    layers: list[int]
    names: list[list[str | None]]
    part_axis: str
    parts: list[Any]

    def cells(self) -> list[tuple[tuple[int, int, int], str, Site]]:
        """Place in the table, hook and part, of every patch."""
        return [
            ((row, column, number), name, self.site(name, part))
            for row, names in enumerate(self.names)
            for column, name in enumerate(names)
            if name is not None
            for number, part in enumerate(self.parts)
        ]

    def site(self, name: NamesFilter, part: Any) -> Site:
        """A part of one hook, or of several."""
        if self.part_axis == "part":
            return Site(name)
        if self.part_axis == "window_s":
            return Site(name, window_s=(part[0], part[1]))
        return Site(name, **{self.part_axis: part})


def make_grid(
    model: HookedWhisper,
    examples: Sequence[Example],
    names_filter: NamesFilter,
    per: Per,
    parts: Sequence[Any] | None,
    window_s: float | int,
    all_frames: bool,
) -> Grid:
    """The grid of a sweep, after checking that every hook has every part.

    Raises:
        HookNameError: No such hook.
        SiteError: A hook without such parts.
        InterventionError: Nothing to go through, or an unknown `per`.
        AlignmentError: Positions of pairs with different numbers of tokens.
    """
    if per not in _AXES:
        raise InterventionError(
            f"per is {per!r}; it can be None, 'head', 'pos', 'window', 'neuron' or 'latent'."
        )
    hooks = model.hook_names(names_filter)
    if parts is None:
        parts = _all_parts(model, examples, hooks, per, window_s, all_frames)
    labels = [tuple(part) if per == "window" else part for part in parts]
    if not labels:
        raise InterventionError("an empty sweep: there are no parts to patch. Give at least one.")
    places = {name: _place(name) for name in hooks}
    sites = list(dict.fromkeys(site for site, _ in places.values()))
    layers = sorted({layer for _, layer in places.values()})
    names: list[list[str | None]] = [[None] * len(layers) for _ in sites]
    for name, (site, layer) in places.items():
        names[sites.index(site)][layers.index(layer)] = name
    grid = Grid(sites, layers, names, _AXES[per], labels)
    _check_positions(examples, hooks, per, labels)
    for label in labels:
        grid.site(hooks, label).names(model)
    return grid


def _all_parts(
    model: HookedWhisper,
    examples: Sequence[Example],
    hooks: Sequence[str],
    per: Per,
    window_s: float | int,
    all_frames: bool,
) -> Sequence[Any]:
    """Every part that the hooks have; windows over what holds sound unless all are asked for."""
    if per is None:
        return ["all"]
    if per == "window":
        check_window((0, window_s), model.cfg.window_s)
        frames = max(int(example.mel.n_frames.max()) for example in examples)
        end_s = model.cfg.window_s if all_frames else frames / FRAMES_PER_SECOND
        n = max(1, int(torch.tensor(end_s / window_s).sub(1e-6).ceil()))
        windows = [(i * window_s, min((i + 1) * window_s, model.cfg.window_s)) for i in range(n)]
        return [(float(start), float(end)) for start, end in windows]
    stacks = {stack_of(name) for name in hooks}
    counts: set[int] = set()
    for stack in stacks:
        if per == "head":
            counts.add(model.cfg.n_heads(stack))
        elif per == "pos":
            counts.add(model.cfg.n_audio_ctx if stack == "encoder" else examples[0].n_pos)
    if per in ("neuron", "latent"):
        counts = {model.axis_sizes(name)[-1] or 0 for name in hooks}
    if len(counts) > 1:
        raise InterventionError(
            f"these hooks have different numbers of parts, {sorted(counts)}. Sweep them apart, or "
            "name the parts with parts=[...]."
        )
    return range(counts.pop())


def _check_positions(
    examples: Sequence[Example], hooks: Sequence[str], per: Per, parts: Sequence[Any]
) -> None:
    lengths = {example.n_pos for example in examples}
    if per != "pos" or not any(name.startswith("decoder") for name in hooks):
        return
    if len(lengths) > 1:
        raise AlignmentError(
            f"the pairs have {sorted(lengths)} tokens, so that positions do not correspond. Sweep "
            "pairs of one length together."
        )
    n_pos = lengths.pop()
    absent = [part for part in parts if not isinstance(part, int) or not -n_pos <= part < n_pos]
    if absent:
        raise AlignmentError(f"no position {absent[0]}: the runs have {n_pos} tokens.")


def _place(name: str) -> tuple[str, int]:
    """A hook's site and layer."""
    parts = name.split(".")
    if parts[1] != "blocks":
        return name, -1
    return ".".join([parts[0], *parts[3:]]), int(parts[2])
