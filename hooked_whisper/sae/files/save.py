"""Writing autoencoders in SAELens's format, whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from hooked_whisper.errors import SAEFileError
from hooked_whisper.io import replacing
from hooked_whisper.sae.files.saelens_cfg import CFG_NAME, WEIGHTS_NAME, write_values
from hooked_whisper.sae.files.tensors import check_tensors


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
            `folder` is a file.
    """
    if not hasattr(sae, "inference") or not hasattr(sae, "cfg"):
        raise SAEFileError(
            f"save_sae takes an autoencoder of hooked_whisper; got a {type(sae).__name__}."
        )
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise SAEFileError(f"{target} is a file; give a folder to save into.")
    cfg, tensors = write_values(sae.inference() if inference else sae)
    check_tensors(tensors, "the autoencoder to save")
    text = _json(cfg)
    target.mkdir(parents=True, exist_ok=True)
    with replacing(target / CFG_NAME) as config, replacing(target / WEIGHTS_NAME) as weights:
        config.write_text(text, encoding="utf-8")
        save_file(tensors, weights)
    return target


def _json(cfg: dict[str, Any]) -> str:
    """The configuration as text.

    Raises:
        SAEFileError: Reading the text would not give the same values back.
    """
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
