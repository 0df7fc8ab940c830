"""The sizes in transformers' configs of a Whisper, and what else must be as in Whisper."""

from collections.abc import Mapping
from typing import Any

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import ArchitectureError, ConfigError, shown
from hooked_whisper.weights.files import check_types

AUDIO_SIZES = {
    "num_mel_bins": "n_mels",
    "max_source_positions": "n_audio_ctx",
    "encoder_layers": "n_audio_layers",
    "encoder_attention_heads": "n_audio_heads",
    "d_model": "d_model",
}
SIZES = {
    **AUDIO_SIZES,
    "max_target_positions": "n_text_ctx",
    "decoder_layers": "n_text_layers",
    "decoder_attention_heads": "n_text_heads",
    "vocab_size": "d_vocab",
}
"""transformers' name of each size, and ours."""


def config_of_sizes(
    values: Mapping[str, Any], fields: Mapping[str, str], model_name: str, source: str
) -> HookedWhisperConfig:
    """The config of a whole Whisper, or of an encoder where only its sizes are asked for.

    Args:
        values: By transformers' names.
        fields: The names that must be there, and ours for them.
        model_name: What the config calls the model.
        source: What to call the values in errors.

    Raises:
        ArchitectureError: Sizes that are missing or those of no Whisper, or another activation,
            MLP width or embedding scale, with which something else is computed.
    """
    widths = ["encoder_ffn_dim", "decoder_ffn_dim"][: 2 if "d_vocab" in fields.values() else 1]
    needed = [*fields, *widths]
    if missing := [key for key in needed if key not in values]:
        raise ArchitectureError(f"{source} lacks {missing}; save the model with its whole config.")
    check_types(values, dict.fromkeys(needed, int), source)
    sizes: dict[str, Any] = {ours: values[theirs] for theirs, ours in fields.items()}
    absent: dict[str, Any] = {} if len(widths) == 2 else dict.fromkeys(_ABSENT, 0)
    try:
        cfg = HookedWhisperConfig(**sizes, **absent, model_name=model_name)
    except ConfigError as error:
        raise ArchitectureError(f"{source} is none of a Whisper: {str(error)[:300]}") from error
    fixed = {
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        **dict.fromkeys(widths, cfg.d_mlp),
    }
    if absent:
        del fixed["tie_word_embeddings"]
    for key, value in fixed.items():
        if values.get(key, value) != value:
            raise ArchitectureError(
                f"{key} in {source} is {shown(values[key])}; every Whisper of OpenAI has "
                f"{value!r}, and only that is computed here."
            )
    return cfg


_ABSENT = tuple(ours for theirs, ours in SIZES.items() if theirs not in AUDIO_SIZES)
