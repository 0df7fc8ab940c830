"""`hooked-whisper heads`: found on the recordings that come with the package, in each form."""

import json
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.digits import recordings


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("heads") / "labels.jsonl"
    rows = [
        {
            "path": str(each.path),
            "text": each.text,
            "words": [[word.start_s, word.end_s, word.word] for word in each.words],
        }
        for each in recordings()[:3]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_heads_are_found_printed_and_written(run: Any, listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    done = run("heads", listed, "--json", "--quiet", "--out", out)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text()) and found["times"] == "labels"
    assert found["n_words"] == sum(len(each.words) for each in recordings()[:3])
    assert found["alignment_heads"] and found["error_s"] < 0.35

    again = run("heads", listed, "--quiet", "--out", out)
    assert again.exit_code == 1 and "exists. Name another --out" in again.stderr
    listing = run("heads", listed, "--quiet", "--format", "huggingface")
    assert json.loads(listing.stdout) == {"alignment_heads": found["alignment_heads"]}
    table = run("heads", listed, "--quiet").stdout
    assert table.count("*") == len(found["alignment_heads"])
