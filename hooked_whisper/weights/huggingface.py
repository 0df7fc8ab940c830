"""transformers' Whisper: local folders, and models in memory.

Safetensors go before the older `pytorch_model.bin`, a pickle of which plain tensors alone are read.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    SourceError,
    WeightNameError,
    shown,
)
from hooked_whisper.weights.adapters import adapt
from hooked_whisper.weights.alignment_heads import add_known_heads
from hooked_whisper.weights.files import (
    MemoryTensor,
    StoredTensor,
    check_finite,
    check_floats,
    check_plain,
    equal_tensors,
    is_file,
    names_in,
    read_json,
)
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.native import CONFIG_FILE, WEIGHTS_FILE, heads_mask
from hooked_whisper.weights.pieces import safetensors_tensors
from hooked_whisper.weights.rename import huggingface_name, match_tensors
from hooked_whisper.weights.sizes import SIZES, config_of_sizes
from hooked_whisper.weights.torch_files import are_one, read_stored, torch_tensors
from hooked_whisper.weights.towers import (
    encoder_alone,
    has_decoder,
    is_tower,
    prefix_of,
    told_of_absence,
)
from hooked_whisper.weights.vocabulary import (
    as_it_says,
    own_vocabulary,
    told_by,
    told_by_files,
)
from hooked_whisper.weights.wrapped import (
    MemoryAdapter,
    is_adapted,
    plain_state,
    taken_apart,
    unwrapped,
)

WEIGHT_FILES = (
    WEIGHTS_FILE,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where the weights are, the first that is there, as in transformers; an index names shards."""
GENERATION_FILE = "generation_config.json"

_EMBEDDING = "decoder.token_embedding.weight"
_UNEMBEDDING = "proj_out.weight"


def read_huggingface_folder(folder: Path, d_vocab: int | None = None) -> LoadedWeights:
    """Weights that `save_pretrained` of a transformers Whisper wrote, in one file or in shards."""
    path = folder / CONFIG_FILE
    values = read_json(path)
    name = folder.resolve().name
    if is_tower(values):
        tower = _read_tensors(folder, prefix_of(values))
        return as_it_says(encoder_alone(values, tower, name, str(folder)), None, d_vocab)
    cfg = config_from_huggingface(values, name, str(path))
    stored = _read_tensors(folder)
    if not has_decoder(stored):
        told_of_absence(values, str(path))
        return as_it_says(encoder_alone(values, stored, name, str(folder)), None, d_vocab)
    generation = read_generation(folder)
    told = told_by(values, generation) or told_by_files(folder)
    loaded = LoadedWeights(
        cfg=cfg,
        tensors=_match(stored, cfg, str(folder)),
        source=str(folder),
    )
    loaded.alignment_heads = heads_mask(
        generation.get("alignment_heads"), cfg, folder / GENERATION_FILE
    )
    return as_it_says(loaded, told, d_vocab, own_vocabulary(folder, cfg, told))


def read_generation(folder: Path) -> dict[str, Any]:
    """What `generation_config.json` holds, without which the weights are as good."""
    path = folder / GENERATION_FILE
    if not is_file(path):
        return {}
    try:
        return read_json(path)
    except CheckpointError as error:
        warnings.warn(f"{str(error)[:300]} It is left out.", stacklevel=2)
        return {}


def from_hf_state(model: Any, d_vocab: int | None = None) -> LoadedWeights:
    """Weights of a transformers Whisper in memory; assigning them copies.

    Args:
        model: A `WhisperForConditionalGeneration` or `WhisperModel`, also in
            DistributedDataParallel or torch.compile, or with an adapter of peft.
        d_vocab: As `from_pretrained` takes it.
    """
    model, adapter = unwrapped(model), None
    kind = type(model).__name__
    if not isinstance(model, nn.Module) or not hasattr(getattr(model, "config", None), "to_dict"):
        raise ArchitectureError(
            f"from_hf takes a transformers Whisper, and got a {kind}. For an openai-whisper model "
            "call from_openai, for names and paths from_pretrained."
        )
    if is_adapted(model):
        model, state_dict, adapter = taken_apart(model)
    else:
        state_dict = plain_state(model)
    values: dict[str, Any] = model.config.to_dict()
    if is_tower(values):
        return _tower_in_memory(values, state_dict, f"this {kind}", adapter, d_vocab)
    cfg = config_from_huggingface(values, "custom", f"this {kind}")
    if not has_decoder(state_dict):
        return _tower_in_memory(values, state_dict, f"this {kind}", adapter, d_vocab)
    check_plain(state_dict, f"this {kind}")
    held: Any = getattr(model, "generation_config", None)
    generation: dict[str, Any] = held.to_dict() if held is not None else {}
    stored: dict[str, StoredTensor] = {
        key: MemoryTensor(value) for key, value in state_dict.items()
    }
    loaded = LoadedWeights(
        cfg=cfg,
        tensors=_match(stored, cfg, f"this {kind}"),
        source=f"this {kind}",
        alignment_heads=heads_mask(generation.get("alignment_heads"), cfg, f"this {kind}"),
    )
    told = told_by(values, generation)
    own = own_vocabulary(None, cfg, told)
    loaded = as_it_says(add_known_heads(loaded), told, d_vocab, own)
    if adapter is not None:
        adapt(loaded, adapter.config, adapter.stored, adapter.config.source)
    return loaded


