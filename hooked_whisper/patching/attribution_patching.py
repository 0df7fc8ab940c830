"""Attribution patching: what every patch of a sweep would do, for a part of its time.

Three ways, each of which fails where another one works:

    gradients   metric(patched) - metric(base)  ≈  (source - base) · ∂metric/∂activation
                one backward pass for all places; exact where the model is linear between the two
                activations, misleading where it saturates: attention that is sure of itself,
                a GELU far from zero. Averaged over steps between the runs it is better.
    nearby      the patched run, computed near the patch alone (see `nearby`)
    pilot       some places patched truly, to choose by

Source: Nanda 2023 "Attribution Patching"; Kramár et al. 2024 "AtP*", whose
plain AtP the gradients are; docs/attribution.md says what its corrections do here.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InterventionError, MetricError, check_number
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import metric_name
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.gradients import INPUTS, GradientRuns
from hooked_whisper.patching.grid import (
    Corrupted,
    Direction,
    Per,
    SweepGrid,
    make_grid,
    metric_for_each,
    pair_up,
)
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES
from hooked_whisper.patching.pilot import estimates
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.patching.saved import going_on
from hooked_whisper.patching.sweep import empty_result, patches_done

Along = Literal["inputs", "sites"]

_PAIR, _STEPS = "pair", "steps"
"""What an unfinished result holds beside sums of gradients: of which pair and how many steps."""


def attribution_patch(
    model: HookedWhisper,
    clean: Example | Sequence[Example],
    corrupted: Corrupted,
    names_filter: NamesFilter = "*.hook_resid_post",
    *,
    metric: Any,
    per: Per = None,
    parts: Sequence[Any] | None = None,
    direction: Direction = "denoising",
    window_s: float | int = 1.0,
    all_frames: bool = False,
    n_steps: int | None = None,
    along: Along | None = None,
    reach_s: float | int = 0.5,
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: bool = False,
    resume: SweepResult | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> SweepResult:
    """Estimate `patch_sweep` of the same arguments, in a part of its time.

    By default the way that pays is taken for each place. Times of the
    encoder are patched, with positions further than `reach_s` away kept as in
    the base run. Other places get the gradient of the base run, or one
    averaged over steps, if a pilot of true patches agrees with it (Pearson
    correlation of at least 0.95); else, and where there are few, they are
    patched truly.

    Args:
        metric: A metric of logits that has gradients; a list has one for each pair.
        n_steps: Gradients at all places instead, averaged over as many points
            between the two runs; with 1, the gradient of the run that is patched.
        along: What moves from base to source in these steps. `"inputs"`, the
            default: mel and token embeddings move along a straight line, and
            the gradients at each site are those of such runs; `n_steps`
            backward passes give all sites. `"sites"`: one site's whole
            activation moves, all else as in the base run; `n_steps` backward
            passes for each site, whose parts then add up to the effect of
            patching it whole.
        reach_s: How far from a patch in the encoder its effect is followed, in seconds.
        resume: An unfinished result of the same estimate, to go on with; with
            `n_steps`, at the backward pass that it was stopped in. It is not changed.

    The others are `patch_sweep`'s.

    Returns:
        What `patch_sweep` returns, with estimates: `values` is the metric of
        the run that is patched, plus the estimated change. After Ctrl-C, what
        was done so far: `result.complete` is False.

    Raises:
        MetricError: A metric without finite numbers, or without gradients where these are needed.
        SweepError: Something went wrong on the way; `error.result` has what was done.

    Source: Nanda 2023; Kramár et al. 2024, section 2 (AtP). For `"inputs"`,
    Hanna et al. 2024 "Have Faith in Faithfulness" (EAP-IG); for `"sites"`,
    Sundararajan et al. 2017 at the site, as Marks et al. 2024 "Sparse Feature
    Circuits", section 3. Here the points are the middles of `n_steps` equal steps.
    """
    pairs = pair_up(model, clean, corrupted, direction)
    grid = make_grid(model, pairs, names_filter, per, parts, window_s, all_frames)
    metrics = metric_for_each(metric, len(pairs))
    for each, (base, source) in zip(metrics, pairs, strict=True):
        _check(model, each, base, source, n_steps, along)
    check_number("reach_s", reach_s, InterventionError)
    reach_s = float(reach_s)
    if reach_s < 0 or max_bytes <= 0:
        raise InterventionError(
            f"reach_s is {reach_s:g} and max_bytes {max_bytes}; give seconds of at least 0, and "
            "bytes above 0."
        )
    estimate = _describe(n_steps, along or "inputs", reach_s)
    result = empty_result(model, grid, pairs, metrics, direction, estimate=estimate)
    with going_on(result, save_to, resume, "sweep", lambda: patches_done(result)) as keep:
        if n_steps is None:
            estimates(model, result, grid, pairs, metrics, reach_s, max_bytes, keep, progress)
        else:
            _fill(model, result, grid, pairs, metrics, n_steps, along or "inputs", keep, progress)
    return result


def _fill(
    model: HookedWhisper,
    result: SweepResult,
    grid: SweepGrid,
    pairs: Sequence[tuple[Example, Any]],
    metrics: Sequence[Any],
    n_steps: int,
    along: Along,
    keep: Callable[[], None],
    progress: bool,
) -> None:
    """Estimate what a result lacks."""
    names = list(dict.fromkeys(name for _, name, _ in grid.cells()))
    together = along == "inputs" or n_steps == 1
    groups = [names] if together else [[name] for name in names]
    todo = [
        (number, group)
        for number in range(len(pairs))
        for group in groups
        if any(result.values[(number, *place)].isnan() for place, _, _ in _cells(grid, group))
    ]
    n_passes = n_steps * len(groups) * len(pairs)
    n_done = n_passes - n_steps * len(todo) + (_steps_held(result, *todo[0]) if todo else 0)
    run: GradientRuns | None = None
    with progress_bar(total=n_passes, initial=n_done, desc="backward passes", show=progress) as bar:
        for number, group in todo:
            if run is None or run.number != number:
                needed = [name for other, each in todo if other == number for name in each]
                run = GradientRuns(model, number, *pairs[number], needed, metrics[number])
                result.set_baselines(number, run.base_value, run.source_value)
            moving = [] if n_steps == 1 else list(INPUTS) if together else group
            for step in range(_steps_held(result, number, group), n_steps):
                share = (step + 0.5) / n_steps if n_steps > 1 else 0.0
                _hold(result, number, step, run.gradients(group, moving, share))
                bar.update()
                keep()
            cells = _cells(grid, group)
            gradients = {name: result.held[name] / n_steps for name in group}
            values = run.estimates([cell[1:] for cell in cells], gradients)
            for (place, _, _), value in zip(cells, values, strict=True):
                result.values[(number, *place)] = value
            result.held = {}


def _cells(grid: SweepGrid, group: list[str]) -> list[Any]:
    """The places of some hooks."""
    return [cell for cell in grid.cells() if cell[1] in group]


def _steps_held(result: SweepResult, number: int, group: list[str]) -> int:
    """Of how many steps the result holds the gradients' sums, for these hooks of this pair."""
    held = result.held
    if set(held) != {*group, _PAIR, _STEPS} or int(held[_PAIR]) != number:
        return 0
    return int(held[_STEPS])


