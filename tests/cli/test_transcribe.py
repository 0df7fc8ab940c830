"""`hooked-whisper transcribe`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import FOLDER

Run = Callable[..., Result]
TWO = FOLDER / "lucas-2-0.flac"


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


def test_json_has_words_and_what_is_really_said(run: Run, folder: Path) -> None:
    Path("list.csv").write_text(f"path,text\n{TWO},two zero\n")
    done = run("transcribe", "list.csv", "--word-timestamps", "--json", "--quiet")
    told = json.loads(done.stdout)
    (recording,) = told["recordings"]
    assert (recording["text"], recording["reference"]) == ("two zero", "two zero")
    two, zero = recording["segments"][0]["words"]
    assert (two["word"], zero["word"]) == (" two", " zero")
    assert 0 <= two["start"] < two["end"] <= zero["start"] < zero["end"] < 1.5


@pytest.mark.parametrize(
    ("form", "begin"),
    [
        ("srt", "1\n00:00:00,000 --> "),
        ("vtt", "WEBVTT\n\n00:00.000 --> "),
        ("tsv", "start\tend\ttext\n0\t"),
        ("json", '{"text": " seven"'),
    ],
)
def test_other_formats(
    run: Run, clip: Path, monkeypatch: pytest.MonkeyPatch, form: str, begin: str
) -> None:
    result = {"text": " seven", "segments": [{"start": 0.0, "end": 1.2, "text": " seven"}]}
    monkeypatch.setattr(HookedWhisper, "transcribe", lambda *_, **__: {**result, "language": "en"})
    done = run("transcribe", clip, "--format", form, "--quiet")
    assert done.stdout.startswith(begin) and "seven" in done.stdout


def test_files_are_written_and_never_lost(run: Run, clip: Path, folder: Path) -> None:
    command = ["transcribe", clip, TWO, "--format", "srt", "--out", "subtitles"]
    done = run(*command)
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert "2 transcripts are in subtitles" in done.stderr
    written = sorted(folder.glob("subtitles/*.srt"))
    assert len(written) == 2 and "two zero" in written[1].read_text()
    written[1].write_text("mine")
    done = run(*command)
    assert done.exit_code == 1 and "exists. Name another --out" in done.stderr
    assert written[1].read_text() == "mine"
    assert run(*command, "--overwrite").exit_code == 0
    assert "two zero" in written[1].read_text()


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
