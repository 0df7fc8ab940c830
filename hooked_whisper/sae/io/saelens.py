"""Reading SAELens's folders: `cfg.json` and `sae_weights.safetensors`.

Source: SAELens 6.54, `SAE.save_model`, `handle_pre_6_0_config`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor
from typing_extensions import TypedDict

from hooked_whisper.errors import SAEFileError
from hooked_whisper.io import read_json
from hooked_whisper.sae.architectures import ARCHITECTURES
from hooked_whisper.sae.io.contents import Contents, read_contents
from hooked_whisper.sae.io.state_dicts import Found
from hooked_whisper.sae.saving import CFG_NAME, IN_METADATA, OWN_KEY, WEIGHTS_NAME, WITH_TOP_K

DTYPES = {
    name: dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for name in (str(dtype), str(dtype).removeprefix("torch."))
}

OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Keys of SAELens before version 6, and what they became."""

NO_METADATA = {"architecture", "dtype", "device", "metadata", OWN_KEY}
NO_METADATA |= {"activation_fn", "activation_fn_kwargs", "finetuning_scaling_factor"}
"""Keys of `cfg.json` that are neither a field of a configuration here nor metadata."""


SCALER_NAME = "activation_scaler.json"
"""Beside a checkpoint of SAELens: what its training multiplies activations with."""


class Scaler(TypedDict):
    """What that file holds; None where nothing was scaled."""

    scaling_factor: Annotated[float, Meta(gt=0)] | None


def is_saelens(folder: Path) -> bool:
    """Whether a folder looks like SAELens's."""
    return (folder / CFG_NAME).exists() or (folder / WEIGHTS_NAME).exists()


