"""How well circuits do by themselves: a metric of logits or of what they write, faithfulness."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.circuit import Circuit
from hooked_whisper.circuits.circuit_run import CircuitRun
from hooked_whisper.circuits.find import refuse_hooks, runs_of
from hooked_whisper.circuits.graph import EdgeGraph
from hooked_whisper.circuits.latents import LatentGraph
from hooked_whisper.display import count, progress_bar
from hooked_whisper.errors import InterventionError
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import check_values, metric_name, resolve_positions
from hooked_whisper.metrics.transcripts import check_value
from hooked_whisper.model.generate import decoding_task
from hooked_whisper.model.language import language_of_tokens
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import metric_for_each
from hooked_whisper.patching.partial_result import fingerprint, fingerprints
from hooked_whisper.patching.results import EffectTable
from hooked_whisper.patching.saved import going_on
from hooked_whisper.speech.tokens import is_written

if TYPE_CHECKING:
    import matplotlib.figure


@dataclass(eq=False, repr=False)
class CircuitEvaluation(EffectTable):
    """The metric of circuits by themselves, all other edges corrupted. NaN where it was not done.

    `axes` names the two axes of `values`, and gives their labels:

        pair      pairs of a clean and a corrupted run, 0, 1, ...
        circuit   "0: 229 edges", ...

    `clean` is the metric of all edges, `corrupted` that of none. The others are `EffectTable`'s.
    """

    values: Float[Tensor, "pair circuit"]

    _kind: ClassVar[str] = "circuits"

    def faithfulness(self) -> Float[Tensor, " circuit"]:
        """How much of the metric each circuit keeps: 1 is all of it, 0 what no edge gives.

        Of the means over the pairs; above 1 where a circuit does better than the model.

        Raises:
            InterventionError: The metric is the same with all edges and with none.

        Source: Mueller et al. 2025 "MIB", section 3.
        """
        return _faithfulness(self.values, self.clean, self.corrupted)

    def faithfulness_interval(
        self, level: float | int = 0.95, n_resamples: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, " circuit"], Float[Tensor, " circuit"]]:
        """Where the faithfulness lies, by the bootstrap's percentiles over the pairs.

        Raises:
            InterventionError: Fewer than two pairs.

        Source: Efron 1979.
        """
        return bootstrap(self, lambda faithfulness: faithfulness, level, n_resamples, seed)

    def _place(self, *place: int) -> dict[str, Any]:
        return {"circuit": self.axes["circuit"][place[0]]}

    def plot(self, effect: bool = True, title: str = "") -> "matplotlib.figure.Figure":
        """Bars of the faithfulness, or of the metric, of each circuit."""
        from hooked_whisper.figures import plot_patching

        table = (self.faithfulness() if effect else self.values.mean(dim=0))[:, None]
        label = "faithfulness" if effect else self.metric
        names = [str(each) for each in self.axes["circuit"]]
        return plot_patching(table, names, [label], label=label, row_label="circuit", title=title)


def _faithfulness(values: Tensor, clean: Tensor, corrupted: Tensor) -> Tensor:
    whole = (clean - corrupted).mean()
    if whole == 0:
        raise InterventionError(
            "the metric is the same with all edges and with none, so that there is nothing to be "
            "faithful to; look at .values, or choose another metric."
        )
    return (values - corrupted[:, None]).mean(dim=0) / whole


def bootstrap(
    evaluation: CircuitEvaluation,
    statistic: Callable[[Float[Tensor, " circuit"]], Tensor],
    level: float | int = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Percentiles of a statistic of the faithfulness, when pairs are drawn again and again."""
    n_pairs = len(evaluation.values)
    if n_pairs < 2:
        raise InterventionError("an interval needs at least 2 pairs; this result has 1.")
    if not 0 < level < 1:
        raise InterventionError(f"level is {level}; it must lie between 0 and 1.")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(n_pairs, (n_resamples, n_pairs), generator=generator)
    values, clean, corrupted = evaluation.values, evaluation.clean, evaluation.corrupted
    found = [statistic(_faithfulness(values[i], clean[i], corrupted[i])) for i in draws]
    sides = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=found[0].dtype)
    low, high = torch.quantile(torch.stack(found), sides, dim=0)
    return low, high


