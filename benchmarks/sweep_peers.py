"""The contestants that run the model once for each patch: all patch the same places.

In transformers' Whisper every place of the sweeps is the input of some module.
A block keeps its residual stream before a LayerNorm reads it, so what a hook
returns for a LayerNorm would not reach the residual; but both are one tensor,
and writing into it patches the residual, as in this package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import Models
from benchmarks.sweep_tasks import Inputs, Place
from hooked_whisper.metrics.base import Metric

_TARGETS = {
    "hook_resid_pre": "self_attn_layer_norm",
    "hook_resid_mid": "encoder_attn_layer_norm",
    "hook_resid_mid_cross": "final_layer_norm",
    "attn.hook_z": "self_attn.out_proj",
}
"""The module of transformers whose input a hook of this package is."""


class SweepModels(Models):
    """The models of the other benchmarks, and one that nnsight has in its hands.

    Fresh weights hardly let a patch through to the logits; so they are scaled
    up, for a difference between contestants to show.
    """

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The weights, by the names of this package."""
        weights = super().weights
        for name, value in weights.items():
            if value.ndim == 2 and "positional" not in name:
                value *= 4.0
        return weights

    @cached_property
    def nnsight(self) -> Any:
        """transformers' model with fused attention, a copy of its own, wrapped by nnsight."""
        from nnsight import NNsight

        return NNsight(self._make_hf("sdpa"))


@dataclass(frozen=True)
class Peer:
    """A way to do a sweep patch by patch.

    Args:
        label: For the tables.
        model: The attribute of `SweepModels` that it runs.
        cache: The clean run's activations at the places' hooks.
        patch: The metric of the corrupted run with one place patched.
        source: What every corrupted run is given: a mel, or the encoder's output.
    """

    label: str
    model: str
    cache: Callable[[Any, Inputs, list[Place]], dict[str, Tensor]]
    patch: Callable[[Any, dict[str, Any], Place, Tensor, Metric], float]
    source: Callable[[Any, Inputs], dict[str, Any]]

    @torch.no_grad()
    def prepare(self, model: Any, inputs: Inputs, places: list[Place]) -> Any:
        """What is done once: the clean run, and what all corrupted runs are given."""
        return self.cache(model, inputs, places), self.source(model, inputs)

    @torch.no_grad()
    def run(self, model: Any, prepared: Any, places: list[Place], metric: Metric) -> list[float]:
        """The metric with each of these places patched, a run of the model for each."""
        clean, source = prepared
        return [self.patch(model, source, place, clean[place.name], metric) for place in places]


def make_peers(sweep: str) -> list[Peer]:
    """The contestants of a sweep; the first three are the targets' bases.

    Those that get the encoder's output do what an expert would where only the
    decoder is patched. They have no target, and show what is left to gain.
    """
    peers = [
        Peer(PLAIN_LOOP, "hooked", _cache_ours, _patch_ours, _mel_ours),
        Peer(NNSIGHT, "nnsight", _cache_nnsight, _patch_nnsight, _mel_hf),
        Peer(TORCH_HOOKS, "hf_sdpa", _cache_hf, _patch_hf, _mel_hf),
    ]
    if sweep == "decoder":
        once = ", encoder run once by hand"
        peers += [
            Peer(PLAIN_LOOP + once, "hooked", _cache_ours, _patch_ours, _encoded_ours),
            Peer(NNSIGHT + once, "nnsight", _cache_nnsight, _patch_nnsight, _encoded_hf),
            Peer(TORCH_HOOKS + once, "hf_sdpa", _cache_hf, _patch_hf, _encoded_hf),
        ]
    return peers


PLAIN_LOOP = "loop of run_with_hooks"
NNSIGHT = "nnsight on transformers"
TORCH_HOOKS = "torch hooks on transformers"


# This package, hook by hook


def _mel_ours(model: Any, inputs: Inputs) -> dict[str, Any]:
    return {"mel": inputs.corrupted, "tokens": inputs.tokens}


def _encoded_ours(model: Any, inputs: Inputs) -> dict[str, Any]:
    return {"encoder_output": model(inputs.corrupted), "tokens": inputs.tokens}


