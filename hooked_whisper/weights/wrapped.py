"""Models in memory that are inside of something: DistributedDataParallel, torch.compile, peft."""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hooked_whisper.errors import ArchitectureError, shown
from hooked_whisper.weights.adapter_config import AdapterConfig, adapter_config
from hooked_whisper.weights.files import MemoryTensor, StoredTensor

_INNER = ("_orig_mod", "module")
"""Where torch.compile and DistributedDataParallel have the model that they were given."""
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")
_LORA = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)\.([^.]+)"
)
_TOKENS = re.compile(r"\.token_adapter\.trainable_tokens_delta\.([^.]+)$")
_SAVED = re.compile(r"\.modules_to_save\.([^.]+)\.")
_BASE = re.compile(r"\.(?:token_adapter\.)?(?:base_layer|original_module)\.")


@dataclass(frozen=True)
class MemoryAdapter:
    """The adapter that is active in a model in memory, as it would be saved."""

    config: AdapterConfig
    stored: dict[str, StoredTensor]


def unwrapped(model: Any) -> Any:
    """A model without what torch put around it."""
    while isinstance(model, nn.Module):
        held = (model._modules.get(name) for name in _INNER)
        inner = next((each for each in held if each is not None), None)
        if inner is None:
            break
        model = inner
    return model


def plain_state(model: nn.Module) -> dict[str, Any]:
    """A model's tensors, by names without what torch put around parts of it."""
    return {_WRAPPERS.sub("", key): value for key, value in model.state_dict().items()}


def is_adapted(model: Any) -> bool:
    """Whether peft has put adapters into a model in memory."""
    return isinstance(model, nn.Module) and isinstance(getattr(model, "peft_config", None), dict)


def taken_apart(model: Any) -> tuple[nn.Module, dict[str, Any], MemoryAdapter]:
    """The model in which peft put an adapter, its base's tensors, and the adapter.

    Raises:
        ArchitectureError: Not exactly one adapter is active, it is merged, or of another kind.
    """
    source = f"the adapter of this {type(model).__name__}"
    name = _active(model)
    config = adapter_config(
        {**model.peft_config[name].to_dict(), "init_lora_weights": None}, source
    )
    inner = unwrapped(model.get_base_model() if hasattr(model, "get_base_model") else model)
    base: dict[str, Any] = {}
    stored: dict[str, StoredTensor] = {}
    for key, value in plain_state(inner).items():
        found = _LORA.search(key) or _TOKENS.search(key) or _SAVED.search(key)
        if found is None:
            if ".trainable_tokens_original." not in key:
                base[_BASE.sub(".", key)] = value
        elif found[found.re.groups] == name and isinstance(value, Tensor):
            stored[f"base_model.model.{_as_saved(key, found)}"] = MemoryTensor(value)
    second = "base_model.model.proj_out.token_adapter.trainable_tokens_delta"
    if any("embed_tokens.token_adapter" in key for key in stored):
        stored.pop(second, None)  # the embedding's own, once more
    return inner, base, MemoryAdapter(config, stored)


def _as_saved(key: str, found: re.Match[str]) -> str:
    """A tensor's name as peft saves it, without the adapter's own."""
    if found.re is _SAVED:
        return _SAVED.sub(".", key)
    if found.re is _TOKENS:
        return key.removesuffix(f".{found[1]}")
    part = key[: found.end(1)] + key[found.end(2) :]
    return part.removesuffix(".weight") if found[1] == "lora_magnitude_vector" else part


def _active(model: Any) -> str:
    """The name of the one adapter that a model computes with."""
    layers = [
        each for each in model.modules() if isinstance(getattr(each, "lora_A", None), nn.Module)
    ]
    names = {name for layer in layers for name in layer.active_adapters}
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ArchitectureError(
            "the adapter is merged into this model: call unmerge_adapter() first, or "
            "merge_and_unload() and give what that returns."
        )
    if any(getattr(layer, "disable_adapters", False) for layer in layers):
        raise ArchitectureError("the adapter of this model is disabled: enable it first.")
    if len(names) != 1:
        raise ArchitectureError(
            f"this {type(model).__name__} has {len(names)} active adapters of LoRA "
            f"{shown(sorted(names), 80)}; it must be one: call set_adapter(name), or "
            "merge_and_unload() and give what that returns."
        )
    return names.pop()
