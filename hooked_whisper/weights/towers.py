"""Whisper's encoder alone: bare, in front of a classifier, or inside a larger model.

| model of transformers | where the encoder is |
|---|---|
| `WhisperEncoder` | the names as they are |
| `WhisperForAudioClassification` | `encoder.`; what is behind it is left out |
| `Qwen2AudioEncoder`, `VoxtralEncoder` | the names as they are |
| `Qwen2AudioForConditionalGeneration`, `VoxtralForConditionalGeneration` | `audio_tower.` |

Source: their `modeling_*.py` in transformers.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from hooked_whisper.errors import ArchitectureError, WeightNameError, shown
from hooked_whisper.weights.files import StoredTensor
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.rename import huggingface_name, match_tensors
from hooked_whisper.weights.sizes import AUDIO_SIZES, config_of_sizes

_TOWER = "audio_tower."
_WHOLE = {"qwen2_audio": "qwen2_audio_encoder", "voxtral": "voxtral_encoder"}
"""Models with an encoder inside, and what that is called."""
_DEFAULTS: dict[str, Any] = {
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
}
"""Of both kinds of towers, for what a config leaves out."""
_OTHER_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
}
"""What Voxtral's config calls the sizes."""
_BEHIND = re.compile(r"(model\.)?((projector|classifier)\.(weight|bias)|layer_weights)")
"""What `WhisperForAudioClassification` has behind its encoder."""
_FIRST = "conv1.weight"


def is_tower(values: Mapping[str, Any]) -> bool:
    """Whether a config is of a model that has only Whisper's encoder, or one inside."""
    kind = values.get("model_type")
    return isinstance(kind, str) and (kind in _WHOLE or kind in _WHOLE.values())


def prefix_of(values: Mapping[str, Any]) -> str:
    """What the names of the encoder's tensors begin with, where others are beside them."""
    return _TOWER if is_tower(values) and values["model_type"] in _WHOLE else ""


def has_decoder(names: Iterable[str]) -> bool:
    """Whether any of a Whisper's tensors is of a decoder."""
    return any("decoder." in str(name) or str(name) == "proj_out.weight" for name in names)


def told_of_absence(values: Mapping[str, Any], source: str) -> None:
    """Warn where a config speaks of a whole Whisper, and no decoder is there."""
    said = values.get("architectures")
    if said and isinstance(said, list) and said[0] in _SPOKEN_OF:
        warnings.warn(
            f"{source} is of a {said[0]}, and the weights have no decoder: what is loaded is an "
            "encoder alone.",
            stacklevel=2,
        )


_SPOKEN_OF = ("WhisperForConditionalGeneration", "WhisperModel")


def encoder_alone(
    values: Mapping[str, Any], stored: Mapping[str, StoredTensor], model_name: str, source: str
) -> LoadedWeights:
    """Weights of an encoder, as a Whisper that has no decoder.

    Args:
        values: The config of the model.
        stored: Its tensors, or those of the encoder inside.
        model_name: What the config calls the model.
        source: What to call it in errors.

    Raises:
        ArchitectureError: A config of something else.
        WeightNameError: Tensors are missing or unexpected.
        WeightShapeError: A tensor has another shape than the config gives.
    """
    inner = _audio_values(values, source)
    cfg = config_of_sizes(inner, AUDIO_SIZES, model_name, source)
    rest = {key: value for key, value in stored.items() if not _BEHIND.fullmatch(key)}
    first = [key for key in rest if key == _FIRST or key.endswith(f".{_FIRST}")]
    if len(first) != 1:
        raise WeightNameError(
            f"{source} has {len(first)} tensors {_FIRST!r} of an encoder, and must have one; it "
            f"holds {shown(sorted(rest)[:6], 120)}."
        )
    prefix = first[0].removesuffix(_FIRST)
    tensors = match_tensors(
        rest,
        cfg,
        lambda name: prefix + huggingface_name(name).removeprefix("encoder."),
        source,
    )
    return LoadedWeights(cfg=cfg, tensors=tensors, source=source)


def _audio_values(values: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The sizes of the encoder, by transformers' names in Whisper."""
    kind = values.get("model_type")
    if kind in _WHOLE:
        audio = values.get("audio_config")
        if not isinstance(audio, dict) or audio.get("model_type", _WHOLE[kind]) != _WHOLE[kind]:
            raise ArchitectureError(
                f"audio_config in {source} is {shown(audio, 60)}; that of a {kind} model must be "
                f"of the type {_WHOLE[kind]!r}."
            )
        values = audio
    elif kind not in _WHOLE.values():
        return values
    return {**_DEFAULTS, **{_OTHER_NAMES.get(key, key): each for key, each in values.items()}}
