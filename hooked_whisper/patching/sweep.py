"""Activation patching over many places, in one call."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InterventionError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.interventions.edits import Interventions, check_fits
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import (
    PositionMetric,
    check_values,
    metric_name,
    resolve_positions,
)
from hooked_whisper.metrics.transcripts import check_value
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.fingerprint import conditions
from hooked_whisper.patching.grid import (
    Corrupted,
    Direction,
    Per,
    SweepGrid,
    make_grid,
    metric_for_each,
    pair_up,
)
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES, BaseRun
from hooked_whisper.patching.partial_result import keep_what_is_done
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.patching.rows import PatchedRow, Rows


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

    Returns:
        The metric for each place. After Ctrl-C, what was done so far:
        `result.complete` is False.

    Raises:
        HookNameError, SiteError: No such hook, or it has no such parts.
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
    result.go_on_from(resume)
    bar = progress_bar(total=result.n_cells, initial=result.n_done, desc="patches", show=progress)
    with keep_what_is_done(lambda: result, lambda: patches_done(result), bar):
        for number, (base, source) in enumerate(pairs):
            todo = [cell for cell in grid.cells() if result.values[(number, *cell[0])].isnan()]
            if todo:
                run = _PairSweep(model, base, source, todo, metrics[number], max_bytes)
                run.baselines(result, number)
                for places, values in run.values():
                    for place, value in zip(places, values.tolist(), strict=True):
                        result.values[(number, *place)] = value
                    bar.update(len(places))
    return result


class _PairSweep:
    """The sweep of one pair.

    Args:
        model: The model.
        base: The run that is patched.
        source: What is put into it: a run, a cache, or zeros.
        cells: Place in the table, hook and part, of each patch.
        metric: What to measure.
        max_bytes: Memory for the runs side by side.
    """

    def __init__(
        self,
        model: HookedWhisper,
        base: Example,
        source: Example | WhisperCache | None,
        cells: list[Any],
        metric: Any,
        max_bytes: int,
    ) -> None:
        self.model, self.source, self.metric = model, source, metric
        self.reads_transcript = getattr(metric, "reads_transcript", False)
        names = list(dict.fromkeys(name for _, name, _ in cells))
        positions = None if self.reads_transcript else resolve_positions(metric, base.n_pos)
        if not self.reads_transcript:
            metric.check(1, base.n_pos, model.cfg.d_vocab)
        self.base = BaseRun(model, base, names, positions)
        self.source_logits: Tensor | None = None
        self._base_numbers: Tensor | None = None
        # The logits, their copy, and what the metric makes of them.
        self._logits_bytes = 3 * 4 * len(self.base.positions) * model.cfg.d_vocab
        values = self._source_values(names)
        self.patches = [(place, PatchedRow(site, values[name])) for place, name, site in cells]
        held = self.base.nbytes + sum(value.nbytes for value in values.values())
        self.max_bytes = max(1, max_bytes - held)

    def baselines(self, result: SweepResult, number: int) -> None:
        """Measure both runs without a patch, which also tries the metric out."""
        runs = {"base": self._measure_base(), "source": self._measure_source()}
        is_denoising = result.direction == "denoising"
        clean, corrupted = ("source", "base") if is_denoising else ("base", "source")
        result.clean[number], result.corrupted[number] = runs[clean], runs[corrupted]

    def values(self) -> Iterator[tuple[list[Any], Float[Tensor, " row"]]]:
        """Places in the table, and the metric there, some at a time."""
        if self.reads_transcript:
            for places, patches in self._groups():
                yield places, self._of_texts(patches)
            return
        yield from self._leave_out_unchanged()
        waiting: list[Any] = []
        groups: list[Rows] = []
        for places, patches in self._groups():
            rows = self.base.resume(patches)
            if rows.first > 0:
                yield places, self._of_tail(self.base.finish([rows]), rows.first)
                continue
            waiting += places
            groups.append(rows)
            if len(waiting) * self._logits_bytes > self.max_bytes // 2:
                yield waiting, self._of_tail(self.base.finish(groups), 0)
                waiting, groups = [], []
        if waiting:
            yield waiting, self._of_tail(self.base.finish(groups), 0)

    def _leave_out_unchanged(self) -> Iterator[tuple[list[Any], Float[Tensor, " row"]]]:
        """Places where both runs hold the same: the numbers are the base run's."""
        same = {place for place, patch in self.patches if self.base.changes_nothing(patch)}
        if same:
            base = check_values(self.metric.of_positions(self.base.base_logits), 1, self.metric)
            yield list(same), base.expand(len(same))
        self.patches = [(place, patch) for place, patch in self.patches if place not in same]

    def _of_tail(self, logits: Tensor, first: int) -> Float[Tensor, " row"]:
        """The metric of rows that are as the base run before the `first` wanted position."""
        n_rows = len(logits)
        if isinstance(self.metric, PositionMetric):
            numbers = self.metric.at_positions(logits, first)
            if first:
                if self._base_numbers is None:
                    self._base_numbers = self.metric.at_positions(self.base.base_logits)
                before = self._base_numbers[:, :first].expand(n_rows, -1)
                numbers = torch.cat([before, numbers], dim=1)
            values = self.metric.combine(numbers)
        else:
            if first:
                before = self.base.base_logits[:, :first].expand(n_rows, -1, -1)
                logits = torch.cat([before, logits], dim=1)
            values = self.metric.of_positions(logits)
        return check_values(values, n_rows, self.metric)

    def _source_values(self, names: list[str]) -> dict[str, Tensor]:
        """The activations to put in."""
        if isinstance(self.source, WhisperCache):
            for name in names:
                check_fits(self.source[name], self.model, name, "the source")
            return {name: self.source[name] for name in names}
        if self.source is None:
            return {name: torch.zeros(()).expand(self._shape(name)) for name in names}
        with torch.no_grad():
            logits, kept = self.model.run_with_cache(
                self.source.mel, self.source.tokens, names_filter=names
            )
        self.source_logits = logits[:, self.base.positions]
        return {name: kept[name] for name in names}

    def _shape(self, name: str) -> list[int]:
        """The shape of an activation in the base run."""
        n_pos, axes = self.base.example.n_pos, self.model.hook_dict[name].axes
        unknown = [1 if axis == "batch" else n_pos for axis in axes]
        sizes = self.model.axis_sizes(name)
        return [n if size is None else size for n, size in zip(unknown, sizes, strict=True)]

    def _groups(self) -> Iterator[tuple[list[Any], list[PatchedRow]]]:
        """Places and patches that run side by side, within the memory."""
        keyed: dict[Any, list[tuple[Any, PatchedRow]]] = {}
        for place, patch in self.patches:
            keyed.setdefault(self.base.group_key(patch), []).append((place, patch))
        for key in sorted(keyed):
            rows = sorted(keyed[key], key=lambda row: self.base.order(row[1]))
            # Rows of one name and first position are alike.
            of_names = {patch.name: patch for _, patch in rows}.values()
            n = max(1, self.max_bytes // max(self.base.row_bytes(patch) for patch in of_names))
            for first in range(0, len(rows), n):
                group = rows[first : first + n]
                yield [place for place, _ in group], [patch for _, patch in group]

    def _measure_base(self) -> float:
        if self.reads_transcript:
            return self._of_text(self.model.generate(encoder_output=self.base.encoder_output))
        values = self.metric.of_positions(self.base.base_logits)
        return float(check_values(values, 1, self.metric))

    def _measure_source(self) -> float:
        if not isinstance(self.source, Example):
            return float("nan")
        if self.reads_transcript:
            return self._of_text(self.model.generate(self.source.mel))
        assert self.source_logits is not None
        return float(check_values(self.metric.of_positions(self.source_logits), 1, self.metric))

    def _of_texts(self, patches: Sequence[PatchedRow]) -> Tensor:
        """The metric of what is decoded with each patch."""
        if self.base.entries[patches[0].name].stack == "encoder":
            outputs = self.base.encoder_outputs(patches)
            texts = [self.model.generate(encoder_output=row[None]) for row in outputs]
        else:
            texts = []
            for patch in patches:
                with Interventions(self.model, patch):
                    texts.append(self.model.generate(encoder_output=self.base.encoder_output))
        return torch.tensor([self._of_text(text) for text in texts])

    def _of_text(self, generation: Any) -> float:
        return check_value(self.metric(generation.texts[0]), self.metric)


def empty_result(
    model: HookedWhisper,
    grid: SweepGrid,
    pairs: Sequence[tuple[Example, Any]],
    metrics: Sequence[Any],
    direction: str,
    **more: str,
) -> SweepResult:
    """The table to fill.

    Args:
        model: The model.
        grid: The places.
        pairs: The run to patch and what to put into it, for each pair.
        metrics: One for each pair.
        direction: Which of a pair is which.
        more: Of the conditions.
    """
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
        conditions=conditions(model, metrics, patched_runs=bases, runs_put_in=sources) | more,
    )


def patches_done(result: SweepResult) -> str:
    """How far a sweep is, in words."""
    return f"{result.n_done} of {result.n_cells} patches"
