"""Edge attribution patching: every edge's effect, estimated from gradients at what nodes read.

To first order, patching an edge changes the metric by what the sender's output changes, times the
metric's gradient at the input of the receiver. One backward pass gives all edges. Integrated
gradients are means over passes on the way from one run to the other.

Source: Syed et al. 2023 "Attribution Patching Outperforms Automated Circuit Discovery" (EAP);
Hanna et al. 2024 "Have Faith in Faithfulness" (EAP-IG, inputs); Marks et al. 2024 "Sparse Feature
Circuits", section 3 (integrated gradients of each node's own output; EAP-IG, activations).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.contributions import (
    Differences,
    attention_of,
    norm_of,
    stream_of,
    written_at,
)
from hooked_whisper.circuits.graph import EdgeGraph, ReadSite
from hooked_whisper.config import Stack
from hooked_whisper.errors import MetricError
from hooked_whisper.hooks.attached import frozen
from hooked_whisper.hooks.collector import GRADIENT_SUFFIX, Collector
from hooked_whisper.hooks.passes import PassInfo
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import Metric, check_values, metric_name, resolve_positions
from hooked_whisper.model.whisper import HookedWhisper

_READ = ["*.hook_q", "*.hook_k", "*.hook_v"]
EMBEDDED = ["encoder.blocks.0.hook_resid_pre", "decoder.blocks.0.hook_resid_pre"]


def streams_read(model: HookedWhisper) -> list[str]:
    """The hooks of the streams that nodes read."""
    return list(dict.fromkeys(stream_of(model, site) for site in EdgeGraph.of(model.cfg).sites))


class EdgeGradients:
    """Estimates for the edges of one pair of runs.

    Args:
        model: The model, without hooks.
        base: The run that edges are patched in.
        metric: Its metric.
        of_base: Its activations: `WRITTEN`, and the encoder's output.
        differences: What nodes write in the other run, less what they write in this one.
    """

    def __init__(
        self,
        model: HookedWhisper,
        base: Example,
        metric: Metric,
        of_base: Mapping[str, Tensor],
        differences: Differences,
    ) -> None:
        self.model, self.base, self.metric = model, base, metric
        self.of_base, self.differences = of_base, differences
        self.graph = EdgeGraph.of(model.cfg)
        self.positions = resolve_positions(metric, base.n_pos)
        last = of_base[f"decoder.blocks.{model.cfg.n_text_layers - 1}.hook_resid_post"]
        with torch.no_grad():
            self.base_value = float(check_values(metric(model.decoder.finish(last)), 1, metric))

    def of_base_run(self) -> Float[Tensor, " edge"]:
        """Changes of the metric by each edge, from the gradients of the run that is patched."""
        return self._changes([], 0.0)

    def of_inputs(self, n_steps: int) -> Iterator[Float[Tensor, " edge"]]:
        """The same from runs whose embeddings are on their way, a part from each step."""
        for step in range(n_steps):
            yield self._changes(EMBEDDED, (step + 0.5) / n_steps) / n_steps

    def _changes(self, moving: Sequence[str], share: float) -> Float[Tensor, " edge"]:
        found = torch.zeros(len(self.graph.edges))
        for site, product in self._products(moving, share, ("encoder", 0)):
            found[site.edges] = product.T.flatten()
        return found

    def groups(self) -> list[str]:
        """Where nodes write that move together along their own outputs: the hooks of these."""
        names = {written_at(node): None for node in self.graph.senders}
        changes = self.differences.changes
        return [name for name in names if bool(changes[name].any())]

    def of_activations(self, name: str, n_steps: int) -> Iterator[Float[Tensor, " edge"]]:
        """The same for the edges of the nodes that write to one hook, whose output moves."""
        stack: Stack = "encoder" if name.startswith("encoder") else "decoder"
        start = (stack, int(name.split(".")[2]))
        for step in range(n_steps):
            found = torch.zeros(len(self.graph.edges))
            for site, product in self._products([name], (step + 0.5) / n_steps, start):
                mine = [written_at(node) == name for node in site.senders]
                some = torch.where(torch.tensor(mine)[:, None], product.T, 0.0)
                found[site.edges] = some.flatten() / n_steps
            yield found

    def _products(
        self, moving: Sequence[str], share: float, start: tuple[Stack, int]
    ) -> Iterator[tuple[ReadSite, Float[Tensor, "receiver sender"]]]:
        """Differences times gradients, of each site that reads what comes behind the start."""
        tensors = self._run(moving, share, start)
        for site in self.graph.sites:
            if stream_of(self.model, site) not in tensors:
                continue
            if (gradient := self._gradient(site, tensors)) is None:
                continue
            flat = gradient.flatten(1)
            product = torch.zeros(len(site.receivers), len(site.senders))
            for first, some in self.differences.of_all(site.senders):
                found = flat @ some.flatten(1).to(flat.dtype).T
                product[:, first : first + len(some)] = found.cpu()
            yield site, product

    def _run(
        self, moving: Sequence[str], share: float, start: tuple[Stack, int]
    ) -> dict[str, Tensor]:
        """Streams, and gradients of all that is made of them, with some outputs on their way."""
        model, (stack, layer) = self.model, start

        def move(value: Tensor, hook: HookPoint) -> Tensor:
            name = hook.name or ""
            return self.of_base[name] + share * self.differences.changes[name][None]

        stacks = ["encoder", "decoder"] if stack == "encoder" else ["decoder"]
        grad_names = [f"{each}.{name}" for each in stacks for name in _READ]
        grad_names += [
            f"{each}.blocks.*.{norm}.hook_normalized"
            for each, norm in (("encoder", "ln2"), ("decoder", "ln3"))
            if each in stacks
        ]
        read = [name for name in streams_read(model) if name.startswith(tuple(stacks))]
        collector, streams = Collector(with_gradients=True), Collector()
        hooks: list[Any] = [
            *([(list(moving), move)] if moving else []),
            (read, streams),
            ([*grad_names, "decoder.ln_final.hook_normalized"], collector),
        ]
        needed = [each for each in model.parameters() if each.requires_grad]
        with torch.enable_grad(), frozen(needed), model.hooks(fwd_hooks=hooks):
            resid = self.of_base[f"{stack}.blocks.{layer}.hook_resid_pre"]
            audio = self.of_base["encoder.ln_final.hook_normalized"]
            if stack == "encoder":
                info = PassInfo(n_positions=self.base.mel.n_positions)
                audio = model.encoder.run_from(layer, resid, info)
                layer, resid = 0, self.of_base["decoder.blocks.0.hook_resid_pre"]
            logits = model.decoder.run_from(layer, resid, audio, self.positions)
            read_all = self.metric if self.positions is None else self.metric.of_positions
            value = check_values(read_all(logits), 1, self.metric)
            if not value.requires_grad:
                raise MetricError(
                    f"{metric_name(self.metric)} has no gradient, so that nothing can be estimated "
                    'from it. Use one that has, such as LogitDifference, or method="exact".'
                )
            value.sum().backward()
        return {**streams.tensors, **collector.tensors}

    def _gradient(
        self, site: ReadSite, tensors: Mapping[str, Tensor]
    ) -> Float[Tensor, "receiver pos d_model"] | None:
        """The metric's gradient at the stream, as each receiver reads it."""
        stream = tensors[stream_of(self.model, site)][0]
        norm = norm_of(self.model, site)
        if site.sublayer in ("mlp", "logits"):
            place = "decoder.ln_final"
            if site.sublayer == "mlp":
                place = f"{site.stack}.blocks.{site.layer}."
                place += "ln2" if site.stack == "encoder" else "ln3"
            found = tensors.get(f"{place}.hook_normalized{GRADIENT_SUFFIX}")
            if found is None:
                return None
            if site.sublayer == "logits" and self.positions is not None:
                whole = found.new_zeros(1, *stream.shape)
                found = whole.index_add_(
                    1, torch.tensor(self.positions, device=whole.device), found
                )
            return _through_norm(norm, stream, found)
        attention = attention_of(self.model, site)
        name = "attn" if site.sublayer == "attn" else "cross_attn"
        place = f"{site.stack}.blocks.{site.layer}.{name}.hook_"
        parts = {"attn": "qkv", "cross_q": "q", "cross_kv": "kv"}[site.sublayer]
        names = [f"{place}{part}{GRADIENT_SUFFIX}" for part in parts]
        if any(name not in tensors for name in names):
            return None
        wide = stream.float()
        unit, scale = _normalized(norm, wide)
        n = attention.n_heads
        gradients = wide.new_empty(n * len(parts), *wide.shape)
        for i, part in enumerate(parts):
            read = gradients[i * n : (i + 1) * n]
            weight = getattr(attention, f"W_{part.upper()}").float() * norm.weight.float()[:, None]
            weight = weight - weight.mean(dim=1, keepdim=True)  # what all dimensions have in common
            scaled = tensors[names[i]][0].float().transpose(0, 1) / scale
            torch.bmm(scaled, weight.mT, out=read)
            along = (scaled * (unit @ weight)).sum(dim=-1, keepdim=True) / unit.shape[-1]
            read.addcmul_(along, unit, value=-1)
        return gradients


def _through_norm(
    norm: Any, stream: Float[Tensor, "pos d_model"], gradient: Float[Tensor, "some pos d_model"]
) -> Float[Tensor, "some pos d_model"]:
    """A gradient at what a LayerNorm gives, taken back to the stream that it reads.

    Source: Ba et al. 2016; the scale moves with the stream, as the norm's own backward has it.
    """
    gradient = gradient.float() * norm.weight.float()
    unit, scale = _normalized(norm, stream.float())
    along = (gradient * unit).mean(dim=-1, keepdim=True)
    return (gradient - gradient.mean(dim=-1, keepdim=True) - unit * along) / scale


def _normalized(
    norm: Any, stream: Float[Tensor, "pos d_model"]
) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos 1"]]:
    """A stream as a LayerNorm has it before its weights, and what it was divided by."""
    centred = stream - stream.mean(dim=-1, keepdim=True)
    scale = (centred.pow(2).mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    return centred / scale, scale