def evaluate_circuits(
    model: HookedWhisper,
    circuits: Circuit | Sequence[Circuit],
    pairs: Any,
    metric: Any,
    *,
    max_new_tokens: int | None = None,
    progress: bool = True,
    resume: CircuitEvaluation | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> CircuitEvaluation:
    """A metric of circuits by themselves: what comes along all other edges is corrupted.

    Give other pairs than those that circuits were chosen on, of other speakers, to see whether
    they hold there.

    Args:
        model: The model, without hooks.
        circuits: The circuits. Dangling edges change nothing.
        pairs: Clean and corrupted runs, as for `find_circuit`.
        metric: Of logits; or of transcripts: then the circuit writes down the clean recording,
            token by token, while the corrupted run reads the same tokens. A list has one for
            each pair.
        max_new_tokens: Tokens that are written at most, for a metric of transcripts.

    The others are `find_circuit`'s.

    Raises:
        AlignmentError: Runs of other lengths.
        InterventionError: No circuits, or of another model's graph.
        SweepError: Something went wrong on the way; `error.result` has what was done.

    Source: Wang et al. 2022, section 4; Hanna et al. 2024.
    """
    refuse_hooks(model)
    graph = EdgeGraph.of(model.cfg)
    many = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not many:
        raise InterventionError("no circuits; pass scores.top(n), or several in a list.")
    for each in many:
        if isinstance(each.graph, LatentGraph):
            raise InterventionError(
                "a circuit with latents cannot be run by itself: what comes along edges is "
                "exchanged between the model's own parts. Judge its edges by "
                'find_latent_circuit(..., method="exact") on other pairs, or evaluate a circuit of '
                "find_circuit."
            )
        if each.graph != graph:
            raise InterventionError(
                f"a circuit has the graph {each.graph}; this model's is {graph}."
            )
    runs = runs_of(model, pairs, "noising")
    metrics = metric_for_each(metric, len(runs))
    for each, (clean, _) in zip(metrics, runs, strict=True):
        if not each.reads_transcript:
            each.check(1, clean.n_pos, model.cfg.d_vocab)
    nan = torch.full((len(runs),), torch.nan)
    put_in = [each if isinstance(each, Example) else dict(each.items()) for _, each in runs]
    result = CircuitEvaluation(
        torch.full((len(runs), len(many)), torch.nan),
        {
            "pair": list(range(len(runs))),
            "circuit": [f"{i}: {count(len(each), 'edge')}" for i, each in enumerate(many)],
        },
        nan,
        nan.clone(),
        "noising",
        ", ".join(sorted({metric_name(each) for each in metrics})),
        conditions={"circuits": fingerprint([each.mask for each in many])}
        | fingerprints(model, metrics, clean_runs=[run for run, _ in runs], corrupted_runs=put_in),
    )
    none = torch.zeros(len(graph.edges), dtype=torch.bool)
    with (
        going_on(
            result,
            save_to,
            resume,
            "evaluation of circuits",
            lambda: f"{result.n_done} of {result.n_cells} runs of circuits",
        ) as keep,
        progress_bar(
            total=result.n_cells, initial=result.n_done, desc="circuits", show=progress
        ) as bar,
    ):
        for number, (each, (clean, corrupted)) in enumerate(zip(metrics, runs, strict=True)):
            todo = result.values[number].isnan().nonzero().flatten().tolist()
            if not todo:
                continue
            run = CircuitRun(model, clean, corrupted)
            result.set_baselines(
                number,
                _value(run, ~none, each, max_new_tokens),
                _value(run, none, each, max_new_tokens),
            )
            for place in todo:
                value = _value(run, many[place].mask, each, max_new_tokens)
                result.values[number, place] = value
                bar.update()
                keep()
    return result


def _value(run: CircuitRun, mask: Tensor, metric: Any, max_new_tokens: int | None) -> float:
    """The metric of one circuit on one pair."""
    if metric.reads_transcript:
        return float(check_value(metric(_write(run, mask, max_new_tokens)), metric))
    positions = resolve_positions(metric, run.clean.n_pos)
    logits = run.logits(mask, positions=positions)
    return float(check_values(metric.of_positions(logits), 1, metric))


def circuit_transcripts(
    model: HookedWhisper, circuit: Circuit, pairs: Any, *, max_new_tokens: int | None = None
) -> list[str]:
    """What a circuit by itself writes down of each clean recording; see `evaluate_circuits`."""
    refuse_hooks(model)
    runs = runs_of(model, pairs, "noising")
    return [_write(CircuitRun(model, *run), circuit.mask, max_new_tokens) for run in runs]


class _Inference:
    """What openai-whisper's loop asks for logits: a circuit, run over all tokens each time."""

    def __init__(self, run: CircuitRun, mask: Tensor) -> None:
        self.run, self.mask = run, mask

    def logits(self, tokens: Tensor, audio_features: Tensor) -> Tensor:
        return self.run.logits(self.mask, tokens)

    def cleanup_caching(self) -> None:
        """Nothing is kept."""


@torch.no_grad()
def _write(run: CircuitRun, mask: Tensor, max_new_tokens: int | None) -> str:
    """A transcript, by openai-whisper's own loop and token rules."""
    model, row = run.model, run.clean.tokens[0].tolist()
    task = decoding_task(model, max_new_tokens, {})
    task.decoder.reset()
    task.inference = _Inference(run, mask)
    prompt = torch.tensor([task.initial_tokens], device=model.device)
    if (language := language_of_tokens(model.cfg, row)) is not None:
        prompt[:, task.sot_index + 1] = task.tokenizer.to_language_token(language)
    tokens, _, _ = task._main_loop(run.clean.mel.values, prompt)
    new = tokens[0, prompt.shape[1] :].tolist()
    written = [token for token in new if is_written(token, task.tokenizer)]
    return str(task.tokenizer.decode(written)).strip()
