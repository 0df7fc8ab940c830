"""Files appear whole or not at all, and are on the disk before they have their names."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hooked_whisper import io
from hooked_whisper.errors import StoreWriteError
from hooked_whisper.io import (
    lock_file,
    lock_folder,
    remove_parts,
    replacing,
    save_tensors,
    write_json,
    write_whole,
)

from .processes import Child

InChild = Callable[[Callable[[], object]], Child]


def killed_in_a_file(path: Path) -> None:
    """This process ends with half of a file written."""
    with replacing(path) as aside:
        aside.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def killed_in_tensors(path: Path) -> None:
    """This process ends while safetensors writes."""

    def killed(tensors: object, path: Path, metadata: object) -> None:
        Path(path).with_name(".tmpAbCdEf").write_bytes(b"half")  # as safetensors names it
        os.kill(os.getpid(), signal.SIGKILL)

    io.save_file = killed  # type: ignore[attr-defined]
    save_tensors(path, {"a": torch.ones(2)}, {})


def test_what_is_written_takes_the_others_place(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("old")
    with replacing(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["rows"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=str)
def test_an_error_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "rows"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["rows"]


def test_a_kill_leaves_the_old_file(tmp_path: Path, in_child: InChild) -> None:
    path = tmp_path / "rows"
    path.write_text("old")
    assert in_child(lambda: killed_in_a_file(path)).wait() == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.parametrize("work", [killed_in_a_file, killed_in_tensors], ids=["file", "tensors"])
def test_what_a_kill_left_goes_with_the_next_one_that_has_the_lock(
    work: Callable[[Path], None], tmp_path: Path, in_child: InChild
) -> None:
    """Of this file alone: another's may be on its way."""
    for name in ("a[1]", "other"):
        assert in_child(partial(work, tmp_path / name)).wait() == -signal.SIGKILL
    both = {path.name for path in tmp_path.iterdir()}
    assert {name.split(".")[1] for name in both} == {"a[1]", "other"}  # all say whose they are
    save_tensors(tmp_path / "a[1]", {"a": torch.ones(2)}, {})  # without a lock
    assert {path.name for path in tmp_path.iterdir()} == both | {"a[1]"}
    with lock_file(tmp_path / "a[1]", "sweep"):
        left = {path.name for path in tmp_path.iterdir() if "part" in path.name}
    assert left and all(name.startswith(".other.") for name in left)
    with lock_folder(tmp_path):
        remove_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".a[1].lock", "a[1]"}


def test_the_content_is_on_the_disk_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def note(what: str) -> Any:
        real = getattr(os, what)

        def function(*args: Any) -> Any:
            place = os.readlink(f"/proc/self/fd/{args[0]}") if what == "fsync" else args[1]
            done.append(f"{what} {'folder' if Path(place) == tmp_path else 'file'}")
            return real(*args)

        return function

    for what in ("fsync", "replace"):
        monkeypatch.setattr(os, what, note(what))
    with replacing(tmp_path / "rows") as aside:
        aside.write_text("new")
    assert done == ["fsync file", "replace file", "fsync folder"]


def test_tensors_and_texts_are_read_back(tmp_path: Path) -> None:
    x = torch.arange(6.0).view(2, 3)
    save_tensors(tmp_path / "x", {"x": x.T, "y": x.requires_grad_()}, {"says": "hello"})
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"says": "hello"}
        assert torch.equal(file.get_tensor("x"), x.T) and torch.equal(file.get_tensor("y"), x)


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_others_may_read_what_the_user_lets_them_read(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "tensors", {"x": torch.ones(2)}, {})
        write_whole(tmp_path / "bytes", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


def test_what_is_done_before_a_file_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("old")
    seen: list[str] = []

    def full() -> None:
        raise OSError("full")

    with pytest.raises(StoreWriteError):
        write_json(path, {"a": 1}, full)
    assert path.read_text() == "old"
    write_json(path, {"a": 1}, lambda: seen.append(path.read_text()))
    assert seen == ["old"] and path.read_text() == '{\n "a": 1\n}\n'