def read_saelens(folder: Path) -> Found:
    """What a SAELens folder holds, of version 6 or older."""
    for name in (CFG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            held = ", ".join(sorted(each.name for each in folder.iterdir())[:12])
            raise SAEFileError(
                f"{folder} has no {name}: a SAELens folder needs {CFG_NAME} and {WEIGHTS_NAME}. "
                f"It holds {held}."
            )
    contents = read_contents(folder / WEIGHTS_NAME, folder / CFG_NAME)
    values = {OLD_NAMES.get(key, key): value for key, value in contents.config.items()}
    own = _part(values, OWN_KEY, folder)
    if own.get("version", 1) != 1:
        raise SAEFileError(
            f"{folder} was written by a newer hooked_whisper (its format {own['version']!r}; this "
            "one reads 1). Update hooked_whisper."
        )
    name = _architecture(values, folder)
    allowed = {each.name for each in fields(ARCHITECTURES[name].Config)} - {"metadata"}
    cfg = {key: value for key, value in values.items() if key in allowed}
    cfg["architecture"] = name
    normalize = values.get("normalize_activations")
    if normalize is None or isinstance(normalize, bool):
        cfg["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    metadata = _metadata(values, allowed, folder)
    for key in IN_METADATA:
        if key in metadata and key in allowed:
            cfg[key] = metadata.pop(key)
    if type(cfg.get("k")) is float and cfg["k"].is_integer():
        cfg["k"] = int(cfg["k"])  # BatchTopK's is a float there
    added = own.get("added_metadata", [])
    if not isinstance(added, list):
        raise SAEFileError(
            f"added_metadata in {folder / CFG_NAME} is a {type(added).__name__}; it must be a "
            "list. Save the autoencoder again."
        )
    cfg["metadata"] = {key: value for key, value in metadata.items() if key not in added}
    tensors = _tensors(contents, values, cfg)
    if cfg["normalize_activations"] == "expected_average_only_in":
        _fold_scale(tensors, cfg, folder)
    return Found(folder, cfg, tensors, DTYPES.get(str(values.get("dtype"))))


def _architecture(values: dict[str, Any], folder: Path) -> str:
    """The architecture's name; older folders say TopK by their activation function."""
    activation = values.get("activation_fn", "relu")
    if activation == "topk":
        arguments = values.get("activation_fn_kwargs")
        if isinstance(arguments, dict) and "k" in arguments:
            values |= {"architecture": "topk", "k": arguments["k"]}
    elif activation != "relu":
        raise SAEFileError(
            f"{folder}: activation_fn is {activation!r}; it can be 'relu' or 'topk' with "
            "activation_fn_kwargs {'k': ...}."
        )
    name = str(values.get("architecture", "standard"))
    if name.endswith("transcoder"):
        name = name.removeprefix(WITH_TOP_K)
    if name not in ARCHITECTURES:
        raise SAEFileError(
            f"{folder}: architecture is {name!r}; known are {', '.join(ARCHITECTURES)}."
        )
    return name


def _metadata(values: Mapping[str, Any], allowed: set[str], folder: Path) -> dict[str, Any]:
    """All that is no configuration: before version 6 it stood beside it."""
    stray = {
        key: value
        for key, value in values.items()
        if key not in NO_METADATA and (key not in allowed or key in IN_METADATA)
    }
    if stray.get("reshape_activations") == "none":
        stray.pop("reshape_activations")
    return {**stray, **_part(values, "metadata", folder)}


def _tensors(
    contents: Contents, values: Mapping[str, Any], cfg: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors under this package's names, older peculiarities folded away."""
    tensors = dict(contents.tensors)
    if "log_threshold" in tensors:  # JumpReLU checkpoints before SAELens 6.30
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    scale = tensors.pop("finetuning_scaling_factor", tensors.pop("scaling_factor", None))
    if scale is not None and not bool((scale == 1).all()):
        n_latents = tensors["W_dec"].shape[:1] if "W_dec" in tensors else ()
        if not values.get("finetuning_scaling_factor") or scale.shape != n_latents:
            raise SAEFileError(
                f"{contents.path} has a scaling factor {tuple(scale.shape)} that is not 1, and "
                "its cfg.json does not say finetuning_scaling_factor. It holds "
                f"{contents.describe()}."
            )
        tensors["W_dec"] = scale[:, None] * tensors["W_dec"]
    if cfg.get("tied"):
        W_enc, W_dec = tensors.pop("W_enc", None), tensors.get("W_dec")
        if W_enc is not None and W_dec is not None and not torch.equal(W_enc, W_dec.T):
            raise SAEFileError(
                f"{contents.path} is a tied autoencoder, and its W_enc is not W_dec transposed."
            )
    return tensors


def _fold_scale(tensors: dict[str, Tensor], cfg: dict[str, Any], folder: Path) -> None:
    """Fold the scale of the inputs in, as SAELens does at the end of training, or warn.

    Latents keep their values, and so does the matrix of a skip transcoder, which
    takes scaled inputs to scaled outputs.

    Source: SAELens 6, `SAE.fold_activation_norm_scaling_factor`, `ActivationScaler.save`.
    """
    path, scale = folder / SCALER_NAME, None
    if path.exists():
        remedy = "Remove it, and multiply the activations with the scale yourself."
        scale = read_json(path, Scaler, SAEFileError, remedy)["scaling_factor"]
    why = f"the scale is not in {SCALER_NAME} beside it" if scale is None else None
    if not {"W_enc", "W_dec", "b_dec"} <= set(tensors):
        why = why or f"the scale in {SCALER_NAME} cannot go into weights that are tied"
    if scale is None or why:
        warnings.warn(
            f"{folder} expects activations that are scaled to a mean length of sqrt(d_in): it is "
            f"a checkpoint from the middle of a SAELens training, and {why}. On plain activations "
            "its reconstructions are wrong. Take the autoencoder of the end of training, or "
            "multiply what it gets with the scale, and divide what it gives by it.",
            stacklevel=5,
        )
        return
    tensors["W_enc"] = tensors["W_enc"] * scale
    tensors["W_dec"] = tensors["W_dec"] / scale
    tensors["b_dec"] = tensors["b_dec"] / scale
    cfg["normalize_activations"] = "none"


def _part(values: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    part = values.get(name, {})
    if not isinstance(part, dict):
        raise SAEFileError(
            f"{name} in {folder / CFG_NAME} is a {type(part).__name__}; it must be an object."
        )
    return part
