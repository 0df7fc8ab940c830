"""Weights written for others to read: OpenAI's checkpoint, and transformers' folder.

Source: `convert_openai_to_hf.py` in transformers; OpenAI's `load_model`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import SafetensorError
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import (
    ConfigError,
    NoDecoderError,
    SourceError,
    StoreWriteError,
    shown,
)
from hooked_whisper.io import make_folder, replacing, write_tensors
from hooked_whisper.weights.files import check_plain
from hooked_whisper.weights.huggingface import GENERATION_FILE
from hooked_whisper.weights.native import CONFIG_FILE, WEIGHTS_FILE, save_weights, separate
from hooked_whisper.weights.rename import (
    check_names,
    expected_shapes,
    huggingface_name,
    openai_name,
)
from hooked_whisper.weights.sizes import SIZES
from hooked_whisper.weights.tokenizer_files import tokenizer_files
from hooked_whisper.weights.vocabulary import NAMES, suppressed_tokens, whisper_tokenizer

FORMATS = ("hooked_whisper", "huggingface", "openai")
PREPROCESSOR_FILE = "preprocessor_config.json"


def write_weights(
    path: Any,
    cfg: HookedWhisperConfig,
    state_dict: Mapping[str, Tensor],
    alignment_heads: Bool[Tensor, "layer head"] | None,
    format: Any,
) -> None:
    """Write weights in one of `FORMATS`, as `HookedWhisper.save_pretrained` says."""
    if format == "openai":
        save_openai(path, cfg, state_dict)
    elif format == "huggingface":
        save_huggingface(path, cfg, state_dict, alignment_heads)
    elif format == "hooked_whisper":
        save_weights(path, cfg, state_dict, alignment_heads)
    else:
        raise ConfigError(f"format is {shown(format)}; it must be one of {FORMATS}.")


def save_openai(path: Any, cfg: HookedWhisperConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Write a checkpoint that `whisper.load_model` reads.

    It has no place for alignment heads: openai-whisper takes all heads of the later half of the
    layers, and `model.set_alignment_heads` sets others.

    Args:
        path: A new file, such as `model.pt`.
        cfg: The configuration of the weights.
        state_dict: Exactly the tensors that the config asks for.

    Raises:
        SourceError: Something is there already, or it is no path.
        ConfigError: Weights that were processed, which OpenAI's model cannot hold.
        StoreWriteError: The disk is full, or forbids it.
    """
    target = _new_path(path)
    _check(cfg, state_dict)
    tensors = {openai_name(name): value for name, value in separate(state_dict).items()}
    try:
        with replacing(target) as aside:
            torch.save({"dims": asdict(cfg.dims), "model_state_dict": tensors}, aside)
    except (OSError, RuntimeError) as error:
        raise _unwritten(target, error) from error


def save_huggingface(
    folder: Any,
    cfg: HookedWhisperConfig,
    state_dict: Mapping[str, Tensor],
    alignment_heads: Bool[Tensor, "layer head"] | None = None,
) -> None:
    """Write a folder that `WhisperForConditionalGeneration.from_pretrained` reads.

    With the configuration, what generation needs, the sizes of the mel, and the tokenizer's files
    where the vocabulary begins with one of OpenAI's: `WhisperProcessor` reads the folder too.

    Args:
        folder: New, or one without a model; made where it is missing.
        cfg: The configuration of the weights.
        state_dict: Exactly the tensors that the config asks for.
        alignment_heads: For word timing.

    Raises:
        SourceError: A model is there already, or it is no path.
        ConfigError: Weights that were processed, which transformers' model cannot hold.
        StoreWriteError: The disk is full, or forbids it.
    """
    target = _new_path(folder, CONFIG_FILE)
    _check(cfg, state_dict)
    values = separate(state_dict)
    tensors = {f"model.{huggingface_name(name)}": value for name, value in values.items()}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    files = {
        CONFIG_FILE: _config(cfg, dtype),
        GENERATION_FILE: _generation(cfg, alignment_heads),
        PREPROCESSOR_FILE: _preprocessor(cfg),
    }
    texts = {name: json.dumps(each, indent=2) + "\n" for name, each in files.items()}
    texts |= tokenizer_files(cfg)
    make_folder(target)
    try:
        with replacing(target / WEIGHTS_FILE) as aside:
            write_tensors(tensors, aside, {"format": "pt"})
        for name, text in texts.items():
            with replacing(target / name) as aside:
                aside.write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise _unwritten(target, error) from error


