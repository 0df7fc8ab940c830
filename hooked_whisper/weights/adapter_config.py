"""What an adapter of peft says of itself: `adapter_config.json`, and which modules it means.

Source: `LoraConfig`, `check_target_module_exists` and `get_pattern_key` of peft 0.21.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hooked_whisper.errors import ArchitectureError, CheckpointError, check_number, shown

_MERGE = (
    "Merge it with peft: call merge_and_unload() on the PeftModel, save_pretrained what that "
    "returns, and load that folder."
)
_REFUSED = (
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""What makes LoRA compute something else than a sum of two weights."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` that take the adapter's first values out of the base."""
_LISTS = ("modules_to_save", "exclude_modules", "target_modules", "layers_pattern")
_BIASES = ("none", "all", "lora_only")
_LINEAR = "all-linear"
_MOST_RANK = 10**6
_SECONDS = 2.0
"""Longest that a pattern may look at one name."""


@dataclass(frozen=True)
class AdapterConfig:
    """What of an adapter's config decides what it computes."""

    source: str
    """What to call it in errors."""
    base: str | None
    r: int
    alpha: float
    targets: list[str] | str
    excluded: list[str] | str = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    """Modules that are whole in the adapter, `modules_to_save`."""
    layers: list[int] | None = None
    layers_pattern: list[str] = field(default_factory=list)
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    token_ids: Mapping[str, list[int]] = field(default_factory=dict)
    """Rows of embeddings that the adapter replaces, by module."""
    bias: str = "none"
    lora_bias: bool = False
    rslora: bool = False
    dora: bool = False

    def rank(self, module: str) -> int:
        """The inner width of a module's change."""
        return self.rank_pattern.get(self._key(self.rank_pattern, module), self.r)

    def scaling(self, module: str) -> float:
        """What the product of a module's two matrices is multiplied by."""
        alpha = self.alpha_pattern.get(self._key(self.alpha_pattern, module), self.alpha)
        rank = self.rank(module)
        return alpha / (rank**0.5 if self.rslora else rank)

    def is_saved(self, module: str) -> bool:
        """Whether a module, or what it is a part of, is one of `modules_to_save`.

        As in peft a name means all that end so: `layer_norm` is `self_attn_layer_norm` too.
        """
        return any(whole.endswith(name) for whole in _wholes(module) for name in self.saved)

    def is_target(self, module: str, is_linear: bool) -> bool:
        """Whether a module gets two matrices."""
        if isinstance(self.excluded, str):
            if self._matches(self.excluded, module):
                return False
        elif _ends_with(module, self.excluded):
            return False
        if any(_ends_with(whole, self.saved) for whole in _wholes(module)):
            return False
        if isinstance(self.targets, str):
            if self.targets.lower() == _LINEAR:
                return is_linear and module != "proj_out"
            return self._matches(self.targets, module)
        return _ends_with(module, self.targets) and self._is_in_layers(module)

    def _is_in_layers(self, module: str) -> bool:
        if not self.layers:
            return True
        parts = module.split(".")
        numbers = [n for n, part in enumerate(parts) if part.isdecimal() and n >= 2]
        if self.layers_pattern:
            numbers = [n for n in numbers if _ends_with(".".join(parts[:n]), self.layers_pattern)]
        return bool(numbers) and int(parts[numbers[0]]) in self.layers

    def _key(self, patterns: Mapping[str, Any], module: str) -> str:
        """The first pattern that fits a module, or the module's own name."""
        for pattern in patterns:
            if self._matches(rf"(.*\.)?({pattern})", module):
                return pattern
        return module

    def _matches(self, pattern: str, module: str) -> bool:
        import regex

        try:
            return regex.fullmatch(pattern, module, timeout=_SECONDS) is not None
        except (regex.error, TimeoutError, RecursionError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{self.source} has the pattern {shown(pattern, 60)}, which cannot be used "
                f"({shown(str(error) or type(error).__name__, 60)})."
            ) from error


