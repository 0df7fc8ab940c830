"""`hooked-whisper attribute`, `path`, `ablate` and `lens`, and manifests of pairs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
import torch
from click.testing import Result

from hooked_whisper.cli import circuit, effects, pairs
from hooked_whisper.digits import recordings
from hooked_whisper.lenses import EncoderLens, LogitLens
from hooked_whisper.patching import PathEffects, SweepResult

Run = Callable[..., Result]
SAID = {each.text: each.path for each in recordings()}
CLEAN, OTHER = SAID["three one four"], SAID["eight five two"]
CHEAP = ["--hook", "decoder.blocks.3.cross_attn.hook_z", "--quiet"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = SimpleNamespace(savefig=lambda path, **options: None)
    for each in (SweepResult, PathEffects, LogitLens, EncoderLens):
        monkeypatch.setattr(each, "plot", lambda *args, **options: blank)


@pytest.fixture
def manifest(folder: Path) -> Path:
    """Two pairs: silence in place of a word, and another recording."""
    path = folder / "pairs.csv"
    rows = [
        {"path": CLEAN, "text": "three one four", "corrupt": "silence", "corrupt_word": "one"},
        {"path": OTHER, "text": "eight five two", "corrupted": CLEAN, "word": "five"},
    ]
    names = ["path", "text", "corrupt", "corrupt_word", "corrupted", "word"]
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
    return path


def told(done: Result) -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", ["path", pytest.param("attribute", marks=pytest.mark.slow)])
def test_pairs_of_a_manifest_are_each_as_alone(run: Run, manifest: Path, command: str) -> None:
    cheap = CHEAP if command != "path" else ["--quiet"]
    both = told(run(command, manifest, *cheap, "--json", "--out", "both"))
    silent = ["--corrupt", "silence", "--corrupt-word", "one", "--text", "three one four"]
    alone = told(run(command, CLEAN, *silent, *cheap, "--json", "--out", "one"))
    pair, other = both["pairs"]
    assert pair["measures"] == alone["measures"] and pair["corrupted"] == alone["corrupted"]
    assert pair["metric_clean"] == pytest.approx(alone["metric_clean"], abs=1e-3)
    found = [row["effect"] for row in both["patches"] if row["pair"] == 0]
    assert found == pytest.approx([row["effect"] for row in alone["patches"]], abs=1e-4)
    assert other["corrupted"] == CLEAN.name and "measured is ' five'" in other["measures"]
    best = both["best"][0]
    assert best["low"] <= best["effect"] <= best["high"]
    again = [manifest, *cheap, "--top", 2, "--out", "both", "--resume"]
    printed = run(command, *again)
    assert "means of 2 pairs" in printed.stdout and "low" in printed.stdout
    assert len(printed.stdout.splitlines()) == 4


def test_manifests_that_cannot_be(run: Run, folder: Path) -> None:
    path = folder / "pairs.csv"
    for row, message in (
        ("silence,nine,", "the clean text has no word 'nine'"),
        ("music,,", "corrupt is 'music'; it can be silence, noise or swap"),
        (",,", "name a CORRUPTED recording, or give --corrupt"),
        ("silence,,1.0", "give corrupt_start and corrupt_end together"),
    ):
        path.write_text(
            f"path,text,corrupt,corrupt_word,corrupt_start\n{CLEAN},three one four,{row}\n"
        )
        done = run("attribute", path, *CHEAP)
        assert done.exit_code == 1, done.output
        assert f"pair 0, {CLEAN}: " in done.stderr and message in done.stderr
    done = run("patch", path, OTHER, *CHEAP)
    assert done.exit_code == 2 and "names its CORRUPTED recordings in a column" in done.stderr
    done = run("attribute", CLEAN, OTHER, "--along", "sites")
    assert done.exit_code == 2 and "--along is about --steps" in done.stderr


def test_attribute_is_near_the_sweep(run: Run) -> None:
    options = ["--hook", "encoder.blocks.2.hook_resid_post", "--json", "--quiet"]
    near, true = (told(run(name, CLEAN, OTHER, *options)) for name in ("attribute", "patch"))
    found, wanted = (
        torch.tensor([row["effect"] for row in each["patches"]]) for each in (near, true)
    )
    assert (found - wanted).abs().max() < 0.03 and not torch.equal(found, wanted)
    assert {path.name for path in Path("digits-attribute").glob("[!.]*")} == {
        "attribution.csv",
        "attribution.png",
        "attribution.safetensors",
    }


def test_paths_to_what_there_is_not(run: Run) -> None:
    for name in ("nowhere", "decoder.1.attn.2", "decoder.1.attn.2.z", "logits.0"):
        done = run("path", CLEAN, OTHER, "--to", name, "--quiet")
        assert done.exit_code == 1 and f"--to is {name!r}; it can be logits" in done.stderr


def test_ablations_change_the_metric(run: Run) -> None:
    clips = [CLEAN, OTHER]
    zero = told(run("ablate", *clips, *CHEAP, "--json", "--language", "en", "--out", "zero"))
    assert zero["recordings"] == 2 and zero["complete"] and len(zero["ablations"]) == 12
    first = zero["greatest"][0]
    assert first["low"] <= first["change"] <= first["high"]
    by_hand = [row["value"] - row["clean"] for row in zero["ablations"]
               if row["head"] == first["head"]]  # fmt: skip
    assert first["change"] == pytest.approx(sum(by_hand) / 2, abs=1e-4)
    with open("zero/ablation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["recording"]).name for row in rows} == {path.name for path in clips}
    wer = run("ablate", CLEAN, *CHEAP, "--metric", "word-error-rate", "--with", "mean", "--top", 2)
    assert wer.exit_code == 0, wer.output
    assert wer.stdout.startswith("WordErrorRate: 0 of the whole model, 1 recordings")
    resumed = run(
        "ablate", *clips, *CHEAP, "--json", "--language", "en", "--out", "zero", "--resume"
    )
    assert told(resumed) == zero


def test_lenses_end_at_the_model(run: Run) -> None:
    clips = [CLEAN, OTHER]
    found = told(run("lens", *clips, "--json", "--quiet", "--language", "en"))
    assert found["places"][-1]["after"] == "3_post" and found["places"][-1]["first"] == 1.0
    assert found["places"][0]["first"] < 1.0
    assert found["places"][2]["log_prob_low"] <= found["places"][2]["log_prob_high"]
    assert {path.name for path in Path("digits-lens").iterdir()} >= {
        "lens.csv",
        f"{CLEAN.stem}.png",
    }
    found = told(run("lens", CLEAN, "--stack", "encoder", "--json", "--quiet", "--out", "encoder"))
    assert found["places"][-1]["text"] == 1.0 and found["places"][0]["text"] == 0.0
    bare = told(
        run("lens", CLEAN, "--stack", "encoder", "--no-final-ln", "--json", "--quiet", "--out", "b")
    )
    assert bare["places"][-1]["log_prob"] != found["places"][-1]["log_prob"]
    again = run("lens", CLEAN, "--quiet")
    assert again.exit_code == 1 and "digits-lens exists" in again.stderr
    fewer = run("lens", CLEAN, "--quiet", "--overwrite")
    assert fewer.exit_code == 1 and f"holds '{OTHER.stem}.png' of another run" in fewer.stderr
    Path("digits-lens", f"{OTHER.stem}.png").unlink()
    assert run("lens", CLEAN, "--quiet", "--overwrite").exit_code == 0


SWEEPS = {
    "patch": ("hooked_whisper.patching.patch_sweep", "sweep"),
    "attribute": ("hooked_whisper.patching.attribution_patch", "attribution"),
    "ablate": ("hooked_whisper.patching.patch_sweep", "ablation"),
    "path": ("hooked_whisper.patching.path_patch_heads", "paths"),
    "circuit": ("hooked_whisper.circuits.find_circuit", "scores"),
}


@pytest.mark.parametrize("command", SWEEPS)
def test_what_is_overwritten_is_gone_also_where_the_new_run_breaks_off(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Or an earlier run's table would stand beside the unfinished numbers of this one."""
    computing, stem = SWEEPS[command]
    monkeypatch.setattr(computing, Mock(side_effect=KeyboardInterrupt))
    for module in (effects, pairs, circuit):
        monkeypatch.setattr(module, "make_pairs", lambda *_: [MagicMock()])
    monkeypatch.setattr(pairs, "example_of", MagicMock())
    monkeypatch.setattr("hooked_whisper.cli.ablate._metric", MagicMock())
    (folder / "out").mkdir()
    written = [f"{stem}.{ending}" for ending in ("safetensors", "csv", "png")]
    if command == "path":
        written.append("pair-3.safetensors")
    elif command == "circuit":
        written = ["scores.safetensors", "edges.csv", "circuit.json", "circuit.html", "graph.json"]
    for name in [*written, "notes.txt"]:
        (folder / "out" / name).write_text("earlier")
    assert run(command, CLEAN, OTHER, "--overwrite", "--quiet", "--out", "out").exit_code == 130
    assert [path.name for path in (folder / "out").iterdir()] == ["notes.txt"]
