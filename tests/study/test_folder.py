"""An earlier report stays until the new one is done, whatever stops it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hooked_whisper.errors import ReportError, StoreBusyError
from hooked_whisper.io import write_whole
from hooked_whisper.study import Study, study
from hooked_whisper.study import folder as folders
from hooked_whisper.study.folder import UNFINISHED, study_folder

from ..kills import SOME_KILLS, check_kills, files

OPTIONS: dict[str, Any] = {"n_latents": 16, "k": 4, "n_vectors": 64, "progress": False}
TRAINED = ("activations", "sae")
PIECES = ("sae/cfg.json", "sae/weights", "pictures/a.png", "features.html", "report.html")


def write(place: Path, text: str, *more: str) -> None:
    """All that a study leaves, with report.json at the end."""
    for name in (*PIECES, *more, "report.json"):
        path = place / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, lambda file: file.write(text.encode()))


def make(folder: Path, text: str) -> None:
    """The new one has no page of attention."""
    with study_folder(folder, TRAINED, overwrite=text == "new") as place:
        write(place, text, f"pictures/{text}.png", *["attention.html"] * (text == "old"))


def expected(text: str) -> dict[str, bytes]:
    return dict.fromkeys((*PIECES, "report.json", f"pictures/{text}.png"), text.encode())


@pytest.mark.parametrize("step", ["listening", "pages", "numbers"])
def test_what_breaks_off_leaves_the_earlier_one_and_goes_on(
    step: str, small_model: Any, noise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(small_model, noise[:2], tmp_path, **OPTIONS)
    (tmp_path / "notes.txt").write_text("the user's own")
    earlier = files(tmp_path)
    places = {
        "listening": "run.run_windows",
        "pages": "run.feature_page",
        "numbers": "run.write_json",
    }

    def broken_off(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"hooked_whisper.study.{places[step]}", broken_off)
        with pytest.raises(KeyboardInterrupt):
            study(small_model, noise, tmp_path, overwrite=True, **OPTIONS)
    left = files(tmp_path)
    assert {name: left[name] for name in left if not name.startswith(UNFINISHED)} == earlier
    assert Study(tmp_path, [], [], {}).to_dict()["n_recordings"] == 2
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*.safetensors")}
    assert bool(shards) == (step != "listening")
    again = study(small_model, noise, tmp_path, overwrite=True, keep_activations=True, **OPTIONS)
    assert again.to_dict()["n_recordings"] == 3
    for path, stamp in shards.items():  # it went on with what there was
        assert (tmp_path / "activations" / path.name).stat().st_mtime_ns == stamp
    assert not (tmp_path / UNFINISHED).exists()
    assert (tmp_path / "notes.txt").read_text() == "the user's own"
    assert not any(UNFINISHED.encode() in content for content in files(tmp_path).values())


def test_nothing_is_left_to_be_removed_once_it_is_done(
    small_model: Any, noise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill behind the numbers would leave it for ever: the study is not made again."""
    done: list[bool] = []

    def remove(*paths: Path) -> None:
        done.extend((tmp_path / folders.NUMBERS).exists() for _ in paths)
        folders.remove(*paths)

    monkeypatch.setattr("hooked_whisper.study.run.remove", remove)
    study(small_model, noise, tmp_path, **OPTIONS)
    assert done == [False, False]  # the checkpoint and the activations
    assert not list(tmp_path.rglob("checkpoint*")) and not (tmp_path / "activations").exists()


@pytest.mark.parametrize("n_moves", range(9))
def test_a_move_that_breaks_off_goes_on(
    n_moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a call that makes no new one: what is there is never of two studies."""
    make(tmp_path, "old")
    n_done = 0

    def replace(old: Path, new: Path) -> None:
        nonlocal n_done
        if n_done == n_moves:
            raise KeyboardInterrupt
        n_done += 1
        Path(old).replace(new)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "os", SimpleNamespace(replace=replace))
        if n_moves < 8:
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path, "new")
        else:
            make(tmp_path, "new")
    with pytest.raises(ReportError, match="of another run"):
        make(tmp_path, "old")
    assert files(tmp_path) == expected("new")


@SOME_KILLS
def test_kills_while_an_earlier_report_is_replaced(n_kills: int, tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        if not (folder / "report.json").exists():
            make(folder, "old")
        make(folder, "new")

    def look(folder: Path) -> None:
        texts = {content for name, content in files(folder).items() if name in PIECES}
        assert texts <= {b"old", b"new"}
        if (folder / "report.json").exists():
            assert set(files(folder)) >= {"report.html", "features.html", "report.json"}

    check_kills(work, look, files, tmp_path, n_kills)


def test_an_autoencoder_that_is_given_leaves_the_earlier_one(tmp_path: Path) -> None:
    """It may be that one; what an interrupted training left does not take its place."""
    make(tmp_path, "old")
    with pytest.raises(KeyError), study_folder(tmp_path, TRAINED, overwrite=True) as place:
        write(place, "half")
        (place / "report.json").unlink()
        raise KeyError
    with study_folder(tmp_path, (), overwrite=True) as place:
        for name in ("report.html", "report.json"):
            (place / name).write_text("new")
    assert files(tmp_path)["sae/weights"] == b"old"
    assert files(tmp_path)["report.html"] == files(tmp_path)["report.json"] == b"new"


def test_what_the_new_one_does_not_leave_is_gone(tmp_path: Path) -> None:
    with study_folder(tmp_path, TRAINED, overwrite=False) as place:
        write(place, "old", "activations/shard")
    make(tmp_path, "new")
    assert files(tmp_path) == expected("new")


def test_a_folder_has_one_study_at_a_time(tmp_path: Path) -> None:
    with study_folder(tmp_path, TRAINED, overwrite=False):
        with (
            pytest.raises(StoreBusyError, match="another study writes into"),
            study_folder(tmp_path, TRAINED, overwrite=True),
        ):
            pass


def test_what_one_that_broke_off_left_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyError), study_folder(tmp_path, TRAINED, overwrite=False) as place:
        write(place, "old", "attention.html")
        (place / "report.json").unlink()
        raise KeyError
    with study_folder(tmp_path, TRAINED, overwrite=False) as place:
        assert set(files(place)) == {"sae/cfg.json", "sae/weights"}  # it goes on with these


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "hooked_whisper.study/1"}', None])
def test_numbers_that_are_damaged_are_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(ReportError, match=r"report\.json .*overwrite=True") as caught:
        Study(tmp_path, [], [], {}).to_dict()
    assert len(str(caught.value)) < 600
