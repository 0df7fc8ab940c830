"""Adapters of peft: read, checked against the base, and put over it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    WeightNameError,
    WeightShapeError,
    shown,
)
from hooked_whisper.weights.adapter_changes import (
    Adapter,
    Added,
    Change,
    Instead,
    LowRank,
    MoreRows,
)
from hooked_whisper.weights.adapter_config import AdapterConfig, adapter_config
from hooked_whisper.weights.files import (
    MemoryTensor,
    StoredTensor,
    check_finite,
    check_floats,
    is_file,
    names_in,
    read_json,
)
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.pieces import safetensors_tensors
from hooked_whisper.weights.rename import expected_shapes, huggingface_name, sizes
from hooked_whisper.weights.torch_files import read_stored, torch_tensors

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Where peft writes an adapter's tensors, the first that is there."""

EMBEDDING = "decoder.token_embedding.weight"
UNEMBEDDING = "decoder.unembedding.weight"
_PROJECTION = "proj_out"
_Tensors = Mapping[str, StoredTensor]
_PARTS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "token_adapter.trainable_tokens_delta",
)
_HEADS = re.compile(r"(classifier|projector)\.(weight|bias)|layer_weights")
"""What `WhisperForAudioClassification` has behind its encoder."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of peft."""
    return any(is_file(folder / name) for name in (ADAPTER_CONFIG, *ADAPTER_FILES))


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The config of an adapter's folder."""
    path = folder / ADAPTER_CONFIG
    if not is_file(path):
        raise CheckpointError(
            f"{folder} has an adapter's weights and no {ADAPTER_CONFIG}; {names_in(folder)}. Save "
            "the adapter with peft's save_pretrained."
        )
    return adapter_config(read_json(path), str(path))


def read_adapter_tensors(folder: Path) -> dict[str, StoredTensor]:
    """An adapter's tensors by their names in its file."""
    path = next((folder / name for name in ADAPTER_FILES if is_file(folder / name)), None)
    if path is None:
        raise CheckpointError(
            f"{folder} has none of {', '.join(ADAPTER_FILES)} beside its {ADAPTER_CONFIG}; "
            f"{names_in(folder)}. Download or save the adapter again."
        )
    if path.suffix == ".safetensors":
        found: dict[str, StoredTensor] = {**safetensors_tensors(path)}
    else:
        values = read_stored(path)
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} holds a {type(values).__name__}, and no tensors.")
        found = torch_tensors(path, values)
    check_floats(found, path)
    return found


def adapt(
    loaded: LoadedWeights, config: AdapterConfig, stored: Mapping[str, StoredTensor], source: str
) -> LoadedWeights:
    """Weights of a base with what an adapter does to them, once the two fit together.

    Args:
        loaded: The base.
        config: The adapter's.
        stored: Its tensors, by the names that peft saves them under.
        source: What to call it in errors.

    Raises:
        WeightNameError: Tensors of modules that the base does not have or the config does not
            name, or some that it names are missing.
        WeightShapeError: Tensors of other shapes than base and ranks make.
    """
    if loaded.cfg.key_bias or not loaded.cfg.tie_unembedding:
        raise ArchitectureError(
            f"the base {loaded.source} has processed weights, to which no adapter can be added. "
            "Take the base as it was released."
        )
    found = _sorted(stored, source)
    plain = found.pop("")
    _resize(loaded, plain)
    names = _Names.of(loaded.cfg, stored, config)
    adapter = Adapter(source)
    _put_plain(adapter, plain, names)
    for module, parts in found.items():
        if "token_adapter.trainable_tokens_delta" in parts:
            _put_rows(adapter, module, parts, names)
        else:
            _put_low_rank(adapter, module, parts, names)
    missing = (names.targets() - set(found)) | (names.saved() - set(plain))
    if missing:
        raise WeightNameError(
            f"{source} lacks {len(missing)} modules that its config names: "
            f"{shown(sorted(missing), 100)}. It was cut short, or is of another base than "
            f"{loaded.source}: give the one it was trained on as base=."
        )
    if not adapter.changes:
        raise WeightNameError(f"{source} changes nothing: it has no tensors of LoRA.")
    _untie(loaded, adapter)
    loaded.adapter = adapter
    return loaded