def _cache_ours(model: Any, inputs: Inputs, places: list[Place]) -> dict[str, Tensor]:
    names = sorted({place.name for place in places})
    cache = model.run_with_cache(inputs.clean, inputs.tokens, names_filter=names)[1]
    return {name: cache[name] for name in names}


def _patch_ours(
    model: Any, source: dict[str, Any], place: Place, clean: Tensor, metric: Metric
) -> float:
    n_heads = model.cfg.n_heads(place.stack)

    def patch(activation: Tensor, hook: Any) -> Tensor:
        place.part(activation, n_heads)[:] = place.part(clean, n_heads)
        return activation

    return metric(model.run_with_hooks(**source, fwd_hooks=[(place.name, patch)])).item()


# transformers: torch's hooks, and nnsight


def _mel_hf(model: Any, inputs: Inputs) -> dict[str, Any]:
    return {"input_features": inputs.corrupted, **_hf_text(inputs)}


def _encoded_hf(model: Any, inputs: Inputs) -> dict[str, Any]:
    from transformers.modeling_outputs import BaseModelOutput

    module = getattr(model, "_module", model)  # nnsight keeps the model that it wraps here
    output = module.model.encoder(inputs.corrupted).last_hidden_state
    return {"encoder_outputs": BaseModelOutput(last_hidden_state=output), **_hf_text(inputs)}


def _hf_text(inputs: Inputs) -> dict[str, Any]:
    return {"decoder_input_ids": inputs.tokens, "use_cache": False}


def _target(model: Any, place: Place) -> Any:
    """The module whose input the place's activation is; in nnsight, what stands for it."""
    stack = getattr(model.model, place.stack)
    if place.hook == "hook_resid_post":
        if place.layer + 1 == len(stack.layers):
            return stack.layer_norm
        return stack.layers[place.layer + 1].self_attn_layer_norm
    found = stack.layers[place.layer]
    for attribute in _TARGETS[place.hook].split("."):
        found = getattr(found, attribute)
    return found


def _one_a_hook(places: list[Place]) -> list[Place]:
    return list({place.name: place for place in places}.values())


def _cache_hf(model: Any, inputs: Inputs, places: list[Place]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args: kept.__setitem__(name, args[0].clone())

    handles = [
        _target(model, place).register_forward_pre_hook(keep(place.name))
        for place in _one_a_hook(places)
    ]
    try:
        model(input_features=inputs.clean, **_hf_text(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _patch_hf(
    model: Any, source: dict[str, Any], place: Place, clean: Tensor, metric: Metric
) -> float:
    n_heads = _n_heads(model.config, place)

    def patch(module: Any, args: tuple[Tensor, ...]) -> None:
        place.part(args[0], n_heads)[:] = place.part(clean, n_heads)

    handle = _target(model, place).register_forward_pre_hook(patch)
    try:
        return metric(model(**source).logits).item()
    finally:
        handle.remove()


def _cache_nnsight(model: Any, inputs: Inputs, places: list[Place]) -> dict[str, Tensor]:
    in_order = sorted(_one_a_hook(places), key=_order)
    kept = {}
    with model.trace(input_features=inputs.clean, **_hf_text(inputs)):
        for place in in_order:
            kept[place.name] = _target(model, place).input.clone().save()
    return kept


def _patch_nnsight(
    model: Any, source: dict[str, Any], place: Place, clean: Tensor, metric: Metric
) -> float:
    n_heads = _n_heads(model.config, place)
    target = _target(model, place)
    with model.trace(**source):
        place.part(target.input, n_heads)[:] = place.part(clean, n_heads)
        value = metric(model.output.logits).save()
    return value.item()


def _order(place: Place) -> tuple[int, int]:
    """nnsight wants what it reads in the order in which the model computes it."""
    hooks = [*_TARGETS, "hook_resid_post"]
    return place.layer, hooks.index(place.hook)


def _n_heads(config: Any, place: Place) -> int:
    heads: int = getattr(config, f"{place.stack}_attention_heads")
    return heads
