"""find_circuit: every edge of the graph scored, exactly or from gradients."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from hooked_whisper.circuits.contributions import WRITTEN, Differences, read_by, written_at
from hooked_whisper.circuits.exact import edge_runs
from hooked_whisper.circuits.gradients import EdgeGradients
from hooked_whisper.circuits.graph import EdgeGraph
from hooked_whisper.circuits.scores import EdgeScores, Method
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import (
    AlignmentError,
    InterventionError,
    MetricError,
    check_count,
    describe,
)
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.points import is_watched
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import Metric, check_values, metric_name, resolve_positions
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import Direction, metric_for_each, pair_up
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES
from hooked_whisper.patching.partial_result import fingerprints
from hooked_whisper.patching.saved import going_on

Pair = tuple[Example, Example | WhisperCache]
"""A clean run and a corrupted one; or what nodes write on average, of `reference_means`."""

_KEPT = [*WRITTEN, "*.hook_resid_pre", "*.hook_resid_post", "encoder.ln_final.hook_normalized"]
_STEPS = {"eap-ig-inputs": 5, "eap-ig-activations": 1}
"""Of integrated gradients, unless told otherwise: within a tenth of the exact scores' time."""
_ALIKE = 1e-6
"""The relative difference of a metric in two runs up to which it is the same."""