def _hold(result: SweepResult, number: int, step: int, gradients: dict[str, Tensor]) -> None:
    """Add a step's gradients to the sums, all at once: Ctrl-C comes before or after."""
    sums = {name: result.held[name].to(each) + each for name, each in gradients.items() if step}
    counts = {_PAIR: torch.tensor(number), _STEPS: torch.tensor(step + 1)}
    result.held = {**gradients, **sums, **counts}


def _check(
    model: HookedWhisper, metric: Any, base: Example, source: Any, n_steps: Any, along: Any
) -> None:
    if n_steps is not None and (not isinstance(n_steps, int) or n_steps < 1):
        raise InterventionError(f"n_steps is {n_steps!r}; it must be an integer of at least 1.")
    if along is not None and n_steps is None:
        raise InterventionError("along is about the steps of gradients; pass n_steps too.")
    if along not in ("inputs", "sites", None):
        raise InterventionError(f'along is {along!r}; it can be "inputs" or "sites".')
    if torch.is_inference_mode_enabled():
        raise InterventionError("gradients are needed; leave torch.inference_mode() for it.")
    if getattr(metric, "reads_transcript", False):
        raise MetricError(
            f"{metric_name(metric)} judges a text, which has no gradient. Give a metric of logits, "
            "or call patch_sweep."
        )
    if n_steps and n_steps > 1 and along != "sites" and not isinstance(source, Example):
        raise InterventionError(
            "what is put in comes from no run, so that there are no inputs to move to. Pass "
            'along="sites", or n_steps=1.'
        )
    metric.check(1, base.n_pos, model.cfg.d_vocab)


def _describe(n_steps: int | None, along: Along, reach_s: float) -> str:
    """How the numbers were estimated."""
    if n_steps is None:
        return f"patches within {reach_s:g} s, or gradients that a pilot agrees with"
    if n_steps == 1:
        return "gradient of the base run"
    return f"gradients of {n_steps} steps along {along}"
