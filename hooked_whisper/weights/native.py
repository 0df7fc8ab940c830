"""This package's own folders: `config.json` and `model.safetensors`.

`config.json` holds `format`, `version`, the `config` of HookedWhisperConfig,
the `alignment_heads` as pairs of layer and head, and the names that are
`omitted` from the weights. `model.safetensors` holds the tensors by the names
of the model's state dict, and in its header `xxh3_128`, the checksum of them and
of the config's sizes and switches; older files have none. An embedding of which
few rows are used may be stored as `{name}.rows` with `{name}.row_ids`: the last
of the rows stands for every id that is not listed.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import xxhash
from jaxtyping import Bool
from safetensors import SafetensorError
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    ConfigError,
    SourceError,
    StoreWriteError,
    WeightShapeError,
    shown,
)
from hooked_whisper.io import as_path, bytes_of, make_folder, replacing, write_tensors
from hooked_whisper.weights.files import (
    FLOAT_DTYPES,
    RowsTensor,
    StoredTensor,
    check_floats,
    check_plain,
    check_types,
    is_file,
    read_json,
)
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.pieces import RawTensor, safetensors_tensors
from hooked_whisper.weights.rename import check_names, expected_shapes, match_tensors

FORMAT = "hooked_whisper"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKSUM = "xxh3_128"

MAY_BE_OMITTED = ("encoder.positional_embedding",)
"""What is computed where a file leaves it out."""
_MOST_OMITTED_POSITIONS = 1500
"""Audio positions of the longest window that may be computed anew: Whisper's."""
_MOST_UNFOLDED_ROWS = 51866
"""Rows of the largest embedding that few rows may stand for: Whisper's."""


def save_weights(
    folder: Any,
    cfg: HookedWhisperConfig,
    state_dict: Mapping[str, Tensor],
    alignment_heads: Bool[Tensor, "layer head"] | None = None,
) -> None:
    """Write a model's weights and config into a folder, from which they load again.

    Both files are written beside their places and then moved there, so that
    an interruption leaves no half-written file under either name.

    Args:
        folder: Made where it is missing. What an earlier save left is replaced.
        state_dict: Exactly the tensors that the config asks for.

    Raises:
        SourceError: The folder is a file or no path, or holds another package's model.
        StoreWriteError: The disk is full, or forbids it; what was there stays.
        WeightNameError: Tensors are missing or unexpected.
        CheckpointError: A tensor is not plain floating point.
    """
    target = _as_target(folder)
    check_plain(state_dict, "the model")
    check_names(set(expected_shapes(cfg)), set(state_dict), "the model")
    heads = None if alignment_heads is None else alignment_heads.to_dense().nonzero().tolist()
    values = {
        "format": FORMAT,
        "version": VERSION,
        "config": cfg.to_dict(),
        "alignment_heads": heads,
        "omitted": [],
    }
    tensors = separate(state_dict)
    make_folder(target)
    try:
        with replacing(target / CONFIG_FILE) as config, replacing(target / WEIGHTS_FILE) as weights:
            config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            write_tensors(tensors, weights, {"format": "pt", CHECKSUM: _checksum(cfg, tensors)})
    except (OSError, SafetensorError) as error:
        raise StoreWriteError(
            f"the model cannot be written into {target}: {shown(str(error))}. Free some space or "
            "name another folder; what an earlier save left there is as it was."
        ) from error


def read_native_folder(folder: Path) -> LoadedWeights:
    """Weights that `save_weights` wrote, or the shipped model in the same format."""
    path = folder / CONFIG_FILE
    values = read_json(path)
    if type(values.get("version")) is not int or values["version"] != VERSION:
        raise CheckpointError(
            f"{path} has version {shown(values.get('version'))} of this package's format; this "
            f"release reads version {VERSION}. Upgrade hooked_whisper."
        )
    config = values.get("config")
    if not isinstance(config, dict):
        raise ArchitectureError(
            f"{path} holds {shown(config)} as the config; it must be an object."
        )
    types = {field.name: field.type for field in fields(HookedWhisperConfig)}
    del types["vocabulary"]  # which looks at its own values
    check_types(config, types, path)
    try:
        cfg = HookedWhisperConfig.from_dict(config)
    except ConfigError as error:
        raise ArchitectureError(
            f"{path} holds no config of a Whisper: {str(error)[:300]}"
        ) from error
    omitted = values.get("omitted") or []
    if not isinstance(omitted, list) or any(name not in MAY_BE_OMITTED for name in omitted):
        raise CheckpointError(
            f"{path} omits {shown(omitted)}; only {list(MAY_BE_OMITTED)} can be computed anew."
        )
    check_omitted(omitted, cfg, path)
    weights = folder / WEIGHTS_FILE
    if not is_file(weights):
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE} beside its config.json.")
    header: dict[str, str] = {}
    found = safetensors_tensors(weights, header)
    stored = _unfold_rows(dict(found), cfg, weights)
    tensors = match_tensors(stored, cfg, lambda name: name, str(weights), omitted)
    if header.get(CHECKSUM) not in (None, _checksum(cfg, found)):
        raise CheckpointError(
            f"{weights} is damaged, or is not of the {CONFIG_FILE} beside it: its checksum is of "
            "other tensors or sizes. Copy both files again, or save the model again."
        )
    return LoadedWeights(
        cfg=cfg,
        tensors=tensors,
        source=str(weights),
        alignment_heads=heads_mask(values.get("alignment_heads"), cfg, path),
        omitted=tuple(omitted),
    )


