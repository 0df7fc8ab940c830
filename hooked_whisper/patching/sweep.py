"""Activation patching over many places, in one call."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InterventionError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.interventions.edits import Interventions, Patch
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import Site
from hooked_whisper.metrics.base import check_values, metric_name
from hooked_whisper.metrics.transcripts import check_value
from hooked_whisper.model.language import language_of_tokens
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import (
    Corrupted,
    Direction,
    Per,
    Source,
    SweepGrid,
    given_values,
    make_grid,
    metric_for_each,
    pair_up,
)
from hooked_whisper.patching.nearby import NearbyRun
from hooked_whisper.patching.partial_forward import (
    DEFAULT_MAX_BYTES,
    ENCODER_OUTPUT,
    BaseRun,
)
from hooked_whisper.patching.partial_result import fingerprints
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.patching.resume_point import ResumedRows, output_name
from hooked_whisper.patching.saved import going_on


def patch_sweep(
    model: HookedWhisper,
    clean: Example | Sequence[Example],
    corrupted: Corrupted,
    names_filter: NamesFilter,
    *,
    metric: Any,
    per: Per = None,
    parts: Sequence[Any] | None = None,
    direction: Direction = "denoising",
    window_s: float | int = 1.0,
    all_frames: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: bool = True,
    resume: SweepResult | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> SweepResult:
    """Patch one run into another at one place after the other, and measure each time.

    The numbers are those of the plain loop, one `run_with_hooks` a patch, to
    float32's last digits; but nothing before a patch is computed again, and
    patches run side by side. Hooks of the user's own stay in effect.

    Args:
        model: The model.
        clean: The run that is right: an example, one with several rows, or a list.
        corrupted: The run that is not, one for each clean one: another
            recording, silence, noise, a spliced one. Or, to put into the clean
            run: a cache, for instance of a reference set's means; or `"zero"`.
        names_filter: The hooks to patch: a name, a glob, a list, ...
        metric: A metric of logits or of the transcript, or a function of
            logits `[batch pos vocab]`; a list has one for each pair.
        per: Patch whole activations (None), or each `"head"`, `"pos"`
            (position of the stack), `"window"` (time of the recording) or
            `"neuron"` by itself.
        parts: Only these heads, positions, neurons, or windows as pairs of seconds.
        direction: `"denoising"` puts clean activations into the corrupted
            run; `"noising"` corrupted ones into the clean run.
        window_s: Length of a window, in seconds. Windows cover what holds sound in
            either run.
        all_frames: Have windows over the padding too.
        max_bytes: About how much memory the runs side by side may take.
        progress: Show a progress bar on stderr.
        resume: An unfinished result of the same sweep, to go on with. It is not changed.
        save_to: A file that keeps what is done as it goes, and that is gone on from where
            it is there: after Ctrl-C, a kill, or a machine that stops.

    Returns:
        The metric for each place. After Ctrl-C, what was done so far:
        `result.complete` is False.

    Raises:
        AlignmentError: Runs that do not fit together.
        MetricError: A metric that gives no finite number, already on the runs
            without a patch.
        SweepError: Something went wrong on the way; `error.result` has what was done.

    Source: Meng et al. 2022 (ROME), causal tracing; names after Heimersheim and Nanda 2024.
    """
    pairs = pair_up(model, clean, corrupted, direction)
    grid = make_grid(model, pairs, names_filter, per, parts, window_s, all_frames)
    metrics = metric_for_each(metric, len(pairs))
    if max_bytes <= 0:
        raise InterventionError(f"max_bytes is {max_bytes}; give a number of bytes above 0.")
    result = empty_result(model, grid, pairs, metrics, direction)
    with (
        going_on(result, save_to, resume, "sweep", lambda: patches_done(result)) as keep,
        progress_bar(
            total=result.n_cells, initial=result.n_done, desc="patches", show=progress
        ) as bar,
    ):
        for number, (base, source) in enumerate(pairs):
            todo = [cell for cell in grid.cells() if result.values[(number, *cell[0])].isnan()]
            if todo:
                run = PairSweep(model, base, source, todo, metrics[number], max_bytes)
                result.set_baselines(number, run.base_value, run.source_value)
                for places, values in run.values():
                    for place, value in zip(places, values.tolist(), strict=True):
                        result.values[(number, *place)] = value
                    bar.update(len(places))
                    keep()
    return result


Cell = tuple[tuple[int, ...], str, Site]
"""A patch's place in the table, its hook and its part."""


