"""Attribution patching: what every patch of a sweep would do, estimated from one backward pass.

The first-order estimate of patching a site is the change of its activation
times the metric's gradient there:

    metric(patched) - metric(base)  ≈  (source - base) · ∂metric/∂activation

One forward pass of each run and one backward pass give it for all sites. It
is exact where the model is linear between the two activations, and misleads
where it saturates: attention that is sure of itself, a GELU far from zero.
Gradients averaged over several steps from base to source repair much of that.

Source: Nanda 2023 "Attribution Patching"; Kramár et al. 2024 "AtP*", whose
plain AtP this is, without their corrections of queries, keys and dropout.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InterventionError, MetricError
from hooked_whisper.hooks.attached import frozen
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import GRADIENT_SUFFIX, Collector
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.points import HookPoint, is_watched
from hooked_whisper.hooks.root import Hook
from hooked_whisper.interventions.edits import check_fits
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import check_values, metric_name
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import (
    Corrupted,
    Direction,
    Per,
    SweepGrid,
    make_grid,
    metric_for_each,
    pair_up,
)
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.patching.saved import going_on
from hooked_whisper.patching.sweep import empty_result, patches_done

Along = Literal["inputs", "sites"]

_INPUTS = ("encoder.hook_mel", "decoder.hook_embed")
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
    n_steps: int = 1,
    along: Along = "inputs",
    progress: bool = False,
    resume: SweepResult | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> SweepResult:
    """Estimate `patch_sweep` of the same arguments: all places from a backward pass for each pair.

    Args:
        metric: A metric of logits that has gradients; a list has one for each pair.
        n_steps: Over how many points between the two runs gradients are
            averaged; with 1, the gradient of the run that is patched.
        along: What moves from base to source in these steps. `"inputs"`: mel
            and token embeddings move along a straight line, and the gradients
            at each site are those of such runs; `n_steps` backward passes
            give all sites. `"sites"`: one site's whole activation moves, all
            else as in the base run; `n_steps` backward passes for each site,
            whose parts then add up to the effect of patching it whole.
        resume: An unfinished result of the same estimate, to go on with: at
            the backward pass that it was stopped in. It is not changed.

    The others are `patch_sweep`'s.

    Returns:
        What `patch_sweep` returns, with estimates: `values` is the metric of
        the run that is patched, plus the estimated change. After Ctrl-C, what
        was done so far: `result.complete` is False.

    Raises:
        MetricError: A metric without finite numbers, or without gradients.
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
    estimate = _describe(n_steps, along)
    result = empty_result(model, grid, pairs, metrics, direction, estimate=estimate)
    with going_on(result, save_to, resume, "sweep", lambda: patches_done(result)) as keep:
        _fill(model, result, grid, pairs, metrics, n_steps, along, keep, progress)
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
    run: _Pair | None = None
    with progress_bar(total=n_passes, initial=n_done, desc="backward passes", show=progress) as bar:
        for number, group in todo:
            if run is None or run.number != number:
                needed = [name for other, each in todo if other == number for name in each]
                run = _Pair(model, number, *pairs[number], needed, metrics[number])
                result.set_baselines(number, run.base_value, run.source_value)
            moving = [] if n_steps == 1 else list(_INPUTS) if together else group
            for step in range(_steps_held(result, number, group), n_steps):
                share = (step + 0.5) / n_steps if n_steps > 1 else 0.0
                _hold(result, number, step, run.gradients(group, moving, share))
                bar.update()
                keep()
            products = {name: run.change(name) * result.held[name] / n_steps for name in group}
            for place, name, site in _cells(grid, group):
                part = site.part(model.hook_dict[name], products[name].shape)
                change = 0.0 if part is None else products[name][part.local_index].sum()
                result.values[(number, *place)] = float(run.base_value + change)
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


