"""A damaged activation store is refused with an error of ours, or `verify_store` tells."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hooked_whisper.store import ActivationStore, harvest, verify_store

from .mutations import SEEDS, N, Outcomes, of_bytes, of_json_file

HOOKS = ["encoder.blocks.0.hook_resid_post", "encoder.hook_mel"]


@pytest.fixture(scope="module")
def fill(
    tmp_path_factory: pytest.TempPathFactory, make_model: Any, tiny_cfg: Any
) -> Callable[[Path], Any]:
    """Harvest seven recordings, one of them no audio, into a folder, in three shards."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng, rows = np.random.default_rng(0), []
    for number in range(7):
        path = folder / f"{number}.wav"
        soundfile.write(path, rng.standard_normal(2000 + 700 * number) / 10, 16_000)
        words = [[0.0, 0.05, "a"], [0.05, 0.2, "b"]]
        rows.append({"path": str(path), "speaker": f"s{number % 2}", "word": words})
    (folder / "3.wav").write_bytes(b"no audio")
    options: dict[str, Any] = {"n_workers": 0, "recordings_per_shard": 3, "dtype": "fp32"}
    return partial(harvest, make_model(tiny_cfg), rows, HOOKS, verify=True, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fill: Callable[[Path], Any]) -> Path:
    """A store in which nothing is damaged."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    fill(folder)
    return folder


def contents(folder: Path) -> list[Any]:
    """Everything that a store gives."""
    store = ActivationStore(folder)
    found: list[Any] = [store.hook_names, store.n_recordings, store.skipped, repr(store)]
    found.append(store._repr_html_())
    for name in store.hook_names:
        found += [store.rows(name, slice(None))[name], store.row_shape(name)]
        found.append([vars(store.where(name, [0, 5])), store.labels("word", name, [0, 1, 2])])
        found += [rows for batch in store.stream(name, 16) for rows in batch.values()]
    for entry in store.recordings():
        found += [entry, store.rows_of(entry.index, HOOKS[0])]
    return found


def files_of(folder: Path) -> dict[str, Any]:
    """What each file holds: JSON as its values, rows as their bytes."""
    return {
        path.name: json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
        for path in folder.iterdir()
    }


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict | list) and type(one) is type(other) and len(one) == len(other):
        pairs = (
            zip(one, other, strict=True)
            if isinstance(one, list)
            else ((one[key], other.get(key)) for key in one)
        )
        return all(alike(*pair) for pair in pairs)
    return bool(one == other)


def test_damage_is_refused_or_told(
    whole: Path, tmp_path: Path, without_shape_checks: None, outcomes: Outcomes
) -> None:
    names = sorted(path.name for path in whole.iterdir() if not path.name.startswith("."))
    folder = tmp_path / "store"
    shutil.copytree(whole, folder)
    expected = contents(folder)
    for seed in SEEDS:
        name = names[seed % len(names)]
        path, before = folder / name, (whole / name).read_bytes()
        if name.endswith(".json"):
            path.write_text(of_json_file(before.decode(), seed))
        else:
            path.write_bytes(of_bytes(before, seed))
        found = outcomes.read(seed, lambda: contents(folder))
        if found is not None and not alike(found, expected):
            assert verify_store(folder), f"seed {seed}: {name} is damaged and nobody says so"
            outcomes.subtract(["read"])
            outcomes["told by verify_store"] += 1
        path.write_bytes(before)
    assert verify_store(folder) == {}
    assert outcomes["refused"] > N / 3


def test_the_same_harvest_mends_damage_or_refuses_it(
    whole: Path,
    fill: Callable[[Path], Any],
    tmp_path: Path,
    without_shape_checks: None,
    outcomes: Outcomes,
) -> None:
    names = sorted(path.name for path in whole.iterdir() if not path.name.startswith("."))
    folder = tmp_path / "store"
    for seed in SEEDS[: max(12, N // 10)]:
        shutil.copytree(whole, folder)
        name = names[seed % len(names)]
        before = (whole / name).read_bytes()
        is_json = name.endswith(".json")
        after = of_json_file(before.decode(), seed).encode() if is_json else of_bytes(before, seed)
        (folder / name).write_bytes(after)
        if outcomes.read(seed, lambda: fill(folder)) is not None:
            assert files_of(folder) == files_of(whole), f"seed {seed}: {name}"
        shutil.rmtree(folder)
    assert outcomes["refused"] < outcomes.total()
