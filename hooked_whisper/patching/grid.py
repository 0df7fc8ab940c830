"""What a sweep goes through: pairs of runs, hooks by site and layer, and the parts of each hook."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hooked_whisper.config import FRAMES_PER_SECOND
from hooked_whisper.errors import AlignmentError, InterventionError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.names import NamesFilter, stack_of
from hooked_whisper.interventions.edits import check_fits
from hooked_whisper.interventions.examples import Example, check_pair
from hooked_whisper.interventions.sites import Site, check_window
from hooked_whisper.metrics.base import as_metric
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.tokens import check_tokens

Direction = Literal["denoising", "noising"]
Corrupted = Example | Sequence[Example] | WhisperCache | Literal["zero"]
Source = Example | WhisperCache | None
"""What is put into a run: another run's activations, a cache's, or zeros."""
Per = Literal["head", "pos", "window", "neuron", "latent"] | None

_AXES = {
    None: "part",
    "window": "window_s",
    "head": "head",
    "pos": "pos",
    "neuron": "neuron",
    "latent": "latent",
}


# Pairs of runs


def pair_up(
    model: HookedWhisper, clean: Any, corrupted: Any, direction: str
) -> list[tuple[Example, Source]]:
    """The run to patch, the base, and the source of what is put into it, for each pair."""
    check_direction(direction)
    rights = one_by_one(model, clean)
    if isinstance(corrupted, WhisperCache) or corrupted == "zero":
        if direction == "denoising":
            raise InterventionError(
                "activations of no run can only be put into the clean run; pass direction="
                '"noising".'
            )
        source = corrupted if isinstance(corrupted, WhisperCache) else None
        return [(right, source) for right in rights]
    wrongs = one_by_one(model, corrupted)
    if len(rights) != len(wrongs):
        raise AlignmentError(
            f"{len(rights)} clean runs and {len(wrongs)} corrupted ones cannot be paired."
        )
    for right, wrong in zip(rights, wrongs, strict=True):
        check_pair(model, right, wrong)
    if direction == "denoising":
        return list(zip(wrongs, rights, strict=True))
    return list(zip(rights, wrongs, strict=True))


def given_values(
    model: HookedWhisper, source: WhisperCache, name: str, shape: Sequence[int]
) -> Tensor:
    """What a cache has for a hook; a mean over positions is there for each of them.

    Raises:
        AlignmentError: It is of another size.
    """
    check_fits(source[name], model, name, "the source", broadcasts=True)
    sizes = zip(source[name].shape, shape, strict=True)
    return source[name].expand([want if size == 1 else size for size, want in sizes])


def check_direction(direction: Any) -> None:
    """Refuse what is neither denoising nor noising."""
    if direction not in ("denoising", "noising"):
        raise InterventionError(
            f'direction is {direction!r}; it can be "denoising", the clean run into the corrupted '
            'one, or "noising", the other way round.'
        )


def one_by_one(model: HookedWhisper, examples: Any) -> list[Example]:
    """Each row as an example of its own."""
    found = [examples] if isinstance(examples, Example) else examples
    if not isinstance(found, Sequence) or not all(isinstance(each, Example) for each in found):
        raise InterventionError(
            f"{type(examples).__name__} given; pass an Example or a list of them: "
            "Example.from_audio(model, path)."
        )
    rows = [
        Example(example.mel[i], example.tokens[i : i + 1])
        for example in found
        for i in range(len(example))
    ]
    if not rows:
        raise InterventionError("no examples were given; pass at least one.")
    for row in rows:
        check_tokens(row.tokens, model.cfg.d_vocab, model.cfg.n_text_ctx)
    return rows


def metric_for_each(metric: Any, n_rows: int) -> list[Any]:
    """One metric for each row or pair: the one that is given, or as many."""
    many = list(metric) if isinstance(metric, (list, tuple)) else [metric] * n_rows
    if len(many) != n_rows:
        raise InterventionError(f"{len(many)} metrics for {n_rows} rows; give one, or as many.")
    return [each if getattr(each, "reads_transcript", False) else as_metric(each) for each in many]


# Hooks and their parts


@dataclass(frozen=True)
class SweepGrid:
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
        return Site(name, **{self.part_axis: part})


def make_grid(
    model: HookedWhisper,
    pairs: Sequence[tuple[Example, Source]],
    names_filter: NamesFilter,
    per: Per,
    parts: Sequence[Any] | None,
    window_s: float | int,
    all_frames: bool,
) -> SweepGrid:
    """The grid of a sweep, after checking that every hook has every part."""
    if per not in _AXES:
        raise InterventionError(
            f"per is {per!r}; it can be None, 'head', 'pos', 'window', 'neuron' or 'latent'."
        )
    hooks = model.hook_names(names_filter)
    if parts is not None:
        labels = [tuple(part) if per == "window" else part for part in parts]
    elif per is None:
        labels = ["all"]
    elif per == "window":
        labels = _windows(model, pairs, window_s, all_frames)
    else:
        labels = list(range(_n_parts(model, pairs[0][0], hooks, per)))
    if not labels:
        raise InterventionError("an empty sweep: there are no parts to patch. Give at least one.")
    found = {name: _site_and_layer(name) for name in hooks}
    sites = list(dict.fromkeys(site for site, _ in found.values()))
    layers = sorted({layer for _, layer in found.values()})
    names: list[list[str | None]] = [[None] * len(layers) for _ in sites]
    for name, (site, layer) in found.items():
        names[sites.index(site)][layers.index(layer)] = name
    grid = SweepGrid(sites, layers, names, _AXES[per], labels)
    if per == "pos" and any(name.startswith("decoder") for name in hooks):
        _check_positions({base.n_pos for base, _ in pairs}, labels)
    for label in labels:
        grid.site(hooks, label).names(model)
    return grid


def _windows(
    model: HookedWhisper,
    pairs: Sequence[tuple[Example, Source]],
    window_s: float | int,
    all_frames: bool,
) -> list[tuple[float, float]]:
    """Windows over what holds sound in either run of any pair, unless all frames are asked for."""
    check_window((0, window_s), model.cfg.window_s)
    end_s = model.cfg.window_s
    if not all_frames:
        runs = [run for pair in pairs for run in pair]
        # What is put in may be longer than the run that it goes into.
        lengths = [run.mel.n_frames for run in runs if isinstance(run, Example)]
        lengths += [
            run.n_frames
            for run in runs
            if isinstance(run, WhisperCache) and run.n_frames is not None
        ]
        end_s = max(int(n_frames.max()) for n_frames in lengths) / FRAMES_PER_SECOND
    n = max(1, math.ceil(end_s / window_s - 1e-6))
    return [
        (float(i * window_s), float(min((i + 1) * window_s, model.cfg.window_s))) for i in range(n)
    ]


def _n_parts(model: HookedWhisper, example: Example, hooks: Sequence[str], per: Per) -> int:
    """How many heads, positions, neurons or latents each hook has."""
    counts: set[int] = set()
    for name in hooks:
        stack = stack_of(name)
        if per == "head":
            counts.add(model.cfg.n_heads(stack))
        elif per == "pos":
            counts.add(model.cfg.n_audio_ctx if stack == "encoder" else example.n_pos)
        else:
            counts.add(model.axis_sizes(name)[-1] or 0)
    if len(counts) > 1:
        raise InterventionError(
            f"these hooks have different numbers of parts, {sorted(counts)}. Sweep them apart, or "
            "name the parts with parts=[...]."
        )
    return counts.pop()


def _check_positions(lengths: set[int], parts: Sequence[Any]) -> None:
    if len(lengths) > 1:
        raise AlignmentError(
            f"the pairs have {sorted(lengths)} tokens, so that positions do not correspond. Sweep "
            "pairs of one length together."
        )
    n_pos = lengths.pop()
    absent = [part for part in parts if not isinstance(part, int) or not -n_pos <= part < n_pos]
    if absent:
        raise AlignmentError(f"no position {absent[0]}: the runs have {n_pos} tokens.")


def _site_and_layer(name: str) -> tuple[str, int]:
    """A hook's name without the layer, and its layer."""
    parts = name.split(".")
    if parts[1] != "blocks":
        return name, -1
    return ".".join([parts[0], *parts[3:]]), int(parts[2])
