"""The suite of real Whisper, made and judged small: the digits model in its place."""

import csv
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import hooked_whisper
from hooked_whisper.digits import recordings

ROOT = Path(__file__).parents[2]
HOOKS = ["encoder.blocks.1.*", "decoder.blocks.1.*", "encoder.ln_final.*"]
SIZES = "--latents 40 --decoder-latents 40 --vectors 2048 --decoder-vectors 256 --seeds 2".split()
OUTPUT = "encoder.ln_final.hook_normalized"


def write_clips(folder: Path) -> None:
    """Twelve clips of three people who, as far as this goes, each speak four times."""
    folder.mkdir(parents=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "speaker", "text"])
        for i in range(12):
            each = recordings()[i % 8]
            name = f"{i}{Path(each.path).suffix}"
            shutil.copy(each.path, folder / name)
            rows.writerow([name, "abc"[i % 3], each.text])


@pytest.mark.slow
def test_it_is_made_judged_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path / "speech/sentences")
    model = Path(hooked_whisper.__file__).parent / "weights/digits"
    where = ["--model", str(model), "--speech", str(tmp_path / "speech")]
    chosen = ["--architectures", "topk", "relu", "transcoder", *SIZES, "--spliced-each", "1"]
    chosen += ["--hooks", *HOOKS]
    argv = ["suite", *where, *chosen, "--out", str(tmp_path / "kept"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    suite: Any = importlib.import_module("suite_tiny_en")
    suite.main()
    assert "splicing topk" in capsys.readouterr().out
    written = (tmp_path / "kept/results.json").read_text()
    results = json.loads(written)
    found = results["found"]
    assert results["about"]["held_out"] == ["c"]
    told = {place.split("/")[1] for place in found if place.startswith("phones/")}
    trained = {"topk", "relu", "transcoder"}
    assert told == trained | {"dimensions", "components", "neurons", "untrained"}
    assert f"spliced/relu/{OUTPUT}" in found and f"seeds/topk/0-1/{OUTPUT}" in found

    suite.main()  # everything is there already
    assert "splicing" not in capsys.readouterr().out
    assert (tmp_path / "kept/results.json").read_text() == written

    page: Any = importlib.import_module("make_suite_page")
    for name, make in page.TABLES.items():
        rows = make(found).splitlines()
        assert len(rows) > 2 and len({row.count("|") for row in rows}) == 1, name
    for draw in page.FIGURES.values():
        assert draw(found).axes


def test_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    suite: Any = importlib.import_module("suite_tiny_en")
    monkeypatch.setattr(sys, "argv", ["suite", "--model", str(tmp_path / "tiny.en.pt")])
    with pytest.raises(SystemExit, match=r"there are no weights in .*tiny\.en\.pt"):
        suite.main()
    (tmp_path / "tiny.en.pt").touch()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--speech", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"there is no .*sentences/manifest\.csv"):
        suite.main()