def _tower_in_memory(
    values: dict[str, Any],
    state_dict: dict[str, Any],
    source: str,
    adapter: MemoryAdapter | None,
    d_vocab: int | None,
) -> LoadedWeights:
    """Weights of a model in memory that is an encoder alone, or has one inside."""
    prefix = prefix_of(values)
    inside = {key: value for key, value in state_dict.items() if _is_inside(key, prefix)}
    check_plain(inside, source)
    stored: dict[str, StoredTensor] = {key: MemoryTensor(value) for key, value in inside.items()}
    loaded = as_it_says(encoder_alone(values, stored, "custom", source), None, d_vocab)
    if adapter is not None:
        adapt(loaded, adapter.config, adapter.stored, adapter.config.source)
    return loaded


def _is_inside(key: object, prefix: str) -> bool:
    """Whether a tensor is one of the part that is read: behind a prefix, or a part's name."""
    return isinstance(key, str) and (key.startswith(prefix) or f".{prefix}" in key)


def config_from_huggingface(
    values: dict[str, Any], model_name: str, source: str
) -> HookedWhisperConfig:
    """The config for a transformers `WhisperConfig`, given as a dictionary.

    Refuses other models, and a Whisper that computes something else: another
    activation, MLP width or embedding scale.
    """
    if values.get("model_type") != "whisper":
        raise ArchitectureError(
            f"{source} is of a {shown(values.get('model_type'))} model "
            f"{shown(values.get('architectures'))}; only transformers models with "
            "model_type 'whisper' can be loaded."
        )
    return config_of_sizes(values, SIZES, model_name, source)


def _read_tensors(folder: Path, prefix: str = "") -> dict[str, StoredTensor]:
    """Every tensor of the folder behind a prefix, from the first of its files of weights."""
    path = next((folder / name for name in WEIGHT_FILES if is_file(folder / name)), None)
    if path is None:
        raise SourceError(
            f"{folder} has none of {', '.join(WEIGHT_FILES)}; {names_in(folder)}. Save the model "
            "with save_pretrained."
        )
    stored = _read_shards(path, prefix) if path.suffix == ".json" else _read_file(path)
    stored = {key: value for key, value in stored.items() if _is_inside(key, prefix)}
    check_floats(stored, folder)
    return stored


def _read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file; an unembedding that is the embedding in memory too goes once."""
    if path.suffix == ".safetensors":
        return {**safetensors_tensors(path)}
    values = read_stored(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, and no tensors by name.")
    pair = (values.get(key) for key in (_UNEMBEDDING, "model.decoder.embed_tokens.weight"))
    if are_one(*pair):
        values = {key: value for key, value in values.items() if key != _UNEMBEDDING}
    return torch_tensors(path, values)


def _read_shards(index: Path, prefix: str) -> dict[str, StoredTensor]:
    """The tensors of every shard that has any behind a prefix."""
    stored: dict[str, StoredTensor] = {}
    weight_map = read_weight_map(index)
    needed = shards_of(weight_map, prefix)
    for file_name in needed:
        path = index.parent / file_name
        if not is_file(path):
            raise CheckpointError(
                f"{index} names the shard {shown(file_name)}, which is not in {index.parent}."
            )
        shard = _read_file(path)
        listed = {key for key, name in weight_map.items() if name == file_name}
        if listed - {_UNEMBEDDING} != set(shard) - {_UNEMBEDDING}:
            raise WeightNameError(
                f"{path} and {index.name} differ in {shown(sorted(listed ^ set(shard)))}. Download "
                "or save all files again."
            )
        stored |= shard
    return stored


def shards_of(weight_map: dict[str, str], prefix: str = "") -> list[str]:
    """The files that hold tensors behind a prefix."""
    return sorted({name for key, name in weight_map.items() if _is_inside(key, prefix)})


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file of a sharded checkpoint holds each tensor."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' of tensors to files.")
    ending = Path(index.name.removesuffix(".index.json")).suffix
    for file_name in weight_map.values():
        plain = isinstance(file_name, str) and Path(file_name).name == file_name
        if not plain or not file_name.endswith(ending) or "\\" in file_name:
            raise CheckpointError(
                f"{index} names the shard {shown(file_name)}; shards are {ending[1:]} "
                "files beside it."
            )
    return weight_map


def _match(
    stored: dict[str, StoredTensor], cfg: HookedWhisperConfig, source: str
) -> dict[str, StoredTensor]:
    """By our names, once names and shapes are right and the unembedding is the embedding."""
    prefix = "model." if any(key.startswith("model.") for key in stored) else ""
    rest = dict(stored)
    unembedding = rest.pop(_UNEMBEDDING, None)
    tensors = match_tensors(rest, cfg, lambda name: prefix + huggingface_name(name), source)
    embedding = tensors[_EMBEDDING]
    if unembedding is not None and not equal_tensors(unembedding, embedding):
        for name, stored_tensor in ((_UNEMBEDDING, unembedding), (_EMBEDDING, embedding)):
            cpu_values = stored_tensor.take(torch.device("cpu"), stored_tensor.dtype)
            check_finite(name, cpu_values, stored_tensor, source)
        raise ArchitectureError(
            f"'proj_out.weight' in {source} differs from '{prefix}decoder.embed_tokens.weight'; "
            "Whisper's unembedding is its embedding. Tie them before saving the model."
        )
    return tensors