class _Pair:
    """Both runs of a pair, and the gradients between them."""

    def __init__(
        self,
        model: HookedWhisper,
        number: int,
        base: Example,
        source: Example | WhisperCache | None,
        names: list[str],
        metric: Any,
    ) -> None:
        self.model, self.number, self.base, self.metric = model, number, base, metric
        needed = list(dict.fromkeys([*names, *_INPUTS, "encoder.ln_final.hook_normalized"]))
        self.of_base, self.base_value = self._run(base, needed)
        if isinstance(source, Example):
            self.of_source, self.source_value = self._run(source, needed)
        else:
            self.source_value = torch.tensor(torch.nan)
            self.of_source = {name: _given(model, source, name, self.of_base) for name in names}

    def _run(self, example: Example, names: list[str]) -> tuple[Any, Tensor]:
        with torch.no_grad():
            logits, cache = self.model.run_with_cache(
                example.mel, example.tokens, names_filter=names
            )
        return cache, check_values(self.metric(logits), 1, self.metric)[0]

    def change(self, name: str) -> Tensor:
        """Source less base; 0 where both are the same, as masked scores of -inf are."""
        source, base = self.of_source[name], self.of_base[name]
        return torch.where(source == base, 0.0, source - base)

    def gradients(self, names: list[str], moving: list[str], share: float) -> dict[str, Tensor]:
        """The metric's gradient at some sites, with others on their way from base to source."""

        def move(value: Tensor, hook: HookPoint) -> Tensor:
            name = hook.name or ""
            return self.of_base[name] + share * self.change(name)

        collector = Collector(with_gradients=True, copy=is_watched(*self.model.hook_dict.values()))
        hooks: list[Hook] = [(moving, move)] if moving else []
        needed = [each for each in self.model.parameters() if each.requires_grad]
        with (
            torch.enable_grad(),
            frozen(needed),
            self.model.hooks(fwd_hooks=[*hooks, (names, collector)]),
        ):
            value = check_values(self.metric(self._logits([*names, *moving])), 1, self.metric)
            if not value.requires_grad:
                raise MetricError(
                    f"{metric_name(self.metric)} has no gradient, so that nothing can be estimated "
                    "from it. Use one that has, such as LogProb or LogitDifference, or patch_sweep."
                )
            value.sum().backward()
        found = collector.tensors
        return {name: found.get(name + GRADIENT_SUFFIX, 0 * found[name]) for name in names}

    def _logits(self, names: list[str]) -> Tensor:
        if any(name.startswith("encoder") for name in names):
            return self.model(self.base.mel, self.base.tokens)
        audio = self.of_base["encoder.ln_final.hook_normalized"]
        return self.model(None, self.base.tokens, encoder_output=audio)


def _given(
    model: HookedWhisper, source: WhisperCache | None, name: str, of_base: WhisperCache
) -> Tensor:
    """What is put in at a site: from a cache, or zeros."""
    if source is None:
        return torch.zeros_like(of_base[name])
    check_fits(source[name], model, name, "the source")
    return source[name]


def _check(
    model: HookedWhisper, metric: Any, base: Example, source: Any, n_steps: Any, along: Any
) -> None:
    if not isinstance(n_steps, int) or n_steps < 1:
        raise InterventionError(f"n_steps is {n_steps!r}; it must be an integer of at least 1.")
    if along not in ("inputs", "sites"):
        raise InterventionError(f'along is {along!r}; it can be "inputs" or "sites".')
    if torch.is_inference_mode_enabled():
        raise InterventionError("gradients are needed; leave torch.inference_mode() for it.")
    if getattr(metric, "reads_transcript", False):
        raise MetricError(
            f"{metric_name(metric)} judges a text, which has no gradient. Give a metric of logits, "
            "or call patch_sweep."
        )
    if n_steps > 1 and along == "inputs" and not isinstance(source, Example):
        raise InterventionError(
            "what is put in comes from no run, so that there are no inputs to move to. Pass "
            'along="sites", or n_steps=1.'
        )
    metric.check(1, base.n_pos, model.cfg.d_vocab)


def _describe(n_steps: int, along: Along) -> str:
    """How the numbers were estimated."""
    if n_steps == 1:
        return "gradient of the base run"
    return f"gradients of {n_steps} steps along {along}"
