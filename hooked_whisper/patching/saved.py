"""Results of patching on the disk: written as they grow, and checked when they are read."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from hooked_whisper.errors import InterventionError
from hooked_whisper.io import (
    as_path,
    check_json,
    checksum_of_json,
    checksum_of_tensors,
    growing_file,
    parse_json,
    read_json,
    save_tensors,
    write_json,
)
from hooked_whisper.patching.partial_result import partial_result_on_interrupt

HELD = "held."
"""What the names of tensors begin with that an unfinished computation goes on from."""
_REMEDY = "Write one with result.save(path), or begin anew."

FilePath = str | os.PathLike[str]


class Header(TypedDict):
    """What a file says of its numbers."""

    format: str
    direction: Literal["denoising", "noising"]
    metric: str
    conditions: dict[str, Any]
    axes: dict[str, list[Any]]
    names: NotRequired[list[list[str | None]]]
    senders: NotRequired[list[str]]
    receivers: NotRequired[list[str]]
    xxh3_128: str


def save_result(
    path: FilePath, kind: str, tensors: dict[str, Tensor], about: dict[str, Any]
) -> None:
    """Write a result as safetensors, whole or not at all, with a checksum of all of it.

    Raises:
        InterventionError: It cannot be written.
    """
    header = {"format": f"hooked_whisper.{kind}/1", **json.loads(json.dumps(about))}
    header["xxh3_128"] = _checksum(header, tensors)
    try:
        save_tensors(Path(path), tensors, {kind: json.dumps(header)})
    except (OSError, SafetensorError, ValueError) as error:
        raise InterventionError(
            f"the result cannot be written to {str(path)[:200]}: {error}. Name a file in a folder "
            "that you may write to, on a disk with room."
        ) from error


def load_result(path: FilePath, kind: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a result, once they fit together.

    Raises:
        InterventionError: It cannot be read, is damaged, or is no such result.
    """
    where = str(path)[:200]
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(kind)
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, ValueError, SafetensorError) as error:
        raise InterventionError(
            f"{where} cannot be read as a {name}: {str(error)[:300]}. {_REMEDY}"
        ) from error
    if text is None:
        raise InterventionError(f"{where} is no {name}. {_REMEDY}")
    header: dict[str, Any] = dict(parse_json(text, Header, InterventionError, where, _REMEDY))
    if header["format"] != f"hooked_whisper.{kind}/1":
        raise InterventionError(
            f"{where} is of the format {header['format'][:80]!r}, which this release does not "
            f"read as a {name}. {_REMEDY}"
        )
    if wrong := _contradiction(header, tensors):
        raise InterventionError(f"{where} is damaged: {wrong}. {_REMEDY}")
    return tensors, {key: header[key] for key in header if key not in ("format", "xxh3_128")}


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    about = {key: value for key, value in header.items() if key != "xxh3_128"}
    return checksum_of_json([about, checksum_of_tensors(tensors)])


def _contradiction(header: dict[str, Any], tensors: dict[str, Tensor]) -> str | None:
    """What of a file does not fit together; None where all does."""
    missing = {"values", "clean", "corrupted"} - set(tensors)
    extra = [name for name in tensors if not name.startswith(HELD)]
    if missing or len(extra) != 3:
        return f"it holds {', '.join(sorted(tensors))[:200]}"
    labels = header["axes"]
    shape, n_pairs = tuple(tensors["values"].shape), len(labels.get("pair", ()))
    if list(labels)[:1] != ["pair"] or shape != tuple(map(len, labels.values())):
        return f"its axes have {[len(each) for each in labels.values()]} labels, its values {shape}"
    for name in ("values", "clean", "corrupted"):
        if not tensors[name].is_floating_point():
            return f"its {name} are {tensors[name].dtype}"
        if name != "values" and tensors[name].shape != (n_pairs,):
            return f"its {name} is {tuple(tensors[name].shape)} for {n_pairs} pairs"
    names = header.get("names")
    if names is not None and [len(row) for row in names] != [shape[2]] * shape[1]:
        return "its names of hooks are not one for each site and layer"
    if header.get("senders", labels.get("sender")) != labels.get("sender"):
        return "its senders are not the labels of its axis"
    if header["xxh3_128"] != _checksum(header, tensors):
        return "its checksum is of other content"
    return None


class Step(TypedDict):
    """A removal of a greedy search."""

    candidate: Annotated[int, Meta(ge=0)]
    value: float
    change: float


class Search(TypedDict):
    """What a file says of a greedy search."""

    format: Literal["hooked_whisper.greedy_ablation/1"]
    conditions: dict[str, Any]
    tolerance: float
    most: int | None
    baseline: float
    complete: bool
    removals: list[Step]
    xxh3_128: str


def write_search(path: Path, about: dict[str, Any]) -> None:
    """Write what is known of a greedy search as JSON, with a checksum.

    Raises:
        StoreWriteError: It cannot be written.
    """
    about = {"format": "hooked_whisper.greedy_ablation/1", **about}
    write_json(path, about | {"xxh3_128": checksum_of_json(about)})


def read_search(path: Path) -> dict[str, Any]:
    """What `write_search` wrote.

    Raises:
        InterventionError: It cannot be read, is damaged, or is something else.
    """
    remedy = "Remove it to begin anew, or name another file."
    found: dict[str, Any] = dict(read_json(path, dict[str, Any], InterventionError, remedy))
    check_json(found, Search, InterventionError, str(path), remedy)
    if found.pop("xxh3_128") != checksum_of_json(found):
        raise InterventionError(f"{path} is damaged: its checksum is of other content. {remedy}")
    return found


@contextmanager
def going_on(
    result: Any, save_to: FilePath | None, resume: Any, work: str, so_far: Callable[[], str]
) -> Iterator[Callable[[], None]]:
    """Go on from an earlier result, and keep what is done of this one, whatever stops it.

    At Ctrl-C the block ends as if all were done; an error becomes one that holds the result.

    Args:
        result: What is filled while the block runs.
        save_to: Its file, which is gone on from where it is there; None keeps nothing on the disk.
        resume: An earlier result; not where there is such a file.
        work: What is done, for messages: `"sweep"`.
        so_far: How much is done, for messages.

    Yields:
        What to call after each step: it writes the file when it is time.

    Raises:
        InterventionError: Both a file and a result to go on from, one of something else, or
            a path that cannot be written, before anything is computed.
        StoreBusyError: Another process fills the file.
        SweepError: An error on the way, or at the end a file that cannot be written.
    """
    if save_to is None:
        result.go_on_from(resume)
        with partial_result_on_interrupt(lambda: result, so_far):
            yield lambda: None
        return
    path = as_path(save_to, InterventionError)
    with (
        growing_file(path, work, lambda: result.save(path)) as step,
        partial_result_on_interrupt(lambda: result, so_far, is_kept=True),
    ):
        result.go_on_from(earlier_result(path, resume, type(result).load))
        result.save(path)
        try:
            yield step
        finally:
            result.save(path)


def earlier_result(path: Path, resume: Any, load: Callable[[Path], Any]) -> Any:
    """What to go on from: what is in a file where it is there, else what was given.

    Raises:
        InterventionError: There are both.
    """
    if not path.exists():
        return resume
    if resume is not None:
        raise InterventionError(
            f"{path} is there to go on from, and resume is given too. Leave out one."
        )
    return load(path)
