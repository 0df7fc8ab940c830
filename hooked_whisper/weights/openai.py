"""OpenAI's checkpoints: releases by name, `.pt` files, and models in memory."""

import os
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

from torch import nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    ConfigError,
    DownloadError,
    SourceError,
    shown,
)
from hooked_whisper.io import as_path
from hooked_whisper.weights.alignment_heads import release_heads
from hooked_whisper.weights.files import (
    MemoryTensor,
    StoredTensor,
    check_plain,
    check_types,
    kind_of,
)
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.rename import match_tensors, openai_name
from hooked_whisper.weights.torch_files import read_stored, torch_tensors
from hooked_whisper.weights.vocabulary import as_it_says
from hooked_whisper.weights.wrapped import plain_state, unwrapped

DIMS = (
    "n_mels",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_vocab",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
)
"""The fields of openai-whisper's `ModelDimensions`."""


def load_release(name: str, download_root: Any = None) -> LoadedWeights:
    """Weights of an OpenAI release, downloaded where they are not in the cache folder.

    Registry, download with its progress bar, SHA-256 check and cache folder
    are openai-whisper's own.

    Args:
        name: One of `hooked_whisper.config.release_names()`.
        download_root: Cache folder; `whisper` in `$XDG_CACHE_HOME` or
            `~/.cache` by default, which openai-whisper uses too.

    Raises:
        DownloadError: The file is not in the cache and cannot be downloaded whole.
    """
    path = download_release(name, download_root)
    loaded = read_openai_file(path, model_name=name)
    loaded.alignment_heads = release_heads(name, loaded.cfg)
    return loaded


def download_release(name: str, download_root: Any = None) -> Path:
    """The checkpoint file of an OpenAI release in the cache folder.

    Raises:
        DownloadError: No network, a server that refuses, a file that is
            broken off or altered, or a cache folder that cannot be written.
    """
    import whisper

    url = whisper._MODELS[name]
    root = as_path(download_root, SourceError) if download_root is not None else _cache_folder()
    target = root / os.path.basename(url)
    try:
        return Path(whisper._download(url, str(root), False))
    # TypeError: a server that does not tell the length, which openai-whisper needs.
    except (OSError, HTTPException, RuntimeError, TypeError, ValueError) as error:
        reason = _failure(error, target)
        raise DownloadError(
            f"the release {name!r} could not be downloaded from {url}: {reason}. Try again; "
            f"without a network, copy the file to {target}, give from_pretrained a path, or use "
            "'digits', which ships with this package."
        ) from error


def read_openai_file(
    path: Path, model_name: str | None = None, d_vocab: int | None = None
) -> LoadedWeights:
    """Weights of a checkpoint file with `dims` and `model_state_dict`, as OpenAI's are."""
    checkpoint = read_stored(path)
    parts = ("dims", "model_state_dict")
    if not isinstance(checkpoint, dict) or any(part not in checkpoint for part in parts):
        held = kind_of(checkpoint)
        if isinstance(checkpoint, dict):
            held = shown(list(checkpoint)[:8])
        raise CheckpointError(
            f"{path} is no OpenAI Whisper checkpoint: it must hold 'dims' and 'model_state_dict', "
            f"and holds {held}. For a Hugging Face model, give its folder."
        )
    state_dict = checkpoint["model_state_dict"]
    if not isinstance(state_dict, dict):
        raise CheckpointError(f"'model_state_dict' in {path} is a {kind_of(state_dict)}.")
    stored = torch_tensors(path, state_dict)
    cfg = config_from_dims(checkpoint["dims"], model_name or path.stem, f"'dims' of {path}")
    tensors = match_tensors(stored, cfg, openai_name, str(path))
    return as_it_says(LoadedWeights(cfg=cfg, tensors=tensors, source=str(path)), None, d_vocab)


def from_openai_state(model: Any) -> LoadedWeights:
    """Weights of an openai-whisper model in memory, also one in DistributedDataParallel or
    torch.compile; assigning them copies."""
    model = unwrapped(model)
    if not isinstance(model, nn.Module) or not hasattr(model, "dims"):
        raise ArchitectureError(
            f"from_openai takes a whisper.model.Whisper, and got a {type(model).__name__}. For a "
            "transformers model call from_hf, for names and paths from_pretrained."
        )
    source = f"this {type(model).__name__}"
    state_dict = plain_state(model)
    check_plain(state_dict, source)
    dims = {name: getattr(model.dims, name, None) for name in DIMS}
    cfg = config_from_dims(dims, "custom", f"'dims' of {source}")
    stored: dict[str, StoredTensor] = {
        key: MemoryTensor(value) for key, value in state_dict.items()
    }
    tensors = match_tensors(stored, cfg, openai_name, source)
    heads = getattr(model, "alignment_heads", None)
    return LoadedWeights(
        cfg=cfg,
        tensors=tensors,
        source=source,
        alignment_heads=None if heads is None else heads.to_dense().bool().cpu(),
    )


def config_from_dims(dims: Any, model_name: str, source: str) -> HookedWhisperConfig:
    """The config for OpenAI's `dims`; `source` is what to call these in errors."""
    if not isinstance(dims, dict) or set(dims) != set(DIMS):
        held = type(dims).__name__
        if isinstance(dims, dict):
            held = shown(sorted(map(str, dims)))
        raise ArchitectureError(f"{source} holds {held}; a Whisper's are {sorted(DIMS)}.")
    check_types(dims, dict.fromkeys(DIMS, int), source)
    try:
        return HookedWhisperConfig.from_dims(SimpleNamespace(**dims), model_name)
    except ConfigError as error:
        raise ArchitectureError(f"{source} are none of a Whisper: {str(error)[:300]}") from error


def _cache_folder() -> Path:
    default = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.getenv("XDG_CACHE_HOME", default)) / "whisper"


def _failure(error: Exception, target: Path) -> str:
    """Why a download failed, after a file with a wrong hash was removed."""
    if isinstance(error, HTTPError):
        error.close()
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, RuntimeError) and target.is_file():
        target.unlink()  # so that the next try starts afresh
        return "the file was broken off or altered, its SHA-256 hash is wrong"
    return str(getattr(error, "reason", error)) or type(error).__name__
