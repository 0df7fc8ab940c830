"""Work that is killed again and again, and what it leaves on the disk."""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.store import verify_store
from hooked_whisper.store.manifest import damaged_shards, read_manifest

from .processes import Child, shared_count

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
"""Python's names for what a program does to files; a kill comes before one of these."""

SOME_KILLS = pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
"""Of each of the three kinds one; twenty in all where there is time."""


def check_kills(
    work: Callable[[Path], object],
    look: Callable[[Path], object],
    contents: Callable[[Path], Any],
    place: Path,
    n_kills: int,
) -> None:
    """Kill a piece of work so often, and compare what it comes to with an undisturbed run's.

    Kills come after some time; from the process itself, before it opens, moves or removes one
    of its files; and from the system, in the middle of a write. Each goes on where the last
    one stopped.

    Args:
        work: Begins in a folder, or goes on with what is there.
        look: Called after each kill: reads what is there, and fails where it is broken.
        contents: Of a folder in which the work is done: what has to be equal.
        place: For such folders.
        n_kills: By SIGKILL, of a process that was not done yet.
    """
    draw = random.Random(0)
    work(_new(place / "warm-up"))  # what is imported and kept by then is forked
    start_s = time.monotonic()
    n_touches, whole = _run(work, _new(place / "whole"))
    whole_s = time.monotonic() - start_s
    assert whole.exit_code == 0
    expected = contents(place / "whole")
    largest = max(path.stat().st_size for path in (place / "whole").rglob("*"))
    n, folders, n_runs = 0, [_new(place / "0")], 0
    while n < n_kills:
        n_runs += 1
        assert n_runs < 8 * n_kills, f"{n} kills in {n_runs} runs: they come too late"
        if n_runs % 3 == 0:
            n_bytes = draw.randint(1, largest)
            child = Child(lambda n_bytes=n_bytes: _with_files_of(n_bytes, work, folders[-1]))
            child.wait()
        elif n_runs % 3 == 1:
            child = _run(work, folders[-1], at=draw.randint(1, n_touches))[1]
        else:
            child = Child(lambda: work(folders[-1]))
            time.sleep(draw.uniform(0, whole_s))
            child.kill()
        assert child.exit_code in (0, -signal.SIGKILL, -signal.SIGXFSZ), "it could not go on"
        n += child.exit_code == -signal.SIGKILL
        if child.exit_code:
            look(folders[-1])
        else:
            folders.append(_new(place / str(len(folders))))
    assert _run(work, folders[-1])[1].exit_code == 0
    for folder in folders:
        look(folder)
        assert contents(folder) == expected, folder


def _run(work: Callable[[Path], object], folder: Path, at: int = 0) -> tuple[int, Child]:
    """Work to its end in a child, or to the given time that it touches its files: how many."""
    count, inside = shared_count(), f"{folder}{os.sep}"

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHES and inside in f"{arguments[0]}{os.sep}":
            count.value += 1
            if count.value == at:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> None:
        sys.addaudithook(watch)
        work(folder)

    child = Child(watched)
    try:
        child.wait()
    finally:
        child.end()
    return count.value, child


def _with_files_of(n_bytes: int, work: Callable[[Path], object], folder: Path) -> None:
    """Work in a process that is killed when a file grows longer."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    work(folder)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def files(folder: Path, *without: str) -> dict[str, bytes]:
    """Every file below a folder by its name, but locks and what a kill left half written."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.endswith((".lock", ".part", *without))
        and not path.name.startswith(".tmp")  # safetensors' own name of what it writes
    }


def whole_store(folder: Path) -> None:
    """Every shard that counts holds what its record says, and so does a complete store."""
    numbers = [int(path.stem.split("-")[1]) for path in folder.glob("shard-*.json")]
    assert damaged_shards(folder, numbers) == []
    if (read_manifest(folder) or {"complete": False})["complete"]:
        assert verify_store(folder) == {}
