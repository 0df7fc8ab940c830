"""find_latent_circuit: edges from, to and between the latents of autoencoders, scored.

Nothing is spliced: an autoencoder's latents and its error add up to the stream that it reads, so
that the model with all of them is the model itself. What a latent writes is what its decoder adds
for it; what it reads is the stream before, through its encoder.

Source: Marks et al. 2024 "Sparse Feature Circuits", section 3: latents and errors as nodes, scored
by attribution patching and integrated gradients.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.contributions import Differences, read_by
from hooked_whisper.circuits.exact import EdgeRuns
from hooked_whisper.circuits.find import (
    _KEPT,
    Scorer,
    empty_result,
    fill,
    refuse_hooks,
    runs_of,
)
from hooked_whisper.circuits.gradients import EMBEDDED, EdgeGradients
from hooked_whisper.circuits.graph import EdgeGraph, Latent, ReadSite
from hooked_whisper.circuits.latents import LatentGraph, block_of_hook, numbers_of
from hooked_whisper.circuits.scores import EdgeScores, Method
from hooked_whisper.config import Stack
from hooked_whisper.errors import InterventionError, check_count
from hooked_whisper.metrics.base import Metric
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import Direction, metric_for_each
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES
from hooked_whisper.patching.partial_result import fingerprint
from hooked_whisper.patching.resume_point import StreamPosition
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
        resume: Unfinished scores of the same call, to go on with. They are not changed.
        save_to: A file that keeps what is done as it goes, and that is gone on from where
            it is there.

    Returns:
        Scores whose graph is a `LatentGraph`: choose, save and draw circuits as of any others.

    Raises:
        InterventionError: No autoencoders, one at another hook or of another width, a transcoder,
            no such method, or a model with hooks.
        AlignmentError: Runs of other lengths.
        MetricError: A metric that is the same in both runs of a pair, or without gradients.
    """
    _check(model, saes, method, max_bytes)
    for name, count, least in (("n_latents", n_latents, 1), ("n_exact", n_exact, 0)):
        check_count(name, count, least, InterventionError)
    check_count("n_steps", n_steps, 1, InterventionError)
    refuse_hooks(model)
    runs = runs_of(model, pairs, direction)
    metrics = metric_for_each(metric, len(runs))
    by_block = {block_of_hook(hook): sae for hook, sae in saes.items()}
    effects = {block: torch.zeros(sae.cfg.d_sae) for block, sae in by_block.items()}
    for each, (base, source) in zip(metrics, runs, strict=True):
        found = _Pair(model, by_block, EdgeGraph.of(model.cfg), each, base, source, max_bytes)
        for block, effect in found.effects_of_latents().items():
            effects[block] += effect
    chosen = []
    for (stack, layer), effect in sorted(effects.items(), key=lambda x: (x[0][0] != "encoder", x)):
        best = effect.abs().argsort(descending=True, stable=True)[:n_latents]
        chosen.append((stack, layer, tuple(sorted(best.tolist()))))
    graph = LatentGraph(**asdict(EdgeGraph.of(model.cfg)), latents=tuple(chosen))
    result = empty_result(
        model,
        graph,
        runs,
        metrics,
        method,
        direction,
        steps=n_steps if method == "eap-ig-inputs" else 1,
        n_exact=n_exact,
        autoencoders=fingerprint(
            [(sae.cfg, list(sae.parameters())) for _, sae in sorted(by_block.items())]
        ),
    )
    stages = _stages(model, by_block, result, n_steps, n_exact)
    fill(model, result, runs, metrics, stages, max_bytes, progress, resume, save_to)
    return result


_MEASURED = "measured"
"""Which edges are patched for true behind estimates of all."""


def _stages(
    model: HookedWhisper,
    saes: Mapping[tuple[Stack, int], SAE],
    result: EdgeScores,
    n_steps: int,
    n_exact: int,
) -> Iterator[Scorer]:
    """Estimates of all edges first, then exact values of the greatest; or exact values alone."""

    def score(
        is_exact: bool, base: Any, source: Any, metric: Metric, todo: Tensor, max_bytes: int
    ) -> Iterator[Any]:
        pair = _Pair(model, saes, result.graph, metric, base, source, max_bytes)
        if is_exact:
            yield from pair.exact(todo.clone())
        else:
            found = pair.estimated(1 if result.method == "eap" else n_steps)
            yield list(range(len(found))), found

    if result.method != "exact" and _MEASURED not in result.held:
        yield partial(score, False)
        measured = torch.zeros(len(result.edges), dtype=torch.bool)
        measured[result.scores().abs().argsort(descending=True)[:n_exact]] = True
        result.values[:, measured] = torch.nan
        result.held[_MEASURED] = measured
    yield partial(score, True)


