"""Short clips for a model with a window of 0.6 s, and a harvest with small shards."""

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hooked_whisper.store import ActivationStore, harvest

RESID = "encoder.blocks.*.hook_resid_post"


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 clips of noise, 0.1 to 0.56 s long, which nobody may change."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for number in range(24):
        samples = 0.1 * rng.standard_normal(1600 + 320 * number)
        soundfile.write(folder / f"clip{number:02d}.wav", samples, 16_000)
    return folder


@pytest.fixture
def small_harvest(tiny_model: Any) -> Callable[..., ActivationStore]:
    """`small_harvest(recordings, folder)`: two blocks' residuals, shards of 5, batches of 2."""
    return partial(small, tiny_model)


@pytest.fixture
def harvest_with() -> Callable[..., ActivationStore]:
    """`harvest_with(model, recordings, folder)`: the same with another model."""
    return small


def small(
    model: Any, recordings: Any, folder: Path, hooks: Any = RESID, **options: Any
) -> ActivationStore:
    """A harvest with small shards, in this process."""
    options = {
        "batch_size": 2,
        "recordings_per_shard": 5,
        "n_workers": 0,
        "dtype": "fp32",
    } | options
    return harvest(model, recordings, hooks, folder, **options)


@pytest.fixture
def ram_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: no waiting for the disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def contents_of() -> Callable[[Path], dict[str, bytes]]:
    """`contents_of(folder)`: every file by its name."""
    return contents
