"""Nothing is lost: kills, full disks, missing permissions, two at once, bad recordings."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hooked_whisper.errors import (
    RecordingsError,
    StoreBusyError,
    StoreError,
    StoreMismatchError,
    StoreWriteError,
)
from hooked_whisper.io import lock_folder, write_whole
from hooked_whisper.store import ActivationStore, verify_store

from ..kills import SOME_KILLS, check_kills, whole_store
from ..processes import Child

Harvest = Callable[..., ActivationStore]
Fork = Callable[[Callable[[], object]], Child]
Contents = Callable[[Path], dict[str, bytes]]


@SOME_KILLS
def test_kills_leave_no_trace(
    n_kills: int,
    small_harvest: Harvest,
    clips: Path,
    ram_path: Path,
    contents_of: Contents,
    without_shape_checks: None,
) -> None:
    """Byte for byte, and without a file more."""

    def work(folder: Path) -> None:
        small_harvest(clips, folder, batch_size=1, recordings_per_shard=1)

    check_kills(work, whole_store, contents_of, ram_path, n_kills)


def test_an_interruption_in_the_middle_of_a_pass_leaves_the_same_store(
    small_harvest: Harvest,
    clips: Path,
    tmp_path: Path,
    contents_of: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hooked_whisper.store import shard_writer

    real, passes = shard_writer.collect_rows, []

    def interrupted(*args: Any, **options: Any) -> Any:
        passes.append(1)
        if len(passes) == 8:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "collect_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small_harvest(clips, tmp_path / "broken")
    with pytest.raises(StoreError, match="not complete"):
        ActivationStore(tmp_path / "broken")
    small_harvest(clips, tmp_path / "broken")
    small_harvest(clips, tmp_path / "whole")
    assert contents_of(tmp_path / "broken") == contents_of(tmp_path / "whole")


def test_workers_make_the_same_store(
    small_harvest: Harvest, clips: Path, tmp_path: Path, contents_of: Contents
) -> None:
    small_harvest(clips, tmp_path / "none")
    small_harvest(clips, tmp_path / "two", n_workers=2)
    assert contents_of(tmp_path / "two") == contents_of(tmp_path / "none")


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_says_so_and_the_next_run_goes_on(
    small_harvest: Harvest, clips: Path, tmp_path: Path, contents_of: Contents
) -> None:
    small_harvest(clips, tmp_path / "whole")
    sizes = [path.stat().st_size for path in sorted((tmp_path / "whole").glob("*.safetensors"))]
    with (
        largest_file(sizes[2]),
        pytest.raises(
            StoreWriteError, match="do the same again: what is on the disk already is whole"
        ),
    ):
        small_harvest(clips, tmp_path / "broken")
    assert {path.name for path in (tmp_path / "broken").glob("shard*")} == {
        f"shard-00000{number}.{kind}" for number in range(3) for kind in ("json", "safetensors")
    }
    small_harvest(clips, tmp_path / "broken")
    assert contents_of(tmp_path / "broken") == contents_of(tmp_path / "whole")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with pytest.raises(StoreWriteError, match=r"No space left on device.*Free some space"):
        write_whole(path, lambda file: Path("/dev/full").write_bytes(b"1"))
    with largest_file(100), pytest.raises(StoreWriteError, match=r"File too large.*Free some"):
        write_whole(path, lambda file: file.write(b"1" * 10_000))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written(
    small_harvest: Harvest, clips: Path, tmp_path: Path, in_child: Fork
) -> None:
    def run() -> None:
        tmp_path.chmod(0o555)
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        with pytest.raises(StoreWriteError, match=r"Permission denied.*you may write to"):
            small_harvest([(np.zeros(8000), 16_000)], tmp_path / "store")

    assert in_child(run).wait() == 0
    tmp_path.chmod(0o755)


def test_a_file_in_the_folders_place(small_harvest: Harvest, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreWriteError, match="File exists"):
        small_harvest(clips, tmp_path / "store")


def test_a_second_harvest_at_the_same_time(
    small_harvest: Harvest, clips: Path, tmp_path: Path, in_child: Fork
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()

    def second() -> None:
        with pytest.raises(StoreBusyError, match="another harvest writes into"):
            small_harvest(clips, folder)

    with lock_folder(folder):
        second()  # in this process
        assert in_child(second).wait() == 0
    small_harvest(clips, folder)


def copy_clips(clips: Path, folder: Path) -> Path:
    shutil.copytree(clips, folder)
    return folder


def test_bad_recordings_are_skipped_counted_and_listed(
    small_harvest: Harvest, clips: Path, tmp_path: Path
) -> None:
    copied = copy_clips(clips, tmp_path / "clips")
    paths = sorted(copied.iterdir())
    paths[3].unlink()
    paths[7].write_text("no audio")
    soundfile.write(paths[11], [0.0] * 100, 16_000)
    store = small_harvest(paths, tmp_path / "store")
    assert store.n_recordings == 21
    assert [(each["index"], each["id"]) for each in store.skipped] == [
        (number, paths[number].as_posix()) for number in (3, 7, 11)
    ]
    reasons = [each["reason"] for each in store.skipped]
    assert "there is no file" in reasons[0]
    assert "cannot be read as audio" in reasons[1]
    assert "6.25 ms long" in reasons[2]
    with pytest.raises(StoreError, match="was skipped"):
        store.recording(7)


@pytest.mark.parametrize("had_run", [False, True], ids=["at once", "after a lenient run"])
def test_strict_stops_at_a_bad_recording(
    small_harvest: Harvest, clips: Path, tmp_path: Path, had_run: bool
) -> None:
    copied = copy_clips(clips, tmp_path / "clips")
    (copied / "clip07.wav").write_text("no audio")
    if had_run:
        small_harvest(copied, tmp_path / "store")
    with pytest.raises(RecordingsError, match=r"recording 7, 'clip07.wav'.*cannot be read"):
        small_harvest(copied, tmp_path / "store", strict=True)


def test_no_usable_recording_at_all(small_harvest: Harvest, tmp_path: Path) -> None:
    (tmp_path / "one.wav").write_text("no audio")
    with pytest.raises(RecordingsError, match="none of the 1 recordings can be used"):
        small_harvest([tmp_path / "one.wav"], tmp_path / "store")


def test_only_the_damaged_shard_is_made_again(
    small_harvest: Harvest, clips: Path, tmp_path: Path, contents_of: Contents
) -> None:
    folder = tmp_path / "store"
    small_harvest(clips, folder)
    expected = contents_of(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    path = folder / "shard-000002.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert list(verify_store(folder)) == ["shard-000002.safetensors"]
    small_harvest(clips, folder, verify=True)
    assert contents_of(folder) == expected
    assert verify_store(folder) == {}
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"shard-000002.safetensors", "shard-000002.json"}


@pytest.mark.parametrize("what", ["shard-000001.safetensors", "shard-000001.json"])
@pytest.mark.parametrize("how", ["removed", "cut short"])
def test_a_missing_or_cut_file_is_made_again_without_verifying(
    small_harvest: Harvest,
    clips: Path,
    tmp_path: Path,
    contents_of: Contents,
    what: str,
    how: str,
) -> None:
    folder = tmp_path / "store"
    small_harvest(clips, folder)
    expected = contents_of(folder)
    data = (folder / what).read_bytes()
    (folder / what).unlink()
    if how == "cut short":
        (folder / what).write_bytes(data[: len(data) // 2])
    assert list(verify_store(folder)) == [what]
    small_harvest(clips, folder)
    assert contents_of(folder) == expected


def test_another_file_under_a_known_name_is_noticed(
    small_harvest: Harvest, clips: Path, tmp_path: Path
) -> None:
    copied = copy_clips(clips, tmp_path / "clips")
    small_harvest(copied, tmp_path / "store")
    shutil.copy(copied / "clip08.wav", copied / "clip09.wav")
    with pytest.raises(StoreMismatchError, match=r"recording 9, 'clip09.wav', is another file"):
        small_harvest(copied, tmp_path / "store")