class PairSweep:
    """The sweep of one pair; with `reach_s`, estimated from what is that near each patch."""

    def __init__(
        self,
        model: HookedWhisper,
        base: Example,
        source: Source,
        cells: Sequence[Cell],
        metric: Any,
        max_bytes: int,
        reach_s: float | None = None,
    ) -> None:
        self.model, self.metric = model, metric
        self.reads_transcript = getattr(metric, "reads_transcript", False)
        if not self.reads_transcript:
            metric.check(1, base.n_pos, model.cfg.d_vocab)
        names = list(dict.fromkeys(name for _, name, _ in cells))
        measured = None if self.reads_transcript else metric
        if reach_s is None:
            self.base = BaseRun(model, base, names, measured)
        else:
            self.base = NearbyRun(model, base, names, measured, reach_s)
        self.base_value = self._measure(self.base.base_logits, self.base.encoder_output)
        self.source_value = math.nan
        values = self._source_values(source, names)
        self.places = [place for place, _, _ in cells]
        self.rows = [self.base.row(name, Patch(site, values[name])) for _, name, site in cells]
        held = self.base.nbytes + sum(value.nbytes for value in values.values())
        self.max_bytes = max(1, max_bytes - held)

    def _source_values(self, source: Source, names: list[str]) -> dict[str, Tensor]:
        """The activations to put in; a run's metric is measured, which also tries it out."""
        if isinstance(source, WhisperCache):
            return {
                name: given_values(self.model, source, name, self._shape(name)) for name in names
            }
        if source is None:
            return {name: torch.zeros(()).expand(self._shape(name)) for name in names}
        output = output_name(self.model, ENCODER_OUTPUT)
        with torch.no_grad():
            logits, cache = self.model.run_with_cache(
                source.mel, source.tokens, names_filter=[*names, output]
            )
        self.source_value = self._measure(logits[:, self.base.positions], cache[output])
        return {name: cache[name] for name in names}

    def _shape(self, name: str) -> list[int]:
        """The shape of an activation in the base run."""
        n_pos, axes = self.base.example.n_pos, self.model.hook_dict[name].axes
        unknown = [1 if axis == "batch" else n_pos for axis in axes]
        sizes = self.model.axis_sizes(name)
        return [n if size is None else size for n, size in zip(unknown, sizes, strict=True)]

    def _measure(self, logits: Tensor, encoder_output: Tensor) -> float:
        """The metric of a run without a patch."""
        if self.reads_transcript:
            return self._measure_text(encoder_output)
        return float(check_values(self.metric.of_positions(logits), 1, self.metric))

    def _measure_text(self, encoder_output: Tensor) -> float:
        spoken = language_of_tokens(self.model.cfg, self.base.example.tokens[0].tolist())
        text = self.model.generate(encoder_output=encoder_output, language=spoken).texts[0]
        return check_value(self.metric(text), self.metric)

    def values(self) -> Iterator[tuple[list[Any], Float[Tensor, " row"]]]:
        """Places in the table, and the metric there, some at a time."""
        if self.reads_transcript:
            for numbers in self.base.groups(self.rows, self.max_bytes):
                yield self._places(numbers), self._measure_texts(numbers)
            return
        same = {i for i, row in enumerate(self.rows) if self.base.changes_nothing(row)}
        if same:
            yield self._places(same), torch.full((len(same),), self.base_value)
        self.places = [place for i, place in enumerate(self.places) if i not in same]
        self.rows = [row for i, row in enumerate(self.rows) if i not in same]
        # The logits, their copy, and what the metric makes of them.
        logits_bytes = 3 * 4 * len(self.base.positions) * self.model.cfg.d_vocab
        waiting: list[int] = []
        groups: list[ResumedRows] = []
        for numbers in self.base.groups(self.rows, self.max_bytes):
            rows = self.base.resume([self.rows[number] for number in numbers])
            if rows.first > 0:
                yield self._places(numbers), self.base.measure([rows])
                continue
            waiting += numbers
            groups.append(rows)
            if len(waiting) * logits_bytes > self.max_bytes // 2:
                yield self._places(waiting), self.base.measure(groups)
                waiting, groups = [], []
        if waiting:
            yield self._places(waiting), self.base.measure(groups)

    def _places(self, numbers: Iterable[int]) -> list[tuple[int, ...]]:
        return [self.places[number] for number in numbers]

    def _measure_texts(self, numbers: list[int]) -> Tensor:
        """The metric of what is decoded with each patch."""
        rows = [self.rows[number] for number in numbers]
        if rows[0].point.stack == "encoder":
            outputs = self.base.encoder_outputs(rows)
            return torch.tensor([self._measure_text(output[None]) for output in outputs])
        values = []
        for row in rows:
            with Interventions(self.model, row.edit):
                values.append(self._measure_text(self.base.encoder_output))
        return torch.tensor(values)


def empty_result(
    model: HookedWhisper,
    grid: SweepGrid,
    pairs: Sequence[tuple[Example, Any]],
    metrics: Sequence[Any],
    direction: str,
    **more: str,
) -> SweepResult:
    """The table to fill."""
    axes: dict[str, list[Any]] = {
        "pair": list(range(len(pairs))),
        "site": grid.sites,
        "layer": grid.layers,
        grid.part_axis: grid.parts,
    }
    nan = torch.full((len(pairs),), torch.nan)
    bases, sources = zip(*pairs, strict=True)
    return SweepResult(
        torch.full([len(labels) for labels in axes.values()], torch.nan),
        axes,
        nan,
        nan.clone(),
        direction,
        metric_name(metrics[0]),
        grid.names,
        conditions=fingerprints(model, metrics, patched_runs=bases, runs_put_in=sources) | more,
    )


def patches_done(result: SweepResult) -> str:
    """How far a sweep is, in words."""
    return f"{result.n_done} of {result.n_cells} patches"