def _checksum(cfg: HookedWhisperConfig, tensors: Mapping[str, Tensor | RawTensor]) -> str:
    """Of all that decides what the model computes; hooks' switches and its name do not."""
    values = cfg.to_dict()
    plain = {name: values[name] for name in values if not name.startswith(("use_", "model_name"))}
    state = xxhash.xxh3_128(json.dumps(plain, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        pieces = [value] if isinstance(value, Tensor) else (piece for _, piece in value.pieces())
        for piece in pieces:
            state.update(bytes_of(piece.contiguous()))
    return state.hexdigest()


def check_omitted(omitted: Sequence[str], cfg: HookedWhisperConfig, path: Path) -> None:
    """Refuse to compute more positions than a Whisper has, whatever a config says."""
    if omitted and cfg.n_audio_ctx > _MOST_OMITTED_POSITIONS:
        raise CheckpointError(
            f"{path} omits {omitted[0]!r} and has n_audio_ctx {cfg.n_audio_ctx}; positions are "
            f"computed anew up to {_MOST_OMITTED_POSITIONS}. Save the model with all its tensors."
        )


def heads_mask(
    pairs: Any, cfg: HookedWhisperConfig, path: object
) -> Bool[Tensor, "layer head"] | None:
    """Alignment heads as a mask, from `[[layer, head], ...]`; None where none is left.

    Only word timing needs them, so that what is no head of this model is left
    out with a warning: a distilled model often lists its teacher's.
    """
    if pairs is None:
        return None
    mask = torch.zeros(cfg.n_text_layers, cfg.n_text_heads, dtype=torch.bool)
    stale = []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if (
            isinstance(pair, (list, tuple))
            and len(pair) == 2
            and all(type(number) is int for number in pair)
            and 0 <= pair[0] < cfg.n_text_layers
            and 0 <= pair[1] < cfg.n_text_heads
        ):
            mask[pair[0], pair[1]] = True
        else:
            stale.append(pair)
    if stale:
        warnings.warn(
            f"{path} names {shown(stale)} as alignment heads, which this model does not have "
            f"(layers 0 to {cfg.n_text_layers - 1}, heads 0 to {cfg.n_text_heads - 1}); they are "
            "left out. Word timing uses the others, or the heads of the later half of the layers: "
            "set model.alignment_heads for better ones.",
            stacklevel=2,
        )
    return mask if not stale or mask.any() else None


def separate(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor contiguous, on the CPU and in memory of its own, as safetensors needs them."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in state_dict.items():
        tensor = value.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return tensors


def _as_target(folder: Any) -> Path:
    """The folder to write into, after a look at what is there."""
    target = as_path(folder, SourceError)
    try:
        is_there, is_folder = target.exists(), target.is_dir()
        has_config = (target / CONFIG_FILE).exists()
    except OSError as error:
        raise SourceError(
            f"{shown(folder)} is no folder to write into ({shown(str(error))}). Name another one."
        ) from error
    if is_there and not is_folder:
        raise SourceError(f"{target} is a file; save_pretrained writes a folder. Name another one.")
    if has_config and read_json(target / CONFIG_FILE).get("format") != FORMAT:
        raise SourceError(
            f"{target / CONFIG_FILE} belongs to another package's model and would be overwritten. "
            "Name a new or empty folder."
        )
    return target


def _unfold_rows(
    stored: dict[str, StoredTensor], cfg: HookedWhisperConfig, path: Path
) -> dict[str, StoredTensor]:
    """The token embedding as a whole, where only its used rows are stored."""
    name = "decoder.token_embedding.weight"
    rows, row_ids = (stored.get(f"decoder.token_embedding.{part}") for part in ("rows", "row_ids"))
    if rows is not None and row_ids is not None:
        stored = {key: tensor for key, tensor in stored.items() if tensor not in (rows, row_ids)}
    check_floats(stored, path)
    if rows is None or row_ids is None:
        return stored
    if cfg.d_vocab > _MOST_UNFOLDED_ROWS:
        raise CheckpointError(
            f"{path} holds some rows of an embedding of d_vocab {cfg.d_vocab}; they can stand for "
            f"{_MOST_UNFOLDED_ROWS} at most. Save the model with all its rows."
        )
    if len(rows.shape) != 2 or rows.shape[0] < 1:
        raise WeightShapeError(f"rows of the token embedding in {path} are {rows.shape}.")
    if row_ids.shape != (rows.shape[0] - 1,):
        raise WeightShapeError(
            f"row_ids of the token embedding in {path} is {row_ids.shape}; {rows.shape} rows need "
            f"({rows.shape[0] - 1},) ids, because the last row stands for all others."
        )
    ids = row_ids.take(torch.device("cpu"), torch.int64)
    if (
        row_ids.dtype in FLOAT_DTYPES
        or len(ids.unique()) < len(ids)
        or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < cfg.d_vocab)
    ):
        raise CheckpointError(
            f"row_ids of the token embedding in {path} must be different integers from 0 to "
            f"{cfg.d_vocab - 1}."
        )
    return {**stored, name: RowsTensor(rows, row_ids, cfg.d_vocab)}
