"""`hooked-whisper labels`: a manifest with the times of words and phones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from hooked_whisper.data import as_recordings

Run = Callable[..., Result]
DATA = Path(__file__).parents[1] / "data"
TEXT = "Their neighbour chose a pair of shoes under the bridge."


@pytest.fixture
def listed(folder: Path) -> Path:
    """A manifest of one synthetic sentence."""
    path = folder / "list.csv"
    audio = DATA / "espeak-00-0017.flac"
    path.write_text(f"path,text\n{audio},{TEXT}\n", encoding="utf-8")
    return path


def test_words_of_the_model_are_written(run: Run, clip: Path, folder: Path) -> None:
    done = run("labels", clip, "--words", "--out", "words.jsonl", "--quiet", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["manifest"] == "words.jsonl"
    (found,) = as_recordings(folder / "words.jsonl")
    assert "word" in found.labels and found.text is not None


def test_phones_are_written_and_a_dictionary_is_read(run: Run, listed: Path, folder: Path) -> None:
    pytest.importorskip("pocketsphinx", reason="needs the extra `labels`")
    (folder / "more.dict").write_text(";;; mine\nbridge B R IY1 JH\n", encoding="utf-8")
    done = run("labels", listed, "--phones", "--dictionary", "more.dict", "--out", "a.jsonl")
    assert done.exit_code == 0, done.output
    (found,) = as_recordings(folder / "a.jsonl")
    assert [phone for *_, phone in found.labels["phone"]][-4:] == ["B", "R", "IY", "JH"]
    again = run("labels", listed, "--phones", "--out", "a.jsonl")
    assert again.exit_code == 1 and "a.jsonl exists" in again.stderr


def test_files_of_alignments_are_read_and_what_has_none_is_told(
    run: Run, listed: Path, folder: Path, clip: Path
) -> None:
    done = run("labels", listed, clip, "--from", DATA, "--out", "b.jsonl")
    assert done.exit_code == 0, done.output
    assert "1 of 2 recordings cannot be labelled: " in done.stderr
    first, second = as_recordings(folder / "b.jsonl")
    assert len(first.labels["word"]) == 10 and "word" not in second.labels


@pytest.mark.parametrize(
    ("options", "told"),
    [([], "pass --words, --phones or --from"), (["--words", "--dictionary", "x"], "for --phones")],
    ids=["nothing to do", "a dictionary for nothing"],
)
def test_what_makes_no_sense_is_refused(
    run: Run, clip: Path, options: list[str], told: str
) -> None:
    done = run("labels", clip, *options)
    assert done.exit_code == 2 and told in done.stderr
