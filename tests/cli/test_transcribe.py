"""`hooked-whisper transcribe`."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from hooked_whisper import HookedWhisper
from hooked_whisper.cli.options import file_names
from hooked_whisper.digits import FOLDER
from hooked_whisper.errors import InputError

Run = Callable[..., Result]
TWO = FOLDER / "lucas-2-0.flac"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What transcribing gives, whatever is said; it takes no time."""
    segment = {"start": 0.0, "end": 1.2, "text": " seven"}
    result = {"text": " seven", "segments": [segment], "language": "en"}
    monkeypatch.setattr(HookedWhisper, "transcribe", lambda *args, **options: result)
    return result


def test_one_recording_is_its_text(run: Run, clip: Path) -> None:
    done = run("transcribe", clip, "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "seven\n", "")


def test_several_have_their_names_and_a_bar(run: Run, clip: Path) -> None:
    done = run("transcribe", clip, TWO)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(Path(name).name, text) for name, text in lines] == [
        (clip.name, "seven"),
        (TWO.name, "two zero"),
    ]
    assert "transcribing: 100%" in done.stderr


def test_json_has_segments_and_what_is_really_said(run: Run, folder: Path) -> None:
    Path("list.csv").write_text(f"path,text\n{TWO},two zero\n")
    done = run("transcribe", "list.csv", "--json", "--quiet")
    told = json.loads(done.stdout)
    (recording,) = told["recordings"]
    assert (recording["text"], recording["reference"]) == ("two zero", "two zero")
    (segment,) = recording["segments"]
    assert segment["text"] == " two zero" and 0 <= segment["start"] < segment["end"] < 3


@pytest.mark.parametrize(
    ("form", "begin"),
    [
        ("srt", "1\n00:00:00,000 --> "),
        ("vtt", "WEBVTT\n\n00:00.000 --> "),
        ("tsv", "start\tend\ttext\n0\t"),
        ("json", '{"text": " seven"'),
    ],
)
def test_other_formats(run: Run, clip: Path, heard: dict[str, Any], form: str, begin: str) -> None:
    done = run("transcribe", clip, "--format", form, "--quiet")
    assert done.stdout.startswith(begin) and "seven" in done.stdout


def test_files_are_written_and_never_lost(
    run: Run, clip: Path, folder: Path, heard: dict[str, Any]
) -> None:
    command = ["transcribe", clip, TWO, "--format", "srt", "--out", "subtitles"]
    done = run(*command)
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert "2 transcripts are in subtitles" in done.stderr
    written = sorted(folder.glob("subtitles/*.srt"))
    assert len(written) == 2 and "seven" in written[1].read_text()
    written[1].write_text("mine")
    done = run(*command)
    assert done.exit_code == 1 and "exists. Name another --out" in done.stderr
    assert written[1].read_text() == "mine"
    assert run(*command, "--overwrite").exit_code == 0
    assert "seven" in written[1].read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no.wav"], 1, "there is no file or folder 'no.wav'"),
        (["--format", "srt"], 2, "srt of 8 recordings needs --out FOLDER"),
        ([TWO, "--language", "klingon"], 1, "klingon"),
    ],
    ids=["file", "together", "language"],
)
def test_what_cannot_be_done(run: Run, arguments: list[str], code: int, message: str) -> None:
    done = run("transcribe", *arguments, "--quiet")
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_two_recordings_of_one_name_are_refused(run: Run, clip: Path, folder: Path) -> None:
    done = run("transcribe", clip, clip, "--out", "texts")
    assert done.exit_code == 1 and "two recordings would both be written to" in done.stderr
    assert not (folder / "texts").exists()


def test_names_of_files() -> None:
    def named(*ids: str) -> list[str]:
        return file_names([SimpleNamespace(id=each) for each in ids], "srt")

    assert named("/a/b.wav", "c.d.flac") == ["b.srt", "c.d.srt"]
    assert named("/a/b.wav", "c/b.wav") == ["a-b.srt", "c-b.srt"]
    with pytest.raises(InputError, match=r"both be written to a-b\.srt"):
        named("a/b.wav", "a/b.flac")
