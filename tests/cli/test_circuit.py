"""`hooked-whisper circuit`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from hooked_whisper.circuits import Circuit, EdgeScores
from hooked_whisper.digits import recordings

Run = Callable[..., Result]
CLEAN, CORRUPTED, SEVEN = (each.path for each in recordings()[:3])
FILES = {
    *("scores.safetensors", "edges.csv", "circuit.json", "circuit.png", "circuit.html"),
    "graph.json",
}
CHEAP = ["--method", "eap", "--edges", "30", "--quiet"]


def write_manifest(rows: list[dict[str, Any]]) -> Path:
    with open("pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Path("pairs.csv")


@pytest.mark.slow
def test_pairs_of_a_manifest(run: Run, folder: Path) -> None:
    manifest = write_manifest(
        [
            {"path": CLEAN, "text": "three one four", "corrupted": CORRUPTED, "corrupt": ""},
            {"path": SEVEN, "text": "seven", "corrupted": "", "corrupt": "noise"},
        ]
    )
    done = run("circuit", manifest, *CHEAP, "--json", "--out", "mine")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [pair["corrupted"] for pair in told["pairs"]] == [CORRUPTED.name, "noise"]
    assert told["metric_clean"] > told["metric_corrupted"] and 0 < len(told["edges"]) <= 30
    assert {path.name for path in (folder / "mine").glob("[!.]*")} == FILES
    scores = EdgeScores.load("mine/scores.safetensors")
    assert scores.values.shape == (2, 4585) and scores.method == "eap"
    circuit = Circuit.load("mine/circuit.json")
    assert [str(edge) for edge in circuit] == sorted(
        (each["edge"] for each in told["edges"]), key=[str(e) for e in circuit.graph.edges].index
    )
    graph = json.loads(Path("mine/graph.json").read_text())
    assert set(graph) == {"metadata", "qParams", "nodes", "links"}
    assert "jackson-3-1-4" in Path("mine/circuit.html").read_text()
    # Nothing is lost by another call; with --resume nothing is computed again.
    again = run("circuit", manifest, *CHEAP, "--out", "mine")
    assert again.exit_code == 1 and "mine exists" in again.stderr
    more = run("circuit", manifest, *CHEAP, "--out", "mine", "--resume", "--top", "3")
    assert more.exit_code == 0, more.output
    head, kept, *table = more.stdout.splitlines()
    assert head.startswith("LogitDifference: ") and "of the difference by themselves" in kept
    assert len(table) == 4 and table[0].split() == ["edge", "score"]


@pytest.fixture
def _no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise SystemExit(99)

    monkeypatch.setattr("hooked_whisper.circuits.find_circuit", stop)


@pytest.mark.usefixtures("_no_run")
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"corrupt": "", "corrupted": ""}, "pair 1, .*: name a CORRUPTED recording"),
        ({"corrupt": "swap", "corrupted": ""}, "pair 1, .*: --corrupt swap takes"),
        ({"corrupt": "noise", "corrupted": "", "at": "soon"}, "pair 1, .* is no number"),
        ({"corrupted": "nowhere.wav", "corrupt": ""}, "pair 1, .*nowhere.wav"),
    ],
)
def test_a_row_that_is_no_pair(run: Run, row: dict[str, str], message: str) -> None:
    good = {"path": SEVEN, "text": "seven", "corrupted": CLEAN, "corrupt": "", "at": ""}
    manifest = write_manifest([good, {**good, **row}])
    done = run("circuit", manifest, "--quiet")
    assert done.exit_code == 1
    pytest.importorskip("re").search(message, done.stderr) or pytest.fail(done.stderr)


def test_unfinished_scores_say_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished = SimpleNamespace(complete=False)
    monkeypatch.setattr("hooked_whisper.circuits.find_circuit", lambda *a, **o: unfinished)
    done = run("circuit", SEVEN, "--corrupt", "silence", "--text", "seven", "--quiet")
    assert done.exit_code == 130 and "--resume" in done.stderr