@torch.no_grad()
def find_circuit(
    model: HookedWhisper,
    pairs: Pair | Sequence[Pair],
    metric: Any,
    method: Method = "exact",
    *,
    direction: Direction = "noising",
    n_steps: int | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: bool = True,
    resume: EdgeScores | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> EdgeScores:
    """What each edge between the model's parts does to a metric: the base to choose circuits on.

    An edge is patched when its receiver alone reads what the sender wrote in the other run, and
    all that comes behind the receiver runs on. `"exact"` does so for each edge. The other
    methods estimate it from gradients at what receivers read:

        eap                 of the run that is patched; one backward pass
        eap-ig-inputs       of runs whose embeddings are on their way to the other run's;
                            `n_steps` passes (5)
        eap-ig-activations  of runs in which the sender's layer is on its way; `n_steps` passes
                            for each layer's heads and each MLP (1)

    Args:
        model: The model, without hooks and spliced autoencoders.
        pairs: Pairs of a clean and a corrupted run with as many tokens; pairs may differ in
            length. Several recordings side by side in an `Example` are as many pairs.
        metric: From logits to one number for each row; a list has one for each pair.
        method: See above.
        direction: `"noising"` patches the clean run with what was written in the corrupted
            one; `"denoising"` the other way round.
        n_steps: Points on the way between the runs for integrated gradients, in the middles of
            as many equal steps; None is the number above.
        max_bytes: About how much memory runs side by side may take.
        progress: Show a progress bar on stderr.
        resume: Unfinished scores of the same call, to go on with. They are not changed.
        save_to: A file that keeps what is done as it goes, and that is gone on from where
            it is there: after Ctrl-C, a kill, or a machine that stops.

    Returns:
        The metric with each edge patched, or its estimate. After Ctrl-C, what was done so far:
        `result.complete` is False.

    Raises:
        AlignmentError: Runs of other lengths.
        MetricError: A metric that is the same in both runs of a pair, or without gradients.
        InterventionError: No such method, or a model with hooks.
        SweepError: Something went wrong on the way; `error.result` has what was done.

    Source: Conmy et al. 2023 "Towards Automated Circuit Discovery" for patched edges; Syed et
    al. 2023 for EAP; Hanna et al. 2024 and Marks et al. 2024 for integrated gradients.
    """
    _check(model, method, n_steps, max_bytes)
    n_steps = n_steps or _STEPS.get(method, 1)
    runs = runs_of(model, pairs, direction)
    metrics = metric_for_each(metric, len(runs))
    for each, (base, _) in zip(metrics, runs, strict=True):
        if each.reads_transcript:
            raise MetricError(
                f"{metric_name(each)} judges a text, and edges are scored by logits. Give a metric "
                "of logits here, and the other to evaluate_circuits."
            )
        each.check(1, base.n_pos, model.cfg.d_vocab)
    steps = n_steps if method.startswith("eap-ig") else 1
    graph = EdgeGraph.of(model.cfg)
    result = empty_result(model, graph, runs, metrics, method, direction, steps=steps)
    scorer = _exact if method == "exact" else partial(_estimated, method, n_steps)
    fill(
        model, result, runs, metrics, [partial(scorer, model)], max_bytes, progress, resume, save_to
    )
    return result


Scorer = Callable[[Example, Example | WhisperCache, Metric, Tensor, int], Iterator[Any]]
"""From a pair, its metric, the edges to be done and memory to numbers of edges and values."""


def fill(
    model: HookedWhisper,
    result: EdgeScores,
    runs: Sequence[tuple[Example, Example | WhisperCache]],
    metrics: Sequence[Metric],
    stages: Iterable[Scorer],
    max_bytes: int,
    progress: bool,
    resume: EdgeScores | None,
    save_to: str | os.PathLike[str] | None,
) -> None:
    """Let each of some scorers do the edges of each pair that are not there; see `find_circuit`."""
    for number, (each, (base, source)) in enumerate(zip(metrics, runs, strict=True)):
        result.set_baselines(number, *baselines(model, base, source, each, number))
    with (
        going_on(
            result,
            save_to,
            resume,
            "search for a circuit",
            lambda: f"{result.n_done} of {result.n_cells} edges",
        ) as keep,
        progress_bar(
            total=result.n_cells, initial=result.n_done, desc="edges", show=progress
        ) as bar,
    ):
        for scorer in stages:
            bar.update(result.n_done - bar.n)
            for number, (each, run) in enumerate(zip(metrics, runs, strict=True)):
                todo = result.values[number].isnan()
                if not todo.any():
                    continue
                for numbers, values in scorer(*cut_text(*run, each), todo, max_bytes):
                    result.values[number, numbers] = values.float().cpu()
                    bar.update(len(numbers))
                    keep()


def _check(model: HookedWhisper, method: Any, n_steps: Any, max_bytes: Any) -> None:
    if method not in get_args(Method):
        known = ", ".join(map(repr, get_args(Method)))
        raise InterventionError(f"method is {method!r}; it can be {known}.")
    if n_steps is not None:
        check_count("n_steps", n_steps, 1, InterventionError)
    check_count("max_bytes", max_bytes, 1, InterventionError)
    refuse_hooks(model)
    if method != "exact" and torch.is_inference_mode_enabled():
        raise InterventionError("gradients are needed; leave torch.inference_mode() for it.")


def refuse_hooks(model: HookedWhisper) -> None:
    """Refuse a model that is not what its weights say.

    Raises:
        InterventionError: It has hooks or autoencoders.
    """
    if is_watched(*model.hook_dict.values()):
        raise InterventionError(
            "the model has hooks or spliced autoencoders, which the graph of its parts does not "
            "hold. Take them away: model.reset_hooks(), model.reset_saes()."
        )


def runs_of(
    model: HookedWhisper, pairs: Any, direction: str
) -> list[tuple[Example, Example | WhisperCache]]:
    """The run to patch and what is put into it, for each row of each pair.

    Raises:
        InterventionError: No pairs.
        AlignmentError: Runs of other lengths.
    """
    if isinstance(pairs, tuple) and len(pairs) == 2 and isinstance(pairs[0], Example):
        pairs = [pairs]
    if not isinstance(pairs, Sequence) or not pairs:
        raise InterventionError(
            f"{describe(pairs)} given; pass pairs of a clean and a corrupted Example: "
            "[(clean, clean.with_silence((1.0, 1.6))), ...]."
        )
    found: list[Any] = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], Example):
            raise InterventionError(
                f"pair {number} is {describe(pair)}; each is a clean and a corrupted Example."
            )
        try:
            found += pair_up(model, pair[0], pair[1], direction)
        except AlignmentError as error:
            raise AlignmentError(f"pair {number}: {error}") from error
    return found


def baselines(
    model: HookedWhisper, base: Example, source: Example | WhisperCache, metric: Metric, number: int
) -> tuple[float, float]:
    """The metric of both runs of a pair.

    Raises:
        MetricError: It does not differ.
    """
    values = []
    for run in (base, source):
        if isinstance(run, Example):
            logits = model(run.mel, run.tokens)
        else:
            logits = logits_of_means(model, base, run)
        values.append(float(check_values(metric(logits), 1, metric)))
    if abs(values[0] - values[1]) <= _ALIKE * max(map(abs, values)):
        raise MetricError(
            f"{metric_name(metric)} is {values[0]:.6g} in both runs of pair {number}, so that no "
            "edge can carry a difference. Choose a metric that tells them apart, or corrupt the "
            "time of the word that it is about."
        )
    return values[0], values[1]