def _check(model: HookedWhisper, saes: Any, method: Any, max_bytes: Any) -> None:
    check_count("max_bytes", max_bytes, 1, InterventionError)
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


def writes_of(
    sae: SAE, x: Float[Tensor, "1 pos d_model"], numbers: Sequence[int]
) -> Float[Tensor, "node pos d_model"]:
    """What some latents, all others together, and the error add up to a stream.

    The decoder's bias is among the others.
    """
    latents = sae.encode(x.to(sae.dtype))
    whole, nothing = sae.decode(latents), sae.decode(torch.zeros_like(latents))
    found = []
    for number in numbers:
        alone = torch.zeros_like(latents)
        alone[..., number] = latents[..., number]
        found.append((sae.decode(alone) - nothing)[0])
    rest = whole[0] - sum(found, torch.zeros_like(whole[0]))
    return torch.stack([*found, rest, x[0].to(sae.dtype) - whole[0]]).to(x.dtype)


class _Differences(Differences):
    """With what latents and errors add."""

    graph: EdgeGraph

    def add(self, nodes: Sequence[Latent], changes: Float[Tensor, "node pos d_model"]) -> None:
        """Keep what some nodes write in one run less what they write in the other."""
        self.of_latents = getattr(self, "of_latents", {}) | dict(zip(nodes, changes, strict=True))

    def of(self, node: Any) -> Tensor:
        """The difference of what one node writes."""
        return self.of_latents[node] if isinstance(node, Latent) else super().of(node)

    def is_zero(self, node: Any) -> bool:
        """Whether a node writes the same in both runs."""
        return not self.of(node).any() if isinstance(node, Latent) else super().is_zero(node)

    def of_all(self, senders: Sequence[Any]) -> Iterator[tuple[int, Tensor]]:
        """Those of some senders, as many at a time as fit in memory."""
        n = max(1, self.max_bytes // (4 * self.of(senders[0]).nbytes))
        for first in range(0, len(senders), n):
            yield first, torch.stack([self.of(node) for node in senders[first : first + n]])


class _Pair:
    """One pair of runs, and its autoencoders' nodes."""

    def __init__(
        self,
        model: HookedWhisper,
        saes: Mapping[tuple[Stack, int], SAE],
        graph: EdgeGraph,
        metric: Any,
        base: Any,
        source: Any,
        max_bytes: int,
    ) -> None:
        self.model, self.saes, self.graph, self.metric = model, saes, graph, metric
        self.base, self.max_bytes = base, max_bytes
        names = [*_KEPT, *(f"{s}.blocks.{n}.hook_resid_post" for s, n in saes)]
        self.of_base, of_source = (read_by(model, run, names) for run in (base, source))
        self.differences = _Differences(model, of_source, self.of_base, max_bytes)
        self.streams = {
            block: tuple(run["{}.blocks.{}.hook_resid_post".format(*block)] for run in
                         (self.of_base, of_source))
            for block in saes
        }  # fmt: skip
        if isinstance(graph, LatentGraph):
            for block, (ours, theirs) in self.streams.items():
                numbers = numbers_of(nodes := graph.nodes_behind(*block))
                changes = writes_of(saes[block], theirs, numbers)
                changes = changes - writes_of(saes[block], ours, numbers)
                self.differences.add(nodes, changes)

    @property
    def gradients(self) -> "_Gradients":
        """Of the metric in this pair."""
        return _Gradients(
            self.model,
            self.base,
            self.metric,
            self.of_base,
            self.differences,
            self.graph,
            self.saes,
        )

    def effects_of_latents(self) -> dict[tuple[Stack, int], Float[Tensor, " latent"]]:
        """The effect of each latent by itself, to first order."""
        found = {}
        for block, gradient in self.gradients.at_blocks(0.0).items():
            sae, (ours, theirs) = self.saes[block], self.streams[block]
            change = sae.encode(theirs.to(sae.dtype)) - (latents := sae.encode(ours.to(sae.dtype)))
            with torch.enable_grad():
                leaf = latents.detach().requires_grad_()
                (sae.decode(leaf)[0] * gradient.to(sae.dtype)).sum().backward(inputs=[leaf])
            assert leaf.grad is not None
            found[block] = (change * leaf.grad)[0].sum(dim=0).float().cpu()
        return found

    def estimated(self, n_steps: int) -> Float[Tensor, " edge"]:
        """The metric with each edge patched, from gradients."""
        gradients, total = self.gradients, torch.zeros(len(self.graph.edges))
        for step in range(n_steps):
            share = 0.0 if n_steps == 1 else (step + 0.5) / n_steps
            for site, product in gradients.products(share):
                total[site.edges] += product.T.flatten() / n_steps
        return gradients.base_value + total

    def exact(self, todo: Tensor) -> Iterator[Any]:
        """The metric with some edges patched for true."""
        runs = _Runs(self.model, self.base, self.metric, self.max_bytes)
        runs.graph, runs.saes = self.graph, self.saes
        yield from runs.patched(self.differences, todo)


class _Gradients(EdgeGradients):
    """Estimates with latents among the nodes."""

    def __init__(self, *args: Any) -> None:
        *plain, graph, self.saes = args
        super().__init__(*plain)
        self.plain, self.graph = self.graph, graph

    def _gradients_at(self, share: float) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """Streams, and the gradient at each site of the model itself."""
        tensors = self._run([] if share == 0 else EMBEDDED, share, ("encoder", 0))
        found = {}
        for site in self.plain.sites:
            if (gradient := self._gradient(site, tensors)) is not None:
                found[site.stack, site.layer, site.sublayer] = gradient
        return tensors, found

    def _behind(self, block: tuple[Stack, int], found: dict[Any, Tensor]) -> Tensor:
        """The metric's gradient at the stream behind a block: what all later sites read of it."""
        later = [
            site
            for site in self.plain.sites
            if site.reads == block[0] and (site.layer > block[1] or site.sublayer == "cross_kv")
        ]
        keys = [(site.stack, site.layer, site.sublayer) for site in later]
        return sum((found[key].sum(dim=0) for key in keys if key in found), torch.zeros(()))

    def at_blocks(self, share: float) -> dict[tuple[Stack, int], Float[Tensor, "pos d_model"]]:
        """That gradient behind each block with an autoencoder."""
        _, found = self._gradients_at(share)
        return {block: self._behind(block, found) for block in self.saes}

    def products(self, share: float) -> Iterator[tuple[ReadSite, Tensor]]:
        """Differences times gradients at each site."""
        tensors, found = self._gradients_at(share)
        for site in self.graph.sites:
            key = (site.stack, site.layer, site.sublayer)
            if site.sublayer == "latents":
                gradient = self._of_latents(site, tensors, found)
            elif key in found:
                gradient = found[key]
            else:
                continue
            product = torch.zeros(len(site.receivers), len(site.senders))
            for first, some in self.differences.of_all(site.senders):
                part = gradient.flatten(1) @ some.flatten(1).to(gradient.dtype).T
                product[:, first : first + len(some)] = part.cpu()
            yield site, product

    def _of_latents(
        self, site: ReadSite, tensors: Mapping[str, Tensor], found: dict[Any, Tensor]
    ) -> Float[Tensor, "receiver pos d_model"]:
        """The gradient at the stream, as each latent and the error read it."""
        last = site.layer == self.model.cfg.n_layers(site.stack) - 1
        name = "resid_post" if last else "resid_pre"
        stream = tensors[f"{site.stack}.blocks.{site.layer + (not last)}.hook_{name}"]
        behind = self._behind((site.stack, site.layer), found)
        numbers = numbers_of(site.receivers)
        with torch.enable_grad():
            x = stream.detach().float().requires_grad_()
            writes = writes_of(self.saes[site.stack, site.layer], x, numbers)
            sums = (writes * behind).sum(dim=(1, 2))
            return torch.cat([torch.autograd.grad(each, x, retain_graph=True)[0] for each in sums])


class _Runs(EdgeRuns):
    """Patched runs with latents among the receivers."""

    saes: Mapping[tuple[Stack, int], SAE]

    def _latent_rows(
        self, site: ReadSite, changes: Float[Tensor, "sender pos d_model"], chosen: list[int]
    ) -> Float[Tensor, "row pos d_model"]:
        """The streams behind an autoencoder one of whose nodes reads something else."""
        stream = self._behind(site.stack, site.layer)
        sae = self.saes[site.stack, site.layer]
        numbers = numbers_of(site.receivers)
        base = writes_of(sae, stream, numbers)
        rows, n = [], len(site.receivers)
        for sender in sorted({number // n for number in chosen}):
            moved = writes_of(sae, stream + changes[sender][None], numbers) - base
            rows += [stream[0] + moved[number % n] for number in chosen if number // n == sender]
        return torch.stack(rows)

    def _encoder_rows(self, site: ReadSite, differences: Any, todo: Tensor) -> Iterator[Any]:
        if site.sublayer != "latents":
            yield from super()._encoder_rows(site, differences, todo)
            return
        for first, numbers in self._by_sender(site, todo):
            change = differences.of(site.senders[first])[None]
            start = site.first + first * len(site.receivers)
            for number in numbers:
                yield [number], self._latent_rows(site, change, [number - start])

    def _rows_of(
        self, site: ReadSite, changes: Tensor, chosen: list[int]
    ) -> tuple[Tensor, StreamPosition]:
        if site.sublayer == "latents":
            rows = self._latent_rows(site, changes, chosen)
            return rows, StreamPosition(site.layer + 1, 0)
        return super()._rows_of(site, changes, chosen)
