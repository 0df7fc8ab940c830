"""Lists of recordings with anything in them are read, or refused with an error of ours."""

import json
from pathlib import Path
from typing import Any

from hooked_whisper.data import as_recordings
from hooked_whisper.data.windows import each_window
from hooked_whisper.errors import HookedWhisperError

from .mutations import N, of_bytes, of_json, of_json_file

ROWS = [
    {"path": "a.wav", "text": "one two", "speaker": "ann", "words": [[0.0, 0.2, "one"]]},
    {"audio": {"path": "b.wav", "bytes": [1, 2, 3]}, "tokens": [1, 2], "id": "b"},
    {"audio": {"array": [0.0, 0.1], "sampling_rate": 16000}, "language": "de", "n": 3},
    {"file": "c.flac", "tokens": "1 2 3", "text": None},
]


def read(model: Any, source: Any) -> str:
    """What comes of it: `"refused"`, `"skipped"`, or `"read"`."""
    try:
        found = list(as_recordings(source))
    except HookedWhisperError as error:
        assert len(str(error)) < 1000, str(error)
        return "refused"
    skipped: list[Any] = []
    windows = list(each_window(model.cfg, found, skipped))
    assert all(len(reason) <= 600 for _, _, reason in skipped)
    return "read" if windows else "skipped"


def test_rows(tiny_model: Any, without_shape_checks: None) -> None:
    outcomes = {read(tiny_model, of_json(ROWS, seed)) for seed in range(N)}
    assert outcomes >= {"refused", "skipped"}


def test_manifests(tiny_model: Any, tmp_path: Path, without_shape_checks: None) -> None:
    lines, table = tmp_path / "list.jsonl", tmp_path / "list.csv"
    text = 'path,text,tokens\na.wav,one,1 2\nb.wav,"two, three",\n'
    outcomes = set()
    for seed in range(N):
        rows = [of_json_file(json.dumps(row), seed + i) for i, row in enumerate(ROWS)]
        lines.write_text("\n".join(rows))
        table.write_bytes(of_bytes(text.encode(), seed))
        outcomes |= {read(tiny_model, lines), read(tiny_model, table)}
    assert outcomes >= {"refused", "skipped"}
