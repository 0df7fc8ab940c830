"""Files that appear whole or not at all, and a folder that one harvest has to itself."""

import errno
import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hooked_whisper.errors import StoreBusyError, StoreWriteError
from hooked_whisper.io import PART, replacing

LOCK_FILE = ".lock"

_held: set[Path] = set()
"""Folders that this process harvests into: its own locks would not stop it."""


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file aside, bring it to the disk, and give it its name in one step.

    Args:
        path: What the file is to be called; one that is there is replaced.
        write: Writes the content to an open file.

    Raises:
        StoreWriteError: The disk is full, or forbids it. Nothing is left behind.
    """
    try:
        with replacing(path) as aside, aside.open("wb") as file:
            write(file)
    except OSError as error:
        raise _explain(error, path) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, the same bytes for the same value, as `write_whole` does."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Have a folder to oneself; the operating system ends it with the process, however that ends.

    Source: POSIX record locks, which forked workers do not inherit and NFS knows.

    Raises:
        StoreBusyError: Another process, or another harvest in this one, has it.
        StoreWriteError: No file can be made there.
    """
    path = folder.resolve()
    busy = (
        f"another harvest writes into {folder} at this moment. Wait until it is done, or name "
        "another folder."
    )
    if path in _held:
        raise StoreBusyError(busy)
    try:
        file = (folder / LOCK_FILE).open("ab")
    except OSError as error:
        raise _explain(error, folder) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise StoreBusyError(busy) from error
            raise _explain(error, folder) from error
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing.

    Raises:
        StoreWriteError: A file has the name, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain(error, folder) from error


def remove_parts(folder: Path) -> None:
    """Remove what a harvest that was killed had not finished."""
    for part in folder.glob(f"*{PART}*"):
        part.unlink(missing_ok=True)


def _explain(error: OSError, path: Path) -> StoreWriteError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free some space and run the same harvest again: it goes on where it stopped."
        return StoreWriteError(f"{path} cannot be written: {error.strerror}. {remedy}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreWriteError(
            f"{path} cannot be written: {error.strerror}. Name a folder that you may write to."
        )
    return StoreWriteError(f"{path} cannot be written: {error}.")
