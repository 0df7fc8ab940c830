"""find_latent_circuit: edges from, to and between the latents of autoencoders, scored.

Nothing is spliced: an autoencoder's latents and its error add up to the stream that it reads, so
that the model with all of them is the model itself. What a latent writes is what its decoder adds
for it; what it reads is the stream before, through its encoder.

Source: Marks et al. 2024 "Sparse Feature Circuits", section 3: latents and errors as nodes, scored
by attribution patching and integrated gradients.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from hooked_whisper.circuits.find import (
    baselines,
    refuse_hooks,
    run_fingerprints,
    runs_of,
)
from hooked_whisper.circuits.graph import EdgeGraph
from hooked_whisper.circuits.latent_runs import LatentPair
from hooked_whisper.circuits.latents import LatentGraph, block_of_hook
from hooked_whisper.circuits.scores import EdgeScores, Method
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InterventionError, check_count
from hooked_whisper.metrics.base import metric_name
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import Direction, metric_for_each
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES
from hooked_whisper.patching.partial_result import fingerprint
from hooked_whisper.patching.saved import going_on
from hooked_whisper.sae.base import SAE

_METHODS = ("exact", "eap", "eap-ig-inputs")


@torch.no_grad()
def find_latent_circuit(
    model: HookedWhisper,
    saes: Mapping[str, SAE],
    pairs: Any,
    metric: Any,
    method: Method = "eap-ig-inputs",
    *,
    n_latents: int = 16,
    n_exact: int = 0,
    direction: Direction = "noising",
    n_steps: int = 5,
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: bool = True,
    resume: EdgeScores | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> EdgeScores:
    """What each edge does to a metric where latents of autoencoders are nodes of the graph.

    Everything before an autoencoder reaches what is behind it only through its nodes: the
    `n_latents` latents with the greatest effect of their own, by gradients over all pairs; all
    other latents together; and its error. `find_circuit` says the rest.

    Args:
        model: The model, without hooks and spliced autoencoders.
        saes: Autoencoders by their hooks, which are `hook_resid_post` of some blocks: one each,
            as `load_suite` gives them.
        pairs: Pairs of a clean and a corrupted run.
        metric: From logits to one number for each row; a list has one for each pair.
        method: `"exact"`, `"eap"` or `"eap-ig-inputs"`.
        n_latents: Latents of each autoencoder that are nodes of their own.
        n_exact: So many edges with the greatest estimates are measured exactly instead.
        direction: `"noising"` or `"denoising"`.
        n_steps: Points on the way between the runs, for integrated gradients.
        max_bytes: About how much memory runs side by side may take.
        progress: Show a progress bar on stderr.
        resume: Unfinished scores of the same call, as for `find_circuit`.
        save_to: A file that keeps what is done as it goes, as there.

    Returns:
        Scores whose graph is a `LatentGraph`: choose, save and draw circuits as of any others.

    Raises:
        InterventionError: No autoencoders, one at another hook or of another width, a transcoder,
            no such method, or a model with hooks.
        AlignmentError: Runs of other lengths.
        MetricError: A metric that is the same in both runs of a pair, or without gradients.
    """
    _check(model, saes, method)
    for name, count, least in (("n_latents", n_latents, 1), ("n_exact", n_exact, 0)):
        check_count(name, count, least, InterventionError)
    check_count("n_steps", n_steps, 1, InterventionError)
    refuse_hooks(model)
    runs = runs_of(model, pairs, direction)
    metrics = metric_for_each(metric, len(runs))
    by_block = {block_of_hook(hook): sae for hook, sae in saes.items()}
    effects = {block: torch.zeros(sae.cfg.d_sae) for block, sae in by_block.items()}
    for each, (base, source) in zip(metrics, runs, strict=True):
        found = LatentPair(model, by_block, EdgeGraph.of(model.cfg), each, base, source, max_bytes)
        for block, effect in found.effects_of_latents().items():
            effects[block] += effect
    chosen = []
    for (stack, layer), effect in sorted(effects.items(), key=lambda x: (x[0][0] != "encoder", x)):
        best = effect.abs().argsort(descending=True, stable=True)[:n_latents]
        chosen.append((stack, layer, tuple(sorted(best.tolist()))))
    graph = LatentGraph(*_sizes(model), latents=tuple(chosen))
    steps = {"exact": 0, "eap": 1}.get(method, n_steps)
    if n_exact >= len(graph.edges):
        steps = 0  # nothing is left to be estimated
    settings = {"method": method, "steps": steps, "n_exact": n_exact}
    autoencoders = [sae.state_dict() for sae in by_block.values()]
    result = _empty(model, graph, runs, metrics, direction, settings, autoencoders)
    for number, (each, run) in enumerate(zip(metrics, runs, strict=True)):
        result.set_baselines(number, *baselines(model, *run, each, number))
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
        pairs_of = [
            partial(LatentPair, model, by_block, graph, each, *run, max_bytes)
            for each, run in zip(metrics, runs, strict=True)
        ]
        is_new = [bool(row.isnan().all()) for row in result.values]
        for number in [i for i, new in enumerate(is_new) if new and steps]:
            result.values[number] = pairs_of[number]().estimated(steps)
            if n_exact and number == len(runs) - 1:  # the largest are to be measured now
                best = result.scores().abs().argsort(descending=True)[:n_exact]
                result.values[:, best] = torch.nan
            bar.update(result.n_done - bar.n)
            keep()
        for number, todo in enumerate(result.values.isnan()):
            if not todo.any():
                continue
            for numbers, values in pairs_of[number]().exact(todo):
                result.values[number, numbers] = values.float().cpu()
                bar.update(len(numbers))
                keep()
    return result


def _check(model: HookedWhisper, saes: Any, method: Any) -> None:
    if method not in _METHODS:
        known = ", ".join(map(repr, _METHODS))
        raise InterventionError(f"method is {method!r}; with latents it can be {known}.")
    if not isinstance(saes, Mapping) or not saes:
        raise InterventionError(
            'no autoencoders; pass them by their hooks, such as load_suite("digits").'
        )
    for hook, sae in saes.items():
        stack, layer = block_of_hook(hook)
        n_layers = model.cfg.n_layers(stack)
        if layer >= n_layers:
            raise InterventionError(f"{hook}: the {stack} has blocks 0 to {n_layers - 1}.")
        if sae.cfg.is_transcoder or sae.cfg.d_in != model.cfg.d_model:
            raise InterventionError(
                f"the autoencoder for {hook} is of width {sae.cfg.d_in} or a transcoder; it must "
                f"reconstruct the stream, of width {model.cfg.d_model}."
            )


def _sizes(model: HookedWhisper) -> tuple[int, int, int, int]:
    cfg = model.cfg
    return cfg.n_audio_layers, cfg.n_audio_heads, cfg.n_text_layers, cfg.n_text_heads


def _empty(
    model: HookedWhisper,
    graph: LatentGraph,
    runs: Sequence[Any],
    metrics: Sequence[Any],
    direction: Direction,
    settings: dict[str, Any],
    autoencoders: Sequence[Any],
) -> EdgeScores:
    """The table to fill."""
    nan = torch.full((len(runs),), torch.nan)
    return EdgeScores(
        torch.full((len(runs), len(graph.edges)), torch.nan),
        {"pair": list(range(len(runs))), "edge": [str(edge) for edge in graph.edges]},
        nan,
        nan.clone(),
        direction,
        ", ".join(sorted({metric_name(each) for each in metrics})),
        graph,
        settings["method"],
        conditions={"graph": graph.to_list(), **settings}
        | run_fingerprints(model, metrics, runs)
        | {"autoencoders": fingerprint(autoencoders)},
    )
