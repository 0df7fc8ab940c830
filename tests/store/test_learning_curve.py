"""A learning curve: the same autoencoder on more and more sound, judged on the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from hooked_whisper.cli.main import main
from hooked_whisper.data import Recording
from hooked_whisper.errors import StoreError, TrainingError
from hooked_whisper.sae import LearningCurve, TopKConfig, TrainingConfig, learning_curve, train_sae
from hooked_whisper.store import ActivationStore, Epochs, harvest

SITE = "encoder.blocks.0.hook_resid_post"
CFG = TrainingConfig(
    TopKConfig(d_in=24, d_sae=48, k=4, hook_name=SITE), n_vectors=600, batch_size=64, lr=1e-2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curve") / "store"


@pytest.fixture
def source(tiny_model: Any, clips: Path, folder: Path) -> Epochs:
    if not folder.exists():
        recordings = [Recording(path.name, str(path)) for path in sorted(clips.iterdir())]
        harvest(tiny_model, recordings, SITE, folder, dtype="fp32", n_workers=0)
    return Epochs(ActivationStore(folder), held_out=0.25)


def test_each_point_is_its_own_training(source: Epochs, tmp_path: Path, shown: Any) -> None:
    found = learning_curve(CFG, source, [source.minutes, 0.03], progress=False)
    few, every = found.points
    for point in (few, every):
        part = source.of_minutes(point["minutes"] or 0)
        sae = train_sae(CFG, part, progress=False)
        held_out = part.held_out([SITE])
        assert held_out is not None
        x = held_out[SITE]
        with torch.no_grad():
            error = (sae(x) - x).square().sum()
        fvu = float(error / (x - x.mean(0)).square().sum())
        assert point["held_out_fvu"] == pytest.approx(fvu, rel=1e-3)
        assert (point["n_rows"], point["n_vectors"]) == (part.n_rows(SITE), 600)
    assert few["n_rows"] < every["n_rows"]  # type: ignore[operator]
    assert few["held_out_fvu"] > every["held_out_fvu"]  # type: ignore[operator]
    earlier = tmp_path / "earlier.json"
    earlier.write_text("good")
    (tmp_path / "curve.json").hardlink_to(earlier)
    found.save(tmp_path / "curve.json")
    assert earlier.read_text() == "good"  # not written into, but replaced
    assert json.loads((tmp_path / "curve.json").read_text())["points"][1] == dict(every)
    assert list(found.to_dataframe()["minutes"]) == [few["minutes"], every["minutes"]]
    assert "2 amounts of sound" in " ".join(shown(found).words)


def test_the_commands_picture_takes_the_earlier_ones_place(
    source: Epochs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, out = tmp_path / "earlier.png", tmp_path / "curve"
    earlier.write_text("good")
    out.with_suffix(".png").hardlink_to(earlier)
    points: list[dict[str, float | None]] = [
        {"minutes": 1.0, "n_rows": 9, "n_vectors": 9, "fvu": 0.2, "held_out_fvu": 0.3}
    ]
    points[0] |= dict.fromkeys(("held_out_fvu_without_massive", "fvu_without_massive"), 0.1)
    found = LearningCurve(SITE, tuple(points))
    monkeypatch.setattr("hooked_whisper.sae.learning_curve", lambda *_, **__: found)
    given = ["sae", "curve", str(source.store.folder), "--hook", SITE, "--out", str(out)]
    done = CliRunner().invoke(main, [*given, "--k", "4", "--quiet"])
    assert done.exit_code == 0, done.output
    assert earlier.read_text() == "good"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_without_minutes_it_halves_four_times(source: Epochs) -> None:
    found = learning_curve(CFG, source, progress=False)
    wanted = [source.of_minutes(source.minutes / n).minutes for n in (16, 8, 4, 2, 1)]
    assert [point["minutes"] for point in found.points] == wanted


def test_what_has_no_curve_is_refused(source: Epochs) -> None:
    with pytest.raises(TrainingError, match="nothing is held out, and the curve is of held-out"):
        learning_curve(CFG, Epochs(source.store), progress=False)
    with pytest.raises(StoreError, match="the recordings to train on have"):
        learning_curve(CFG, source, [1000], progress=False)
