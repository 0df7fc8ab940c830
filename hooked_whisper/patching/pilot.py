"""Estimates of a sweep by the way that pays: nearby patches, gradients that a pilot agrees with."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.display import progress_bar
from hooked_whisper.hooks.names import stack_of
from hooked_whisper.interventions.examples import Example
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.gradients import GradientRuns
from hooked_whisper.patching.grid import Source, SweepGrid
from hooked_whisper.patching.nearby import stays_near
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.patching.sweep import Cell, PairSweep

FEW = {"encoder": 40, "decoder": 500}
"""Fewer places than this are patched: a pilot and gradients would cost as much."""
AGREES = 0.95
"""The Pearson correlation with which gradients are believed."""
_PILOT = 12
"""Places patched by way of trial: half of them the greatest by the first gradient, half any."""
_PATCHES_A_PASS = {"encoder": 6, "decoder": 50}
"""Patches that about cost what a backward pass does."""


def estimates(
    model: HookedWhisper,
    result: SweepResult,
    grid: SweepGrid,
    pairs: Sequence[tuple[Example, Source]],
    metrics: Sequence[Any],
    reach_s: float,
    max_bytes: int,
    keep: Callable[[], None],
    progress: bool,
) -> None:
    """Estimate what a result lacks, each place by the way that pays."""
    with progress_bar(
        total=result.n_cells, initial=result.n_done, desc="places", show=progress
    ) as bar:
        for number, (base, source) in enumerate(pairs):
            for places, values in _of_pair(
                model, result, grid, number, base, source, metrics[number], reach_s, max_bytes
            ):
                for place, value in zip(places, values.tolist(), strict=True):
                    result.values[(number, *place)] = value
                bar.update(len(places))
                keep()


def _of_pair(
    model: HookedWhisper,
    result: SweepResult,
    grid: SweepGrid,
    number: int,
    base: Example,
    source: Source,
    metric: Any,
    reach_s: float,
    max_bytes: int,
) -> Iterator[tuple[list[Any], Tensor]]:
    """Places of one pair, and the metric there, some at a time."""
    ways: dict[str, list[Cell]] = {"near": [], "encoder": [], "decoder": []}
    is_near = stays_near(model)
    for cell in grid.cells():
        _, name, site = cell
        ways["near" if is_near(name, site) else stack_of(name)].append(cell)
    for way, cells in ways.items():
        todo = [cell for cell in cells if result.values[(number, *cell[0])].isnan()]
        if not todo:
            continue
        if way != "near" and len(cells) >= FEW[way]:
            names = list(dict.fromkeys(name for _, name, _ in cells))
            runs = GradientRuns(model, number, base, source, names, metric)
            # By all of the cells, also where some are done: the choice is to be the same.
            gradients = _believed(runs, cells, source, max_bytes)
            if gradients is not None:
                result.set_baselines(number, runs.base_value, runs.source_value)
                found = runs.estimates([cell[1:] for cell in todo], gradients)
                yield [cell[0] for cell in todo], found
                continue
        reach = reach_s if way == "near" else None
        sweep = PairSweep(model, base, source, todo, metric, max_bytes, reach)
        result.set_baselines(number, sweep.base_value, sweep.source_value)
        yield from sweep.values()


def _believed(
    runs: GradientRuns, cells: Sequence[Cell], source: Source, max_bytes: int
) -> dict[str, Tensor] | None:
    """The cheapest gradients that true patches agree with; None where patches pay more."""
    names = list(dict.fromkeys(name for _, name, _ in cells))
    stack = stack_of(names[0])
    true: Tensor | None = None
    pilot: list[Cell] = []
    for n_steps, along in ((1, "inputs"), (3, "inputs"), (5, "sites")):
        if (
            along == "inputs"
            and n_steps > 1
            and not (stack == "encoder" and isinstance(source, Example))
        ):
            continue  # steps between recordings do not help in the decoder
        n_passes = n_steps * (len(names) if along == "sites" else 1)
        if pilot and n_passes * _PATCHES_A_PASS[stack] > len(cells):
            continue
        gradients = runs.averaged(names, n_steps, along)
        if not pilot:
            pilot = _pilot(runs, cells, gradients)
            true = runs.true_values([cell[1:] for cell in pilot], max_bytes)
        assert true is not None
        found = runs.estimates([cell[1:] for cell in pilot], gradients)
        if torch.corrcoef(torch.stack([found, true]))[0, 1] >= AGREES:
            return gradients
    return None


def _pilot(runs: GradientRuns, cells: Sequence[Cell], gradients: dict[str, Tensor]) -> list[Cell]:
    """Cells to try: where a first estimate says most, and others; the same ones each time."""
    values = runs.estimates([cell[1:] for cell in cells], gradients)
    order = (values - runs.base_value).abs().argsort(descending=True, stable=True).tolist()
    some = order[: _PILOT // 2] + random.Random(0).sample(order[_PILOT // 2 :], _PILOT // 2)
    return [cells[number] for number in some]
