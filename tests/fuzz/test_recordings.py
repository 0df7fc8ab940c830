"""Lists of recordings with anything in them are read, or refused with an error of ours."""

import json
from pathlib import Path
from typing import Any

from hooked_whisper.data import as_recordings
from hooked_whisper.data.windows import each_window, warn_of_skipped

from .mutations import LONGEST, SEEDS, N, Outcomes, of_bytes, of_json, of_json_file

ROWS = [
    {"path": "a.wav", "text": "one two", "speaker": "ann", "words": [[0.0, 0.2, "one"]]},
    {"audio": {"path": "b.wav", "bytes": [1, 2, 3]}, "tokens": [1, 2], "id": "b"},
    {"audio": {"array": [0.0, 0.1], "sampling_rate": 16000}, "language": "de", "n": 3},
    {"file": "c.flac", "tokens": "1 2 3", "text": None},
]


def read(model: Any, source: Any) -> None:
    """Take a list as every function does: what cannot be used is an error, or left out and told."""
    skipped: list[Any] = []
    found = list(as_recordings(source))
    list(each_window(model.cfg, found, skipped))
    assert all(len(reason) <= LONGEST for _, _, reason in skipped)
    warn_of_skipped(skipped, len(found))


def test_rows(tiny_model: Any, without_shape_checks: None, outcomes: Outcomes) -> None:
    for seed in SEEDS:
        outcomes.read(seed, lambda seed=seed: read(tiny_model, of_json(ROWS, seed)))
    assert outcomes["refused"] > N / 3


def test_manifests(
    tiny_model: Any, tmp_path: Path, without_shape_checks: None, outcomes: Outcomes
) -> None:
    lines, table = tmp_path / "list.jsonl", tmp_path / "list.csv"
    text = 'path,text,tokens\na.wav,one,1 2\nb.wav,"two, three",\n'
    for seed in SEEDS:
        rows = [of_json_file(json.dumps(row), seed + i) for i, row in enumerate(ROWS)]
        lines.write_text("\n".join(rows))
        table.write_bytes(of_bytes(text.encode(), seed))
        outcomes.read(seed, lambda: read(tiny_model, lines))
        outcomes.read(seed, lambda: read(tiny_model, table))
    assert outcomes["refused"] > N / 3
