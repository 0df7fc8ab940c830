"""One file that holds all of a training: weights, optimizer, counters, log and place in the data.

It is written beside its place and then moved there, so that a kill leaves the old one
or the new one. Everything but tensors is JSON in the file's header; nothing is pickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooked_whisper.errors import SAEFileError
from hooked_whisper.io import save_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"
FORMAT = "hooked_whisper.training"
VERSION = 1


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], values: dict[str, Any]) -> None:
    """Write a checkpoint in place of the last one: tensors, and values that JSON has."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "training": json.dumps({"version": VERSION, **values})}
    save_tensors(folder / CHECKPOINT_FILE, tensors, header)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the values of a folder's checkpoint; None where it has none."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise SAEFileError(f"{path} cannot be read as safetensors: {error}") from error
    if header.get("format") != FORMAT:
        raise SAEFileError(f"{path} holds no training; its format is {header.get('format')!r}.")
    values = json.loads(header["training"])
    if values.pop("version") != VERSION:
        raise SAEFileError(f"{path} was written by a later version. Upgrade hooked_whisper.")
    return tensors, values
