"""Greedy search for the heads and layers that can go without changing a metric."""

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InterventionError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.names import NamesFilter, stack_of
from hooked_whisper.interventions.ablation import MeanAblation, SkipLayer, ZeroAblation
from hooked_whisper.interventions.edits import Edit, SiteEdit
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import Site
from hooked_whisper.io import as_path, lock_file
from hooked_whisper.metrics.base import metric_name
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.candidate_runs import CandidateRuns
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES
from hooked_whisper.patching.partial_result import (
    check_same,
    fingerprint,
    fingerprints,
    partial_result_on_interrupt,
)
from hooked_whisper.patching.saved import earlier_result, read_search, write_search

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Removal:
    """One step of a search.

    Args:
        edit: What was removed, and how.
        value: The metric with this and all earlier removals, mean over the examples.
        change: How far the metric is from the clean one then: mean over the
            examples of the absolute difference.
    """

    edit: Edit
    value: float
    change: float


@dataclass(frozen=True)
class GreedyAblation:
    """What can go, in the order of removal, and what is left.

    Args:
        metric: The metric's name.
        tolerance: The change that was allowed.
        baseline: The metric of the clean runs, mean over the examples.
        removals: The steps, in order.
        left: The candidates that were not removed.
        complete: Whether the search came to its end; Ctrl-C stops it before.
        conditions: What it was measured with: names, and marks to compare by.
    """

    metric: str
    tolerance: float | int
    baseline: float
    removals: tuple[Removal, ...]
    left: tuple[Edit, ...]
    complete: bool
    conditions: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def n_done(self) -> int:
        """How many removals there are."""
        return len(self.removals)

    @property
    def edits(self) -> list[Edit]:
        """All removals, ready for `Interventions(model, *result.edits)`."""
        return [removal.edit for removal in self.removals]

    def without(self, removal: Removal) -> "GreedyAblation":
        """The same after one removal more."""
        left = tuple(edit for edit in self.left if edit is not removal.edit)
        return replace(self, removals=(*self.removals, removal), left=left)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each step, with the keys

        step     from 1
        edit     what was removed, in words
        stack, layer, part, head   where; None where it is not one place
        value    the metric after the step, mean over the examples
        change   its mean absolute difference from the clean metric
        n_left   candidates left after the step
        """
        n = len(self.removals) + len(self.left)
        return [
            {
                "step": step,
                "edit": edit_name(removal.edit),
                **_place(removal.edit),
                "value": removal.value,
                "change": removal.change,
                "n_left": n - step,
            }
            for step, removal in enumerate(self.removals, start=1)
        ]

    def to_dataframe(self) -> "pandas.DataFrame":
        """`rows()` as a table of pandas."""
        import pandas

        columns = ["step", "edit", "stack", "layer", "part", "head", "value", "change", "n_left"]
        table = pandas.DataFrame(self.rows(), columns=columns)
        return table.astype({"layer": "Int64", "head": "Int64"})

    def __repr__(self) -> str:
        state = "" if self.complete else ", not complete"
        end = f", to {self.removals[-1].value:.4g}" if self.removals else ""
        return (
            f"GreedyAblation({self.metric} from {self.baseline:.4g}{end}: "
            f"{len(self.removals)} removed, {len(self.left)} left{state})"
        )


def greedy_ablation(
    model: HookedWhisper,
    examples: Example | Sequence[Example],
    metric: Any,
    candidates: Any = "heads",
    *,
    tolerance: float | int,
    max_removals: int | None = None,
    max_new_tokens: int | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: bool = True,
    resume: GreedyAblation | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> GreedyAblation:
    """Remove one candidate after the other, each time the one that changes the metric least.

    In every round, each candidate that is left is removed on top of those
    that are gone. The one whose removal leaves the metric nearest to the clean
    one goes for good; the search ends when that is too far. What goes later
    depends on what went before: another order might remove more.

    The encoder is run for the encoder's candidates only, and nothing before a
    candidate is computed again for it. Hooks of the user's own stay in effect.

    Args:
        model: The model.
        examples: What to measure on: an example, one with several rows, or a list.
        metric: A metric of logits or of the transcript, or a function of
            logits `[batch pos vocab]`; a list has one for each row.
        candidates: `"heads"`: each head of the model, zeroed; `"layers"`: each
            layer, skipped; or a list of edits, such as `head_ablations` and
            `layer_ablations` give.
        tolerance: How far the metric may be from the clean one: mean over
            the examples of the absolute difference. Infinity removes all.
        max_removals: Candidates to remove at most.
        max_new_tokens: Of a transcript, which a broken model may never end.
        max_bytes: About how much memory the runs side by side may take.
        progress: Show a progress bar on stderr.
        resume: An earlier result of the same search, to go on with. It is not changed.
        save_to: A file that keeps each removal as it is found, and that is gone on from where
            it is there: after Ctrl-C, a kill, or a machine that stops.

    Returns:
        What was removed and what is left. After Ctrl-C, what was done so far:
        `result.complete` is False.

    Raises:
        InterventionError: No candidates, or a result to resume, or a file, of another search.
        StoreBusyError: Another process fills the file.
        SweepError: Something went wrong on the way; `error.result` has what was done.

    Source: Michel et al. 2019, section 4, who sort once; here each round measures anew.
    """
    edits = _edits(model, candidates)
    if not tolerance >= 0:
        raise InterventionError(f"tolerance is {tolerance}; it must be 0 or more.")
    if max_removals is not None and max_removals < 1:
        raise InterventionError(f"max_removals is {max_removals}; it must be 1 or more, or None.")
    runs = CandidateRuns(model, examples, metric, edits, max_new_tokens, max_bytes)
    made_with = {"metric": metric_name(runs.metrics[0]), "max_new_tokens": max_new_tokens}
    made_with |= fingerprints(
        model, runs.metrics, examples=runs.examples, candidates=sorted(map(fingerprint, edits))
    )
    empty = GreedyAblation(
        metric_name(runs.metrics[0]), tolerance, math.nan, (), tuple(edits), False, made_with
    )
    path = None if save_to is None else as_path(save_to, InterventionError)
    with nullcontext() if path is None else lock_file(path, "greedy ablation"):
        if path is not None and earlier_result(path, resume, Path.exists):
            result = _read(path, empty, max_removals)
        else:
            result = _resumed(empty, resume)
        if result.complete:
            return result

        def keep() -> None:
            if path is not None:
                _write(path, result, edits, max_removals)

        def so_far() -> str:
            return f"{result.n_done} removals"

        keep()
        with (
            partial_result_on_interrupt(lambda: result, so_far, is_kept=path is not None),
            progress_bar(desc="greedy ablation", unit="run", show=progress) as bar,
        ):
            clean = runs.clean()
            result = replace(result, baseline=float(clean.mean()))
            while result.left and (max_removals is None or result.n_done < max_removals):
                bar.reset(total=len(result.left) * len(clean))
                bar.set_description(f"greedy ablation, {result.n_done} removed")
                values = runs.values(result.edits, result.left, bar.update)
                change = (values - clean).abs().mean(dim=1)
                best = int(change.argmin())
                if not float(change[best]) <= tolerance:
                    break
                edit, value = result.left[best], float(values[best].mean())
                result = result.without(Removal(edit, value, float(change[best])))
                keep()
            result = replace(result, complete=True)
            keep()
        return result


def head_ablations(
    model: HookedWhisper,
    names_filter: NamesFilter = "*attn.hook_z",
    mean: WhisperCache | None = None,
) -> list[Edit]:
    """An ablation of each head by itself: candidates for `greedy_ablation`.

    Args:
        model: The model.
        names_filter: Which heads, by their `hook_z`: `"decoder.*.cross_attn.hook_z"`.
        mean: Put in these means, `mean_activations(model, examples, names_filter)`,
            in place of zeros.

    Raises:
        HookNameError: No such hook.
        SiteError: Hooks without heads.

    >>> from hooked_whisper import HookedWhisper
    >>> len(head_ablations(HookedWhisper.from_pretrained("digits"), "encoder.*.hook_z"))
    24
    """
    ablations: list[Edit] = []
    for name in model.hook_names(names_filter):
        for head in range(model.cfg.n_heads(stack_of(name))):
            site = Site(name, head=head)
            ablations.append(ZeroAblation(site) if mean is None else MeanAblation(site, mean))
    for each in ablations:
        each.hooks(model)
    return ablations


def layer_ablations(
    model: HookedWhisper, stack: Literal["encoder", "decoder"] | None = None
) -> list[Edit]:
    """A skip of each layer by itself: candidates for `greedy_ablation`.

    Args:
        model: The model.
        stack: `"encoder"` or `"decoder"`; None is both.

    Raises:
        InterventionError: No such stack.
    """
    if stack not in ("encoder", "decoder", None):
        raise InterventionError(f'stack is {stack!r}; it can be "encoder", "decoder" or None.')
    skips: list[Edit] = []
    for each in ("encoder", "decoder") if stack is None else (stack,):
        skips += [SkipLayer(each, layer) for layer in range(model.cfg.n_layers(each))]
    return skips


def edit_name(edit: Edit) -> str:
    """A short name of an edit for tables: where it is, if it is one head or layer.

    >>> edit_name(ZeroAblation(Site("decoder.blocks.2.cross_attn.hook_z", head=1)))
    'decoder 2 cross_attn head 1'
    """
    place = _place(edit)
    if place["stack"] is None:
        return " ".join(repr(edit).split())[:120]
    name = f"{place['stack']} {place['layer']}"
    if place["head"] is not None:
        name += f" {place['part']} head {place['head']}"
    return name if isinstance(edit, ZeroAblation | SkipLayer) else f"{name} ({type(edit).__name__})"


def _place(edit: Edit) -> dict[str, Any]:
    """Stack, layer, part and head of an edit that is one head or one layer."""
    if isinstance(edit, SkipLayer):
        return {"stack": edit.stack, "layer": edit.layer, "part": None, "head": None}
    site = edit.site if isinstance(edit, SiteEdit) else None
    name = site.name if site is not None else None
    parts = name.split(".") if isinstance(name, str) else []
    if site is None or len(parts) != 5 or not parts[2].isdigit() or not isinstance(site.head, int):
        return dict.fromkeys(("stack", "layer", "part", "head"))
    return {"stack": parts[0], "layer": int(parts[2]), "part": parts[3], "head": site.head}


def _edits(model: HookedWhisper, candidates: Any) -> list[Edit]:
    """The edits to choose from, all checked."""
    if candidates == "heads":
        return head_ablations(model)
    if candidates == "layers":
        return layer_ablations(model)
    if not isinstance(candidates, Sequence) or isinstance(candidates, str):
        raise InterventionError(
            f'candidates are {candidates!r}; they can be "heads", "layers" or a list of edits.'
        )
    edits = list(candidates)
    if not edits:
        raise InterventionError("the list of candidates is empty; give at least one edit.")
    if len({id(edit) for edit in edits}) < len(edits):
        raise InterventionError("a candidate is in the list twice; give each once.")
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InterventionError(
                f"{edit!r} is no edit. Candidates are edits such as ZeroAblation(site), or those "
                "of head_ablations(model)."
            )
        edit.hooks(model)
    return edits


def _resumed(empty: GreedyAblation, resume: GreedyAblation | None) -> GreedyAblation:
    """An earlier result as one of this search, whose candidates are `empty.left`."""
    if resume is None:
        return empty
    edits = empty.left
    names = [edit_name(edit) for edit in edits]
    earlier = [edit_name(edit) for edit in (*resume.edits, *resume.left)]
    if sorted(names) != sorted(earlier):
        raise InterventionError(
            "the result to resume has other candidates. Give the same ones, or leave out resume "
            "to begin anew."
        )
    if len(set(names)) < len(names):
        raise InterventionError(
            "two candidates have one name, so that it is not clear which of them is gone. Leave "
            "out resume to begin anew."
        )
    check_same(resume.conditions, empty.conditions)
    for each in resume.removals:
        empty = empty.without(replace(each, edit=edits[names.index(edit_name(each.edit))]))
    return empty


def _write(path: Path, result: GreedyAblation, edits: list[Edit], most: int | None) -> None:
    """Keep a search on the disk, its candidates by their places."""
    places = {id(edit): place for place, edit in enumerate(edits)}
    steps = [
        {"candidate": places[id(each.edit)], "value": each.value, "change": each.change}
        for each in result.removals
    ]
    plain = ("tolerance", "baseline", "complete", "conditions")
    write_search(
        path, {name: getattr(result, name) for name in plain} | {"most": most, "removals": steps}
    )


def _read(path: Path, empty: GreedyAblation, most: int | None) -> GreedyAblation:
    """Take over what is in a file of the same search."""
    found = read_search(path)
    check_same(found["conditions"], empty.conditions)
    result, edits, steps = empty, empty.left, found["removals"]
    gone = [step["candidate"] for step in steps]
    if len(set(gone)) < len(gone) or max(gone, default=0) >= len(edits):
        raise InterventionError(f"{path} is damaged: its removals are {gone[:20]}. Remove it.")
    for step in steps:
        result = result.without(Removal(edits[step["candidate"]], step["value"], step["change"]))
    is_same = (found["tolerance"], found["most"]) == (empty.tolerance, most)
    complete = found["complete"] and is_same
    return replace(result, baseline=found["baseline"], complete=complete)