def _new_path(path: Any, inside: str = "") -> Path:
    """A path where nothing is lost by writing."""
    try:
        target = Path(path).expanduser()
        if "\0" in str(target):
            raise ValueError("it holds a null character")
        is_there = (target / inside).exists() or (bool(inside) and target.is_file())
        has_parent = bool(inside) or target.parent.is_dir()
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise SourceError(
            f"{shown(path)} is no path to write to ({shown(str(error))}). Name another one."
        ) from error
    if is_there or not has_parent:
        why = "exists already" if is_there else f"cannot be made: there is no {target.parent}"
        raise SourceError(f"{target / inside} {why}. Name a new path, or remove what is there.")
    return target


def _check(cfg: HookedWhisperConfig, state_dict: Mapping[str, Tensor]) -> None:
    check_plain(state_dict, "the model")
    if not cfg.has_decoder:
        raise NoDecoderError(
            "this model is an encoder alone, which other packages' Whisper cannot hold. Save it "
            "with save_pretrained(folder) in this package's format."
        )
    if cfg.key_bias or not cfg.tie_unembedding:
        raise ConfigError(
            "the weights were processed: keys have biases and the unembedding is no longer the "
            "embedding, which other packages' Whisper cannot hold. Save the model as it was "
            "loaded, or with save_pretrained(folder) in this package's format."
        )
    check_names(set(expected_shapes(cfg)), set(state_dict), "the model")


def _unwritten(target: Path, error: Exception) -> StoreWriteError:
    return StoreWriteError(
        f"the model cannot be written to {target}: {shown(str(error))}. Free some space or name "
        "another place."
    )


# What transformers wants to know


def _special_ids(cfg: HookedWhisperConfig) -> dict[str, int | None]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    if cfg.base_vocab not in NAMES:
        return {**dict.fromkeys(names), "decoder_start_token_id": 0}  # transformers needs one
    tokens = whisper_tokenizer(cfg)
    bos = tokens.eot if cfg.is_multilingual else tokens.sot
    return dict(zip(names, (bos, tokens.eot, tokens.eot, tokens.sot), strict=True))


def _config(cfg: HookedWhisperConfig, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dtype": dtype,
        **{theirs: getattr(cfg, ours) for theirs, ours in SIZES.items()},
        "num_hidden_layers": cfg.n_audio_layers,
        "encoder_ffn_dim": cfg.d_mlp,
        "decoder_ffn_dim": cfg.d_mlp,
        **_special_ids(cfg),
    }


def _generation(
    cfg: HookedWhisperConfig, alignment_heads: Bool[Tensor, "layer head"] | None
) -> dict[str, Any]:
    values: dict[str, Any] = {**_special_ids(cfg), "max_length": cfg.n_text_ctx}
    if alignment_heads is not None:
        values["alignment_heads"] = alignment_heads.nonzero().tolist()
    if cfg.base_vocab not in NAMES:
        return values
    tokens = whisper_tokenizer(cfg)
    values |= {
        "is_multilingual": cfg.is_multilingual,
        "no_timestamps_token_id": tokens.no_timestamps,
        "prev_sot_token_id": tokens.sot_prev,
        "max_initial_timestamp_index": 50,
        "return_timestamps": False,
        "suppress_tokens": suppressed_tokens(cfg),
        "begin_suppress_tokens": [*tokens.encode(" "), tokens.eot],
    }
    if cfg.is_multilingual:
        codes = zip(tokens.all_language_codes, tokens.all_language_tokens, strict=True)
        values["lang_to_id"] = {f"<|{code}|>": number for code, number in codes}
        values["task_to_id"] = {"transcribe": tokens.transcribe, "translate": tokens.translate}
    return values


def _preprocessor(cfg: HookedWhisperConfig) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": cfg.n_mels,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": cfg.n_samples // 16000,
        "n_samples": cfg.n_samples,
        "nb_max_frames": cfg.n_frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
