"""kill -9 at any moment: nothing on the disk is broken, and going on comes to the same.

Harvests are in tests/store/test_crash.py, what patching keeps in tests/patching/test_saved.py.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.data import Recording
from hooked_whisper.reports import attention_page, feature_page
from hooked_whisper.sae import BatchTopKConfig, TopKConfig, TrainingConfig, load_sae
from hooked_whisper.sae.training.checkpoint import CHECKPOINT_FILE, read_checkpoint
from hooked_whisper.sae.training.train import train_sae, train_saes
from hooked_whisper.study import study

from .kills import check_kills, files, whole_store

RESID = "encoder.blocks.1.hook_resid_post"


def times(few: int) -> Any:
    """20 kills for `--slow`, which take more than a few seconds, and some for the others."""
    return pytest.mark.parametrize("n", [few, pytest.param(20, marks=pytest.mark.slow)])


@pytest.fixture
def noise() -> list[Recording]:
    """Three recordings of noise, shorter than the tiny model's window."""
    generator = torch.Generator().manual_seed(3)
    return [
        Recording(
            f"noise-{n}",
            (0.1 * torch.randn(n, generator=generator), 16_000),
            labels={"speaker": "ab"[n > 5000]},
            tokens=(1, 2, 3, 4, 5),
        )
        for n in (4000, 6400, 8000)
    ]


# Training


def batches(n: int, *names: str) -> Any:
    """The same n batches for the same names; by name where there are several."""
    for number in range(n):
        x = torch.randn(len(names), 64, 16, generator=torch.Generator().manual_seed(number))
        yield dict(zip(names, x, strict=True)) if len(names) > 1 else x[0]


def whole_training(folder: Path) -> None:
    """Everything of a training that is there can be read."""
    read_checkpoint(folder)
    if (folder / "cfg.json").exists():
        load_sae(folder)


def trained(folder: Path) -> Any:
    """What a training leaves: bytes, and of its checkpoint, whose header has no order, values."""
    found = {}
    for path in sorted(folder.rglob(CHECKPOINT_FILE)):
        tensors, values = read_checkpoint(path.parent) or ({}, {})
        found[str(path.parent.relative_to(folder))] = (
            {name: (value.dtype, value.tolist()) for name, value in tensors.items()},
            values,
        )
    return found, files(folder, CHECKPOINT_FILE)


def test_a_training(tmp_path: Path, without_shape_checks: None) -> None:
    cfg = TrainingConfig(TopKConfig(d_in=16, d_sae=32, k=4), n_steps=20, batch_size=64)

    def work(folder: Path) -> None:
        own = replace(cfg, folder=folder, checkpoint_every=3, log_every=2)
        train_sae(own, batches(20, "a"), resume=True, progress=False)

    check_kills(work, whole_training, trained, tmp_path)


def test_a_suite(tmp_path: Path, without_shape_checks: None) -> None:
    def work(folder: Path) -> None:
        sizes = {"d_in": 16, "d_sae": 32, "k": 4}
        saes = {
            "one": (TopKConfig(**sizes, hook_name="a"), 12),
            "two": (BatchTopKConfig(**sizes, hook_name="b"), 7),
        }
        cfgs = {
            name: TrainingConfig(
                sae,
                n_steps=n,
                batch_size=64,
                folder=folder / name,
                checkpoint_every=3,
                log_every=2,
            )
            for name, (sae, n) in saes.items()
        }
        for cfg in cfgs.values():
            cfg.folder.mkdir(exist_ok=True)
        train_saes(cfgs, batches(12, "a", "b"), resume=True, progress=False)

    def look(folder: Path) -> None:
        for each in folder.iterdir():
            whole_training(each)

    check_kills(work, look, trained, tmp_path)


# A study


@times(4)
def test_a_study(
    n: int,
    fresh_model: Any,
    noise: list[Recording],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_shape_checks: None,
) -> None:
    """Pictures are left out, which take most of a small study's time."""
    monkeypatch.setattr("hooked_whisper.study.report._picture", lambda *_: "data:,")

    def work(folder: Path) -> None:
        options = {"n_latents": 16, "k": 4, "n_vectors": 500, "pages": False, "progress": False}
        if not (folder / "report.json").exists():
            study(fresh_model, noise, folder, **options)

    def look(folder: Path) -> None:
        store, sae = folder / "activations", folder / "sae"
        whole_store(store)
        if sae.exists():
            whole_training(sae)
        if (folder / "report.json").exists():
            json.loads((folder / "report.json").read_text())
            assert (folder / "report.html").read_text().rstrip().endswith("</html>")

    def numbers(folder: Path) -> Any:
        found = json.loads((folder / "report.json").read_text())
        return found["sections"], found["recordings"], trained(folder / "sae")

    check_kills(work, look, numbers, tmp_path, n)


# Pages


def whole_page(folder: Path) -> None:
    """A page is there from its beginning to its end, or not at all."""
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")


@pytest.fixture(scope="module")
def narrow_model(make_model: Callable[..., Any]) -> Any:
    """With Whisper's vocabulary, so that it reads texts, and as little as can be of the rest."""
    cfg = HookedWhisperConfig(
        n_mels=80,
        n_audio_ctx=30,
        n_audio_layers=1,
        n_audio_heads=1,
        n_text_ctx=20,
        n_text_layers=1,
        n_text_heads=1,
        d_model=8,
        d_vocab=51864,
    )
    return make_model(cfg)


def test_a_page_of_features(
    fresh_model: Any, noise: list[Recording], tmp_path: Path, without_shape_checks: None
) -> None:
    def work(folder: Path) -> None:
        options = {"n_clips": 2, "n_effects": 0, "transcribe": False, "progress": False}
        feature_page(fresh_model, None, noise, folder / "features.html", hook_name=RESID, **options)

    check_kills(work, whole_page, files, tmp_path)


def test_a_page_of_attention(
    narrow_model: Any, noise: list[Recording], tmp_path: Path, without_shape_checks: None
) -> None:
    heard = Recording(noise[0].id, noise[0].audio)

    def work(folder: Path) -> None:
        attention_page(narrow_model, heard, folder / "attention.html", text=" one two")

    check_kills(work, whole_page, files, tmp_path)
