"""What stops work from outside breaks nothing: kill -9, a full disk, a folder that is not ours.

Harvests are killed in tests/store/test_crash.py, all that patching keeps in
tests/patching/test_saved.py.
"""

import ctypes
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import HookedWhisperError

from .kills import SOME_KILLS, check_kills
from .processes import Child
from .works import Work, make_works

NOBODY = 65534


@pytest.fixture(scope="module")
def speaking_model(make_model: Callable[..., Any]) -> Any:
    """With Whisper's vocabulary, so that it reads texts, and as little as can be of the rest."""
    one = dict.fromkeys(("n_audio_layers", "n_audio_heads", "n_text_layers", "n_text_heads"), 1)
    sizes = {"n_mels": 80, "n_audio_ctx": 30, "n_text_ctx": 20, "d_model": 8, "d_vocab": 51864}
    return make_model(HookedWhisperConfig(**sizes, **one))


@pytest.fixture
def works(
    fresh_model: Any,
    speaking_model: Any,
    pair: Any,
    monkeypatch: pytest.MonkeyPatch,
    without_shape_checks: None,
) -> dict[str, Work]:
    """Studies leave out pictures, which take most of a small one's time."""
    monkeypatch.setattr("hooked_whisper.study.report._picture", lambda *_: "data:,")
    return make_works(fresh_model, speaking_model, pair)


@SOME_KILLS
@pytest.mark.parametrize(
    "name",
    ["training", "suite", "features", "attention", pytest.param("study", marks=pytest.mark.slow)],
)
def test_kills(name: str, n_kills: int, works: dict[str, Work], tmp_path: Path) -> None:
    work = works[name]
    check_kills(work.run, work.look, work.contents, tmp_path, n_kills)


# A disk that is full


@pytest.fixture(scope="module")
def _mounts() -> None:
    """Skips where a process may not have a file system of its own."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(lambda: mount(Path(folder), 2**20))
        try:
            if child.wait():
                pytest.skip("this machine refuses to mount a tmpfs in a namespace of one's own")
        finally:
            child.end()


def mount(folder: Path, n_bytes: int) -> None:
    """Have a disk of so many bytes in a folder, for this process alone, and until it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts, private, recursive = 0x10000000, 0x00020000, 1 << 18, 1 << 14
    if libc.unshare(new_mounts) and libc.unshare(new_mounts | new_user):
        raise OSError(ctypes.get_errno(), "unshare")
    libc.mount(None, b"/", None, private | recursive, None)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={n_bytes}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def fill(disk: Path, left: int) -> Path:
    """Write a file that leaves so many bytes, in whole pages."""
    state = os.statvfs(disk)
    path = disk / "filling"
    with path.open("wb") as file:
        file.write(bytes(max(0, state.f_bavail * state.f_bsize - left)))
    return path


def refusal(run: Callable[[], object], says: str) -> int:
    """1 where the package's own error says what is wrong; 0 where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # at the end of a training: its checkpoint too
            run()
    except HookedWhisperError as error:
        assert says in str(error) and len(str(error)) < 600, error
        return 1
    return 0


DISKS = [
    "harvest",
    "training",
    "suite",
    "sweep",
    "greedy",
    "judging",
    "cache",
    "features",
    "attention",
    "study again",
]


SHARES = [(0.0, 0.6), pytest.param((0.0, 0.2, 0.4, 0.6, 0.8), marks=pytest.mark.slow)]
"""Room on the disk, in shares of what the work needs."""


@pytest.mark.parametrize("shares", SHARES, ids=["twice", "often"])
@pytest.mark.parametrize("name", DISKS)
def test_a_full_disk(
    name: str,
    shares: tuple[float, ...],
    works: dict[str, Work],
    tmp_path: Path,
    in_child: Callable[..., Child],
    _mounts: None,
) -> None:
    """However much room there was: what was there stays, and with more room it goes on."""
    work = works[name]
    disk = tmp_path / "disk"
    disk.mkdir()

    def run() -> None:
        mount(disk, 2**24)
        whole = disk / "whole"
        whole.mkdir()
        work.run(whole)
        expected = work.contents(whole)
        needed = sum(path.stat().st_blocks * 512 for path in whole.rglob("*"))
        n_refused = 0
        for share in shares:
            folder = disk / f"{share}"
            folder.mkdir()
            filling = fill(disk, int(share * needed))
            n_refused += refusal(lambda folder=folder: work.run(folder), "No space left on device")
            work.look(folder)
            refusal(lambda: work.run(whole), "No space left on device")
            work.look(whole)
            assert work.contents(whole) == expected
            filling.unlink()
            work.run(folder)
            assert work.contents(folder) == expected
            shutil.rmtree(folder)
        assert n_refused >= len(shares) - 1

    assert in_child(run).wait() == 0


# A folder that may not be written


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user can come to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path
        for each in (path, *path.iterdir()):
            each.chmod(0o755)


@pytest.mark.parametrize("name", DISKS)
def test_a_folder_that_may_only_be_read(
    name: str, works: dict[str, Work], open_folder: Path, in_child: Callable[..., Child]
) -> None:
    work, whole, new = works[name], open_folder / "whole", open_folder / "new"

    def run() -> None:
        for folder in (whole, new):
            folder.mkdir()
        work.run(whole)
        expected = work.contents(whole)
        for path in (*whole.rglob("*"), whole, new, open_folder):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.setuid(NOBODY)  # root may write everywhere
        assert refusal(lambda: work.run(new), "Permission denied")
        refusal(lambda: work.run(whole), "Permission denied")
        assert work.contents(whole) == expected and not list(new.iterdir())

    assert in_child(run).wait() == 0
