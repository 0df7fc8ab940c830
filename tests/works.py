"""Work that writes to the disk, small: what tests kill, and give disks that are full."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hooked_whisper import HookedWhisper, WhisperCache
from hooked_whisper.data import Recording
from hooked_whisper.interventions import Example
from hooked_whisper.metrics import LogProb
from hooked_whisper.patching import SweepResult, greedy_ablation, head_ablations, patch_sweep
from hooked_whisper.reports import attention_page, feature_page
from hooked_whisper.sae import (
    BatchTopKConfig,
    TopKConfig,
    TrainingConfig,
    evaluate_saes,
    load_sae,
)
from hooked_whisper.sae.architectures import make_sae
from hooked_whisper.sae.training.checkpoint import CHECKPOINT_FILE, read_checkpoint
from hooked_whisper.sae.training.train import train_sae, train_saes
from hooked_whisper.store import harvest
from hooked_whisper.study import study

from .kills import files, whole_store

RESID = "encoder.blocks.1.hook_resid_post"
SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 32, "k": 4}


@dataclass(frozen=True)
class Work:
    """A piece of work in a folder, which is there.

    Args:
        run: Begins, or goes on with what is in the folder.
        look: Reads what is there, whenever the work was stopped, and fails where it is broken.
        contents: What has to be equal once it is done.
    """

    run: Callable[[Path], object]
    look: Callable[[Path], object]
    contents: Callable[[Path], Any]


def make_noise() -> list[Recording]:
    """Three recordings of noise, shorter than a window of 0.6 s."""
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


def make_works(
    model: HookedWhisper, speaking: HookedWhisper, pair: tuple[Example, Example]
) -> dict[str, Work]:
    """All of them by name.

    Args:
        model: A tiny one.
        speaking: One with Whisper's vocabulary.
        pair: Examples for the first.
    """
    noise = make_noise()
    return {
        "harvest": Work(partial(_harvest, model, noise), whole_store, files),
        "training": Work(_train, _look_at_training, trained),
        "suite": Work(_train_two, _look_at_suite, trained),
        "sweep": Work(
            partial(_sweep, model, pair), _if_there("sweep", SweepResult.load), _of_sweep
        ),
        "greedy": Work(partial(_greedy, model, pair[0]), _if_there("search", _json), files),
        "judging": Work(partial(_judge, model), _if_there("judging", _header), files),
        "cache": Work(partial(_cache, model), _if_there("cache", WhisperCache.load), _of_cache),
        "study": Work(partial(_study, model, noise), _look_at_study, _of_study),
        "study again": Work(partial(_study_again, model, noise), _look_at_study, _of_study),
        "features": Work(partial(_features, model, noise), _look_at_pages, files),
        "attention": Work(partial(_attention, speaking, noise[0]), _look_at_pages, files),
    }


def _harvest(model: HookedWhisper, noise: list[Recording], folder: Path) -> None:
    options: dict[str, Any] = {"recordings_per_shard": 1, "n_workers": 0, "progress": False}
    harvest(model, noise, "encoder.blocks.*.hook_resid_post", folder, **options)


# Training


def batches(n: int, *names: str) -> Iterator[Any]:
    """The same n batches for the same names; by name where there are several."""
    for number in range(n):
        x = torch.randn(len(names), 64, 16, generator=torch.Generator().manual_seed(number))
        yield dict(zip(names, x, strict=True)) if len(names) > 1 else x[0]


ONE = TrainingConfig(
    TopKConfig(**SIZES, hook_name="a"),
    n_steps=12,
    batch_size=64,
    checkpoint_every=3,
    log_every=2,
)


def _train(folder: Path) -> None:
    train_sae(replace(ONE, folder=folder), batches(12, "a"), resume=True, progress=False)


def _train_two(folder: Path) -> None:
    cfgs = {"one": ONE, "two": replace(ONE, sae=BatchTopKConfig(**SIZES, hook_name="b"), n_steps=7)}
    cfgs = {name: replace(cfg, folder=folder / name) for name, cfg in cfgs.items()}
    has_begun = any((folder / name).is_dir() for name in cfgs)
    train_saes(cfgs, batches(12, "a", "b"), resume=has_begun, progress=False)


def _look_at_training(folder: Path) -> None:
    read_checkpoint(folder)
    if (folder / "cfg.json").exists():
        load_sae(folder)


def _look_at_suite(folder: Path) -> None:
    for each in folder.iterdir():
        _look_at_training(each)


def trained(folder: Path) -> Any:
    """What trainings leave: bytes, and of a checkpoint, whose header has no order, values."""
    found = {}
    for path in sorted(folder.rglob(CHECKPOINT_FILE)):
        tensors, values = read_checkpoint(path.parent) or ({}, {})
        plain = {name: (value.dtype, value.tolist()) for name, value in tensors.items()}
        found[str(path.parent.relative_to(folder))] = (plain, values)
    return found, files(folder, CHECKPOINT_FILE)


# One file each


def _if_there(name: str, load: Callable[[Path], object]) -> Callable[[Path], None]:
    def look(folder: Path) -> None:
        if (folder / name).exists():
            load(folder / name)

    return look


def _sweep(model: HookedWhisper, pair: tuple[Example, Example], folder: Path) -> None:
    options: dict[str, Any] = {"metric": LogProb(5), "per": "pos", "progress": False}
    patch_sweep(model, *pair, RESID, save_to=folder / "sweep", **options)


def _of_sweep(folder: Path) -> Any:
    found = SweepResult.load(folder / "sweep")
    assert found.complete
    return found.values.tolist(), found.clean.tolist(), found.corrupted.tolist()


def _greedy(model: HookedWhisper, example: Example, folder: Path) -> None:
    heads = head_ablations(model, "decoder.*.cross_attn.hook_z")
    options: dict[str, Any] = {"tolerance": float("inf"), "progress": False}
    greedy_ablation(model, example, LogProb(5), heads, save_to=folder / "search", **options)


def _judge(model: HookedWhisper, folder: Path) -> None:
    torch.manual_seed(0)
    sae = make_sae(TopKConfig(d_in=model.cfg.d_model, d_sae=32, k=4)).eval()
    heard = [Recording(each.id, each.audio) for each in make_noise()]
    options: dict[str, Any] = {"tokens": [[1, 2, 3]] * len(heard), "progress": False}
    evaluate_saes({RESID: sae}, model, heard, save_to=folder / "judging", **options)


def _header(path: Path) -> Any:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["judging"])


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _cache(model: HookedWhisper, folder: Path) -> None:
    mel = torch.zeros(1, model.cfg.n_mels, model.cfg.n_frames)
    model.run_with_cache(mel, names_filter="encoder.*resid*")[1].save(folder / "cache")


def _of_cache(folder: Path) -> Any:
    found = WhisperCache.load(folder / "cache")
    return {name: value.tolist() for name, value in found.items()}


# A study, and pages


STUDY: dict[str, Any] = {
    "n_latents": 16,
    "k": 4,
    "n_vectors": 500,
    "pages": False,
    "progress": False,
}


def _study(model: HookedWhisper, noise: list[Recording], folder: Path) -> None:
    if not (folder / "report.json").exists():
        study(model, noise, folder, **STUDY)


def _study_again(model: HookedWhisper, noise: list[Recording], folder: Path) -> None:
    """In the place of the one that is there."""
    study(model, noise, folder, overwrite=True, **STUDY)


def _look_at_study(folder: Path) -> None:
    whole_store(folder / "activations")
    if (folder / "sae").exists():
        _look_at_training(folder / "sae")
    if (folder / "report.json").exists():
        json.loads((folder / "report.json").read_text())
        assert (folder / "report.html").exists()
    _look_at_pages(folder)


def _of_study(folder: Path) -> Any:
    found = json.loads((folder / "report.json").read_text())
    return found["sections"], found["recordings"], trained(folder / "sae")


def _look_at_pages(folder: Path) -> None:
    """A page is there from its beginning to its end, or not at all."""
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")


def _features(model: HookedWhisper, noise: list[Recording], folder: Path) -> None:
    options: dict[str, Any] = {"n_clips": 2, "n_effects": 0, "transcribe": False}
    path = folder / "features.html"
    feature_page(model, None, noise, path, hook_name=RESID, progress=False, **options)


def _attention(model: HookedWhisper, heard: Recording, folder: Path) -> None:
    silent = Recording(heard.id, heard.audio)
    attention_page(model, silent, folder / "attention.html", text=" one two")
