"""Writing autoencoders in SAELens's format, whole or not at all.

All fields of this package's configurations stand in `cfg.json` as SAELens's own
do, hook names among the metadata. SAELens passes over those that it does not
know, and over `"hooked_whisper"`, which says what was added for SAELens alone.

Source: SAELens 6.54, `SAE.save_model`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from hooked_whisper.errors import SAEFileError
from hooked_whisper.io import as_path, replacing, write_tensors

CFG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
OWN_KEY = "hooked_whisper"

FORMAT_VERSION = "6.54.0"
"""The sae-lens whose format is written; below 6, sae-lens would read it as an older one."""

IN_METADATA = ("hook_name", "hook_name_out", "max_activation_norm")
"""Fields of configurations here that are metadata there."""

WITH_TOP_K = "topk_"
"""Before the name of a transcoder with k, which SAELens does not have: it refuses the name
instead of passing over the k."""


def save_sae(sae: Any, folder: str | os.PathLike[str], *, inference: bool = True) -> Path:
    """Write an autoencoder as SAELens does: `cfg.json` and `sae_weights.safetensors`.

    Both are written aside first and then renamed: a reader never sees half of
    a file, and an error leaves what was there before.

    Args:
        sae: One of this package's.
        folder: Made if it does not exist; other files in it are left alone.
        inference: Save what is used after training: a BatchTopK becomes a
            JumpReLU with its threshold, as SAELens does. False keeps the
            training form, which SAELens loads as a `TrainingSAE`.

    Returns:
        The folder.

    Raises:
        SAEFileError: Weights are not finite, metadata have no place in JSON, or
            `folder` is a file or cannot be written; what was there before stays.
    """
    if not hasattr(sae, "inference") or not hasattr(sae, "cfg"):
        raise SAEFileError(
            f"save_sae takes an autoencoder of hooked_whisper; got a {type(sae).__name__}."
        )
    target = as_path(folder, SAEFileError)
    if target.exists() and not target.is_dir():
        raise SAEFileError(f"{target} is a file; give a folder to save into.")
    cfg, tensors = _values(sae.inference() if inference else sae)
    check_tensors(tensors, "the autoencoder to save")
    text = _json(cfg)
    with explained_writing(target, SAEFileError, "What was there before is whole."):
        target.mkdir(parents=True, exist_ok=True)
        with replacing(target / CFG_NAME) as config, replacing(target / WEIGHTS_NAME) as weights:
            config.write_text(text, encoding="utf-8")
            write_tensors(tensors, weights)
    return target


@contextmanager
def explained_writing(path: Path, error: type[Exception], remedy: str) -> Iterator[None]:
    """Say what to do where a file cannot be written; `remedy` ends the sentence on it."""
    try:
        yield
    except (OSError, SafetensorError) as wrong:
        raise error(
            f"{str(path)[:150]} cannot be written: {str(wrong)[:250]}. Free some space, or name a "
            f"folder that you may write to. {remedy}"
        ) from wrong


def check_tensors(tensors: Mapping[str, Tensor], path: object) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        SAEFileError: Names the tensor and how many of its values.
    """
    for name, value in tensors.items():
        n_bad = int((~value.isfinite()).sum())
        if n_bad:
            raise SAEFileError(
                f"{name} in {path} holds {n_bad} values of {value.numel()} that are NaN or "
                "infinite. The file is damaged, or its training diverged."
            )


def _values(sae: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`cfg.json` and the tensors of an autoencoder, as SAELens has them."""
    cfg = sae.cfg.to_dict()
    if "transcoder" in cfg["architecture"] and cfg.get("k") is not None:
        cfg["architecture"] = WITH_TOP_K + cfg["architecture"]
    metadata = dict(cfg.pop("metadata"))
    for key in IN_METADATA:
        if key in cfg and key in metadata:
            raise SAEFileError(
                f"metadata has a {key!r} of its own, {metadata[key]!r}: SAELens keeps the "
                f"configuration's {key} there, {cfg[key]!r}. Take it out of metadata."
            )
        value = cfg.pop(key, None)
        if value is not None:
            metadata[key] = value
    added = {"sae_lens_version": FORMAT_VERSION, "sae_lens_training_version": None}
    added = {key: value for key, value in added.items() if key not in metadata}
    cfg |= {"dtype": str(sae.dtype).removeprefix("torch."), "device": "cpu"}
    cfg["reshape_activations"] = metadata.pop("reshape_activations", "none")
    cfg["metadata"] = {**metadata, **added}
    cfg[OWN_KEY] = {"version": 1, "added_metadata": sorted(added)}
    tensors = {name: value.detach() for name, value in sae.state_dict().items()}
    if any(value.is_meta for value in tensors.values()):
        raise SAEFileError("the autoencoder is on the meta device, which holds no values to save.")
    tensors.setdefault("W_enc", sae.W_enc.detach().clone())  # a tied encoder is no parameter
    return cfg, {name: value.cpu().contiguous() for name, value in tensors.items()}


def _json(cfg: dict[str, Any]) -> str:
    """The configuration as text, from which reading gives the same values back."""
    try:
        text = json.dumps(cfg, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SAEFileError(
            f"the configuration cannot be written as JSON ({error}): metadata={cfg['metadata']!r}. "
            "Keep text, numbers, lists and dictionaries by text."
        ) from error
    if json.loads(text) != _listed(cfg):
        raise SAEFileError(
            f"the keys of metadata must be text: metadata={cfg['metadata']!r} would come back "
            "changed."
        )
    return text + "\n"


def _listed(value: Any) -> Any:
    """The same with tuples as lists, which is what JSON makes of them."""
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value
