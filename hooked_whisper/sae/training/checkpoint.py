"""One file that holds all of a training: weights, optimizer, counters, log and place in the data.

It is written beside its place and then moved there, so that a kill leaves the old one
or the new one. Everything but tensors is JSON in the file's header; nothing is pickled. A
checksum of both stands beside it: another bit would be another training.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import xxhash
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from hooked_whisper.errors import SAEFileError, TrainingError
from hooked_whisper.io import checksum_of_tensors, parse_json, save_tensors
from hooked_whisper.sae.saving import explained_writing
from hooked_whisper.sae.training.config import TrainingConfig

CHECKPOINT_FILE = "checkpoint.safetensors"
FORMAT = "hooked_whisper.training"
VERSION = 2
"""2 has a checksum; 1, which had none, is read where every tensor is there as it must be."""
CHECKSUM = "xxh3_128"

RESTART = "Restore it from a copy, or train again in another folder."

Count = Annotated[int, Meta(ge=0)]
Factor = Annotated[float, Meta(gt=0)]


class BestLine(TypedDict):
    """The line of the log with the best held-out FVU, and how many came since."""

    line: dict[str, Any] | None
    n_worse: Count


class Values(TypedDict):
    """What a checkpoint holds beside tensors."""

    version: int
    cfg: dict[str, Any]
    data: Any
    step: Annotated[int, Meta(ge=1)]
    n_vectors: Annotated[int, Meta(ge=1)]
    position: Annotated[list[Count], Meta(min_length=2, max_length=2)]
    scales: Annotated[list[Factor], Meta(min_length=2, max_length=2)]
    log: list[dict[str, Any]]
    longest: NotRequired[float]
    best: NotRequired[BestLine]


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], values: dict[str, Any]) -> None:
    """Write a checkpoint in place of the last one: tensors, and values that JSON has."""
    text = json.dumps({"version": VERSION, **values})
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"format": FORMAT, "training": text, CHECKSUM: _checksum(text, plain)}
    path, remedy = folder / CHECKPOINT_FILE, "Then go on with resume=True: the last one is whole."
    with explained_writing(path, TrainingError, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(path, plain, header)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of all that a checkpoint holds: its JSON, and names, dtypes, shapes and bytes of tensors."""
    return xxhash.xxh3_128_hexdigest(text.encode() + checksum_of_tensors(tensors).encode())


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the values of a folder's checkpoint; None where it has none.

    Raises:
        SAEFileError: It is no file of a training.
        TrainingError: It is one, and damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    if not path.is_file():
        raise SAEFileError(f"{path} is no regular file. {RESTART}")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise SAEFileError(
            f"{path} cannot be read as safetensors: {str(error)[:300]}. {RESTART}"
        ) from error
    if header.get("format") != FORMAT:
        found = repr(header.get("format"))[:100]
        raise SAEFileError(f"{path} holds no training; its format is {found}. {RESTART}")
    text = header.get("training", "")
    values = parse_json(text, dict[str, Any], TrainingError, str(path), RESTART)
    version = values.get("version")
    if type(version) is int and version > VERSION:
        raise SAEFileError(f"{path} was written by a later version. Upgrade hooked_whisper.")
    values = dict(parse_json(text, Values, TrainingError, str(path), RESTART))
    if version != 1 or CHECKSUM in header:
        try:
            found = _checksum(text, tensors)
        except (RuntimeError, TypeError, UnicodeError):  # dtypes that no training has
            found = "none"
        if header.get(CHECKSUM) != found:
            raise TrainingError(
                f"{path} is damaged: its checksum is of other content, and going on from it would "
                f"give other weights. {RESTART}"
            )
    values.pop("version")
    return tensors, values


def check_same(folder: Path, values: Mapping[str, Any], cfg: TrainingConfig, data: Any) -> None:
    """Refuse a checkpoint of another training, or of data in another order."""
    now, then = cfg.to_dict(), values["cfg"]
    defaults = {each.name: each.default for each in fields(TrainingConfig)}
    pairs = {name: (then.get(name, defaults[name]), now[name]) for name in now}
    sae = then.get("sae")
    sae = sae if isinstance(sae, dict) else {}
    pairs |= {f"sae.{n}": (sae.get(n), v) for n, v in now["sae"].items()}
    pairs.pop("sae")
    pairs["the order of the data"] = (values["data"], data)
    for name, (before, value) in pairs.items():
        if before != value:
            raise TrainingError(
                f"{folder} holds another training: {name} was {repr(before)[:150]} and "
                f"is now {repr(value)[:150]}. Pass the same, or name another folder."
            )


def check_whole(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint that lacks a tensor, or has one of another shape or of NaN."""
    for name in sorted({*wanted, *tensors}):
        got, value = (
            None if each is None else f"{tuple(each.shape)} {each.dtype}"
            for each in (tensors.get(name), wanted.get(name))
        )
        if got == value and bool(tensors[name].isfinite().all()):
            continue
        raise TrainingError(
            f"{name[:60]} in {path} is {got}, or not finite; this training has "
            f"{value}. Going on from it would give other weights. {RESTART}"
        )