def adapter_config(values: Mapping[str, Any], source: str) -> AdapterConfig:
    """An adapter's config, once it is one that can be computed here.

    Raises:
        ArchitectureError: Another kind of adapter than LoRA, or one that computes more.
        CheckpointError: A value that none of its kind can have.
    """
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        raise ArchitectureError(
            f"{source} is of the kind {shown(kind, 40)}; LoRA, also DoRA and rsLoRA, can be "
            f"loaded. {_MERGE}"
        )
    for key in _REFUSED:
        if values.get(key):
            raise ArchitectureError(
                f"{source} has {key} {shown(values[key], 60)}, which is not computed here. {_MERGE}"
            )
    start = str(values.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        raise ArchitectureError(
            f"init_lora_weights in {source} is {shown(start, 40)}: the adapter is over another "
            f"base than the one it names. {_MERGE}"
        )
    lists = {key: _texts(values.get(key), key, source) for key in _LISTS}
    rank = _rank(values.get("r", 8), "r", source)
    alpha = _number(values.get("lora_alpha", 8), "lora_alpha", source)
    bias = values.get("bias", "none")
    if bias not in _BIASES:
        raise CheckpointError(f"bias in {source} is {shown(bias)}; it can be one of {_BIASES}.")
    saved, pattern = lists["modules_to_save"], lists["layers_pattern"]
    base = values.get("base_model_name_or_path")
    return AdapterConfig(
        source=source,
        base=base if isinstance(base, str) and base else None,
        r=rank,
        alpha=alpha,
        targets=lists["target_modules"],
        excluded=lists["exclude_modules"],
        saved=[saved] if isinstance(saved, str) else saved,
        layers=_layers(values.get("layers_to_transform"), source),
        layers_pattern=[pattern] if isinstance(pattern, str) else pattern,
        rank_pattern={
            key: _rank(each, "rank_pattern", source)
            for key, each in _by_text(values.get("rank_pattern"), "rank_pattern", source).items()
        },
        alpha_pattern={
            key: _number(each, "alpha_pattern", source)
            for key, each in _by_text(values.get("alpha_pattern"), "alpha_pattern", source).items()
        },
        token_ids=_token_ids(values.get("trainable_token_indices"), source),
        bias=bias,
        lora_bias=_switch(values, "lora_bias", source),
        rslora=_switch(values, "use_rslora", source),
        dora=_switch(values, "use_dora", source),
    )


def _wholes(module: str) -> list[str]:
    """A module and all that it is a part of."""
    parts = module.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _ends_with(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _wrong(key: str, value: object, source: str, wanted: str) -> CheckpointError:
    return CheckpointError(f"{key} in {source} is {shown(value, 60)}; it must be {wanted}.")


def _texts(value: Any, key: str, source: str) -> list[str] | str:
    if value is None or value == "":
        return []
    if isinstance(value, set | tuple):  # of a config in memory
        value = sorted(value, key=str)
    if isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    ):
        return value
    raise _wrong(key, value, source, "a list of names")


def _switch(values: Mapping[str, Any], key: str, source: str) -> bool:
    value = values.get(key) or False
    if not isinstance(value, bool):
        raise _wrong(key, value, source, "true or false")
    return value


def _number(value: Any, key: str, source: str) -> float:
    check_number(f"{key} in {source}", value, CheckpointError)
    return float(value)


def _rank(value: Any, key: str, source: str) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_RANK:
        raise _wrong(key, value, source, "an integer of at least 1")
    return value


def _by_text(value: Any, key: str, source: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _wrong(key, value, source, "an object of patterns")
    return value


def _layers(value: Any, source: str) -> list[int] | None:
    if value is None:
        return None
    layers = value if isinstance(value, list | tuple) else [value]
    if not all(type(layer) is int for layer in layers):
        raise _wrong("layers_to_transform", value, source, "a list of integers")
    return list(layers)


def _token_ids(value: Any, source: str) -> Mapping[str, list[int]]:
    if not value:
        return {}
    by_module = value if isinstance(value, dict) else {"embed_tokens": value}
    for ids in by_module.values():
        whole = isinstance(ids, list | tuple) and all(type(each) is int for each in ids)
        if not whole or len(set(ids)) < len(ids):
            raise _wrong("trainable_token_indices", value, source, "a list of different token ids")
    return {str(module): list(ids) for module, ids in by_module.items()}