@dataclass(frozen=True)
class _Names:
    """The modules and tensors of the base, as transformers calls them behind `model.`, and what an
    adapter's config says of them."""

    tensors: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    prefix: str
    config: AdapterConfig

    @classmethod
    def of(
        cls, cfg: HookedWhisperConfig, stored: Mapping[str, StoredTensor], config: AdapterConfig
    ) -> "_Names":
        tensors = {huggingface_name(name): name for name in expected_shapes(cfg)}
        shapes = {name: sizes(shape, cfg) for name, shape in expected_shapes(cfg).items()}
        if EMBEDDING in shapes:
            tensors[f"{_PROJECTION}.weight"] = UNEMBEDDING
            shapes[UNEMBEDDING] = shapes[EMBEDDING]
        inside = any(key.startswith("base_model.model.model.") for key in stored)
        return cls(tensors, shapes, "model." if inside else "", config)

    def modules(self) -> dict[str, tuple[int, ...]]:
        """Every module that a LoRA can change, with the shape of its weight."""
        return {
            key.removesuffix(".weight"): self.shapes[name]
            for key, name in self.tensors.items()
            if key.endswith(".weight") and "embed_positions" not in key
            if len(self.shapes[name]) > 1
        }

    def full(self, module: str) -> str:
        """A module's name as the config's patterns see it."""
        return module if module == _PROJECTION else self.prefix + module

    def is_target(self, module: str, shape: tuple[int, ...]) -> bool:
        """Whether the config wants two matrices for a module."""
        return self.config.is_target(self.full(module), _is_linear(module, shape))

    def targets(self) -> set[str]:
        """The modules that the config wants two matrices for."""
        return {
            module
            for module, shape in self.modules().items()
            if self.is_target(module, shape)
            if self.prefix or module != _PROJECTION
        }

    def saved(self) -> set[str]:
        """The tensors that the config says are whole in the adapter."""
        if not self.config.saved:
            return set()
        return {
            key
            for key in self.tensors
            if self.config.is_saved(self.full(key.rpartition(".")[0]))
            if key != "encoder.embed_positions.weight"
            if self.prefix or not key.startswith(_PROJECTION)
        }

    def check(
        self, key: str, stored: StoredTensor, shape: tuple[int, ...], why: str = ""
    ) -> Tensor:
        """A tensor's values in float32, once it has the right shape."""
        if stored.shape != shape:
            raise WeightShapeError(
                f"{key!r} in {self.config.source} is {stored.shape}; the base and the adapter's "
                f"config make it {shape}{why}."
            )
        value = stored.take(torch.device("cpu"), torch.float32)
        check_finite(key, value, stored, self.config.source)
        return value


