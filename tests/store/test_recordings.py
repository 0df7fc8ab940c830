"""Recordings from files, folders, manifests and data sets."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hooked_whisper.data import Recording, as_recordings
from hooked_whisper.digits import recordings as digits
from hooked_whisper.errors import RecordingsError


def test_a_folder_is_searched_to_its_depths_in_order(clips: Path, tmp_path: Path) -> None:
    for name in ("b.wav", "a/c.WAV", "a.flac", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(clips / "clip00.wav", path)
    found = as_recordings(tmp_path)
    assert [each.id for each in found] == ["a.flac", "a/c.WAV", "b.wav"]
    assert found.n == 3
    assert [each.id for each in as_recordings([tmp_path, clips / "clip00.wav"])][:2] == [
        "a.flac",
        "a/c.WAV",
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_manifest_brings_labels(tmp_path: Path, kind: str) -> None:
    rows = [
        {"path": "x/one.wav", "speaker": "ann", "text": "one, two", "noise": "0.5"},
        {"path": str(tmp_path / "two.wav"), "speaker": "bob", "text": "", "noise": "1"},
    ]
    path = tmp_path / f"list.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        sign = "," if kind == "csv" else "\t"
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        quoted = [[f'"{field}"' for field in line] for line in lines]
        path.write_text("\n".join(map(sign.join, quoted)))
    first, second = as_recordings(path)
    assert first.audio == str(tmp_path / "x/one.wav")
    assert second.audio == str(tmp_path / "two.wav")
    assert first.id == "x/one.wav"
    assert first.text == "one, two"
    assert first.labels == {"speaker": "ann", "text": "one, two", "noise": "0.5"}


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"clip": "one.wav", "sentence": "one", "id": "A", "tokens": [1, 2]}')
    (found,) = as_recordings(path, text_column="sentence", audio_column="clip")
    assert (found.text, found.id, found.tokens) == ("one", "A", (1, 2))


def test_labels_count_as_a_part_of_the_list() -> None:
    def digest(**labels: Any) -> str | None:
        return as_recordings([Recording("a", "a.wav", labels)]).digest

    assert digest(speaker="ann") == digest(speaker="ann") != digest(speaker="bob")


def test_the_packages_own_digits() -> None:
    first = next(iter(as_recordings(digits())))
    assert first.labels["speaker"] == "jackson"
    assert first.labels["digit"][0][2] == "three"
    assert first.text == "three one four"


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "name,speaker\na.wav,ann\n", "line 2 has ['name', 'speaker'], none of which"),
        ("a.csv", "path,speaker\na.wav\n", "line 2 has more or fewer fields"),
        ("a.csv", "", "there are no recordings in"),
        ("a.jsonl", '{"path": "a.wav"}\n{"path"', "line 2 is no JSON"),
        ("a.jsonl", "[1]", "line 1 is [1]; each line is an object"),
        ("a.jsonl", '{"path": "a.wav", "text": 3}', "the text is 3; it must be a string"),
        ("a.jsonl", '{"path": "a.wav", "tokens": ["x"]}', "the tokens are ['x']"),
        ("a.jsonl", '{"path": 3}', "line 1: the audio is a int"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RecordingsError, match=re.escape(match)):
        as_recordings(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("no/such/folder", "there is no file or folder 'no/such/folder'"),
        ([], "there are no recordings in the list"),
        ([3], "item 0 is a int, no recording"),
        (3, "a int holds no recordings"),
    ],
    ids=["path", "empty", "item", "number"],
)
def test_what_holds_no_recordings(source: Any, match: str) -> None:
    with pytest.raises(RecordingsError, match=match):
        as_recordings(source)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordingsError, match=r"there are no recordings in .*searched for .*.aif"):
        as_recordings(tmp_path)


@pytest.fixture
def dataset(clips: Path) -> Any:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    paths = [str(path) for path in sorted(clips.iterdir())[:6]]
    found = datasets.Dataset.from_dict({"sound": paths, "speaker": list("abcabc")})
    return found.cast_column("sound", datasets.Audio())


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_a_data_set_gives_the_rows_of_its_files(
    small_harvest: Any, clips: Path, tmp_path: Path, dataset: Any, streamed: bool
) -> None:
    from hooked_whisper.store import ActivationStore

    source = dataset.to_iterable_dataset() if streamed else dataset
    store: ActivationStore = small_harvest(source, tmp_path / "data set")
    files = small_harvest(sorted(clips.iterdir())[:6], tmp_path / "files")
    name = store.hook_names[0]
    assert (store.rows(name, slice(None))[name] == files.rows(name, slice(None))[name]).all()
    assert [entry.labels["speaker"] for entry in store.recordings()] == list("abcabc")
    small_harvest(source, tmp_path / "data set")  # the same harvest goes on


def test_bytes_of_a_file_are_read_like_the_file(
    small_harvest: Any, clips: Path, tmp_path: Path
) -> None:
    path = clips / "clip09.wav"
    rows = [{"audio": {"bytes": path.read_bytes(), "path": None}}, {"audio": {"bytes": b"no"}}]
    store = small_harvest(rows, tmp_path / "bytes")
    name = store.hook_names[0]
    file = small_harvest(path, tmp_path / "file")
    assert (store.rows(name, slice(None))[name] == file.rows(name, slice(None))[name]).all()
    assert "2 bytes cannot be read as audio" in store.skipped[0]["reason"]
    assert soundfile.info(path).frames == 1600 + 320 * 9


def test_arrays_are_told_apart_by_their_samples(small_harvest: Any, tmp_path: Path) -> None:
    from hooked_whisper.errors import StoreMismatchError

    sound = np.ones(4000, np.float32)
    small_harvest([(sound, 16_000)], tmp_path / "store")
    with pytest.raises(StoreMismatchError, match="is another file than"):
        small_harvest([(sound / 2, 16_000)], tmp_path / "store")


def test_it_is_played_with_what_is_known_of_it(shown: Callable[[Any], Any]) -> None:
    (recording,) = as_recordings(digits()[:1])
    found = shown(recording)
    (sound,) = found.all("audio")
    assert sound["src"].startswith("data:audio/mpeg;base64,")
    assert "jackson-3-1-4.flac 3.20 s" in found.text and "can be played" not in found.text
    assert ["text", "three one four"] in found.rows and ["speaker", "jackson"] in found.rows


def test_the_bytes_of_a_file_are_played_like_the_file(shown: Callable[[Any], Any]) -> None:
    path = digits()[0].path
    sounds = [shown(Recording("a", audio)).all("audio") for audio in (path, path.read_bytes())]
    assert sounds[0] == sounds[1] and len(sounds[0]) == 1
    found = shown(Recording("a", b"nothing", {"array": np.zeros(2), "empty": ""}))
    assert "It cannot be played: audio of 7 bytes cannot be read as audio" in found.text
    assert found.rows == [["array", "[0. 0.]"]]


def test_only_the_beginning_of_what_is_long_is_played(shown: Callable[[Any], Any]) -> None:
    long = Recording("<b>", (np.zeros(90 * 16_000, np.float32), 16_000), {"<i>": "</td>"})
    found = shown(long)
    assert "<b> 90.00 s, of which the first 60 s can be played" in found.text
    assert len(found.all("audio")[0]["src"]) < 450_000
    assert found.rows == [["<i>", "</td>"]]
    assert repr(long) == "Recording(id='<b>', labels={'<i>': '</td>'}, text=None, tokens=None)"


def test_what_cannot_be_played_says_why(tmp_path: Path, shown: Callable[[Any], Any]) -> None:
    found = shown(Recording("gone", str(tmp_path / "gone.wav"), text="hello"))
    assert "It cannot be played: there is no file" in found.text and not found.all("audio")
    assert found.rows == [["text", "hello"]]
