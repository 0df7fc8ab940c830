"""One file that holds all of a training: weights, optimizer, counters, log and place in the data.

It is written beside its place and then moved there, so that a kill leaves the old one
or the new one. Everything but tensors is JSON in the file's header; nothing is pickled.
"""

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooked_whisper.errors import SAEFileError
from hooked_whisper.io import save_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"
FORMAT = "hooked_whisper.training"
VERSION = 1

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while the block runs; it is answered at its end.

    So is SIGTERM, which torchrun sends when another rank is lost, where the program
    answers it. In threads other than the main one, which signals do not reach, nothing changes.
    """
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread() or not handlers:
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            handlers[waiting[0][0]](*waiting[0])