def _is_linear(module: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and not module.rpartition(".")[2].startswith("embed_")


def _sorted(stored: Mapping[str, StoredTensor], source: str) -> dict[str, dict[str, StoredTensor]]:
    """Tensors of LoRA by module and part; what is no part of one is under the empty name."""
    found: dict[str, dict[str, StoredTensor]] = {"": {}}
    for key, value in stored.items():
        name = key.removeprefix("base_model.model.").removeprefix("model.")
        for noise in ("base_layer.", "modules_to_save.", "original_module."):
            name = name.replace(f".{noise}", ".")
        part = next((part for part in _PARTS if name.endswith(f".{part}")), None)
        module = "" if part is None else name.removesuffix(f".{part}")
        held = found.setdefault(module, {})
        if (part or name) in held:
            raise WeightNameError(f"{source} holds {shown(name)} twice.")
        held[part or name] = value
    return found


def _resize(loaded: LoadedWeights, plain: dict[str, StoredTensor]) -> None:
    """Bring the base's tokens to the adapter's number of them; those that are new are its own."""
    keys = ("decoder.embed_tokens.weight", f"{_PROJECTION}.weight")
    whole = next((plain[key] for key in keys if key in plain), None)
    held = loaded.tensors.get(EMBEDDING)
    if whole is None or held is None or whole.shape[:1] == held.shape[:1]:
        return
    if len(whole.shape) == 2 and whole.shape[1] == loaded.cfg.d_model and whole.shape[0]:
        loaded.tensors[EMBEDDING] = MoreRows(held, whole)
        loaded.cfg = replace(loaded.cfg, d_vocab=whole.shape[0])


def _put_plain(adapter: Adapter, plain: _Tensors, names: _Names) -> None:
    """Tensors that are whole in the adapter: trained ones, biases, a resized embedding."""
    for key, stored in plain.items():
        if _HEADS.fullmatch(key) and EMBEDDING not in names.shapes:
            continue
        name = names.tensors.get(key)
        module, _, leaf = key.rpartition(".")
        wanted = (
            names.config.is_saved(names.full(module))
            or (leaf == "bias" and names.config.bias != "none")
            or name in (EMBEDDING, UNEMBEDDING)
        )
        if name is None or not wanted:
            raise WeightNameError(
                f"{adapter.source} holds {shown(key)}, which its config does not name or the base "
                "does not have. Give the base that it was trained on as base=."
            )
        adapter.then(name, Instead(names.check(key, stored, names.shapes[name])))


def _put_rows(adapter: Adapter, module: str, parts: _Tensors, names: _Names) -> None:
    """Rows of the token embedding, and so of the unembedding, that were trained."""
    shape, ids = names.modules().get(module), []
    for pattern, listed in names.config.token_ids.items():
        if module == pattern or module.endswith(f".{pattern}"):
            ids = listed
    if shape is None or names.tensors[f"{module}.weight"] != EMBEDDING or len(parts) > 1:
        raise WeightNameError(f"{adapter.source} has rows of {shown(module)}, which is none.")
    if not ids or not 0 <= min(ids) <= max(ids) < shape[0]:
        raise CheckpointError(
            f"trainable_token_indices in {names.config.source} is {shown(ids, 60)}; the base has "
            f"tokens 0 to {shape[0] - 1}."
        )
    key = "token_adapter.trainable_tokens_delta"
    value = names.check(f"{module}.{key}", parts[key], (len(ids), shape[1]))
    adapter.then(EMBEDDING, Instead(value, ids))


def _put_low_rank(adapter: Adapter, module: str, parts: _Tensors, names: _Names) -> None:
    """The two matrices of a module, its length with DoRA, and its bias."""
    shape, config = names.modules().get(module), names.config
    if shape is None or not names.is_target(module, shape):
        raise WeightNameError(
            f"{adapter.source} changes {shown(module)}, which "
            + ("the base does not have" if shape is None else "its config does not name")
            + ". Give the base that it was trained on as base=, with the adapter's own config."
        )
    rank = config.rank(names.full(module))
    is_embedding = not _is_linear(module, shape) and len(shape) == 2
    made: dict[str, tuple[int, ...]]
    if is_embedding:
        made = {"lora_embedding_A": (rank, shape[0]), "lora_embedding_B": (shape[1], rank)}
    else:
        ones = (1,) * len(shape[2:])
        made = {"lora_A.weight": (rank, *shape[1:]), "lora_B.weight": (shape[0], rank, *ones)}
    if config.dora:
        length = shape[1] if is_embedding else shape[0]
        made["lora_magnitude_vector"] = (length,) if len(shape) == 2 else (1, length, 1)
    if config.lora_bias:
        made["lora_B.bias"] = shape[:1]
    if set(made) != set(parts):
        raise WeightNameError(
            f"{adapter.source} has {shown(sorted(parts), 100)} of {module}, and its config makes "
            f"{shown(sorted(made), 100)}. It was cut short, or the config is of another adapter."
        )
    why = f", with rank {rank}"
    values = {part: names.check(f"{module}.{part}", parts[part], made[part], why) for part in made}
    down, up = list(values.values())[:2]
    change = LowRank(
        down,
        up,
        config.scaling(names.full(module)),
        values.get("lora_magnitude_vector"),
        is_embedding,
    )
    adapter.then(names.tensors[f"{module}.weight"], change)
    if "lora_B.bias" in values:
        bias = names.tensors.get(f"{module}.bias")
        if bias is None:
            raise WeightNameError(f"{adapter.source} has a bias of {module}, which has none.")
        adapter.then(bias, Added(config.scaling(names.full(module)) * values["lora_B.bias"]))


def _untie(loaded: LoadedWeights, adapter: Adapter) -> None:
    """Give the unembedding weights of its own where the adapter changes one of the two alone."""
    changes = adapter.changes
    embedding, unembedding = changes.get(EMBEDDING), changes.get(UNEMBEDDING)
    if unembedding is None and (embedding is None or _is_rows(embedding)):
        return
    if (
        isinstance(embedding, Instead)
        and isinstance(unembedding, Instead)
        and torch.equal(embedding.value, unembedding.value)
    ):
        del changes[UNEMBEDDING]
        return
    n_tokens = loaded.cfg.d_vocab
    loaded.cfg = replace(loaded.cfg, tie_unembedding=False)
    loaded.tensors[UNEMBEDDING] = loaded.tensors[EMBEDDING]
    loaded.tensors["decoder.unembedding.bias"] = MemoryTensor(torch.zeros(n_tokens), owned=True)


def _is_rows(change: Change) -> bool:
    return isinstance(change, Instead) and change.rows is not None