@dataclass(frozen=True)
class _ReadAt(Metric):
    """A metric of a text that was cut behind the last position which it reads."""

    metric: Metric
    read: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        return self.read

    def of_positions(self, logits: Tensor) -> Tensor:
        return self.metric.of_positions(logits)

    def of_some_tokens(self) -> tuple[Metric, list[int]] | None:
        return self.metric.of_some_tokens()


def cut_text(
    base: Example, source: Example | WhisperCache, metric: Metric
) -> tuple[Example, Example | WhisperCache, Metric]:
    """A pair and its metric without the tokens that come behind all that the metric reads."""
    read = resolve_positions(metric, base.n_pos)
    if read is None or max(read) + 1 == base.n_pos:
        return base, source, metric
    n = max(read) + 1
    if isinstance(source, Example):
        source = source.with_tokens(source.tokens[:, :n])
    return base.with_tokens(base.tokens[:, :n]), source, _ReadAt(metric, tuple(read))


def logits_of_means(model: HookedWhisper, base: Example, means: WhisperCache) -> Tensor:
    """The logits if all that is added up for them is what nodes write on average."""
    _, of_base = model.run_with_cache(base.mel, base.tokens, names_filter=_KEPT)
    last = f"decoder.blocks.{model.cfg.n_text_layers - 1}.hook_resid_post"
    differences = Differences(model, means, of_base, 1)
    changes = sum(differences.of(node) for node in differences.graph.senders_of("decoder"))
    return model.decoder.finish(of_base[last] + changes)


def empty_result(
    model: HookedWhisper,
    graph: EdgeGraph,
    runs: Sequence[Any],
    metrics: Sequence[Metric],
    method: Method,
    direction: Direction,
    **conditions: Any,
) -> EdgeScores:
    """The table to fill."""
    nan = torch.full((len(runs),), torch.nan)
    names = sorted({metric_name(each) for each in metrics})
    put_in = [each if isinstance(each, Example) else dict(each.items()) for _, each in runs]
    conditions = {"graph": list(astuple(graph)), "method": method} | conditions
    return EdgeScores(
        torch.full((len(runs), len(graph.edges)), torch.nan),
        {"pair": list(range(len(runs))), "edge": [str(edge) for edge in graph.edges]},
        nan,
        nan.clone(),
        direction,
        ", ".join(names),
        graph,
        method,
        conditions=conditions
        | fingerprints(model, metrics, patched_runs=[run for run, _ in runs], runs_put_in=put_in),
    )


def _exact(
    model: HookedWhisper,
    base: Example,
    source: Example | WhisperCache,
    metric: Metric,
    todo: Tensor,
    max_bytes: int,
) -> Iterator[Any]:
    """Each edge of a pair patched for true."""
    runs, differences = edge_runs(model, base, source, metric, max_bytes)
    yield from runs.patched(differences, todo.clone())


def _estimated(
    method: Method,
    n_steps: int,
    model: HookedWhisper,
    base: Example,
    source: Example | WhisperCache,
    metric: Metric,
    todo: Tensor,
    max_bytes: int,
) -> Iterator[Any]:
    """The edges of a pair from gradients; values are the metric of the base run and the change."""
    of_base = read_by(model, base, _KEPT)
    differences = Differences(model, read_by(model, source, WRITTEN), of_base, max_bytes)
    gradients = EdgeGradients(model, base, metric, of_base, differences)
    value = gradients.base_value
    graph = gradients.graph
    if method != "eap-ig-activations":
        is_plain = method == "eap"
        steps = [gradients.of_base_run()] if is_plain else gradients.of_inputs(n_steps)
        yield list(range(len(graph.edges))), value + sum(steps, torch.zeros(len(graph.edges)))
        return
    hooks = [written_at(edge.sender) for edge in graph.edges]
    groups = gradients.groups()
    for name in dict.fromkeys(hooks):
        numbers = [i for i, each in enumerate(hooks) if each == name and todo[i]]
        if not numbers:
            continue
        change = torch.zeros(len(hooks))
        if name in groups:
            change = sum(gradients.of_activations(name, n_steps), change)
        yield numbers, value + change[numbers]
