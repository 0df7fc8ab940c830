"""One small study of the digits model, shared by the tests that look at what it wrote."""

import json
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from hooked_whisper.data import Recording
from hooked_whisper.digits import recordings

from ..blocks import run_blocks_once


@pytest.fixture(scope="session")
def digits_study(digits_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three recordings, one of which is no audio, and an autoencoder of a few steps."""
    from hooked_whisper.study import study

    folder = tmp_path_factory.mktemp("study")
    broken = folder / "broken.wav"
    broken.write_bytes(b"this is no audio")
    heard = [recordings()[0], broken, recordings()[2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
        run_blocks_once(patch)
        return study(
            digits_model,
            heard,
            folder / "out",
            n_latents=64,
            k=8,
            n_vectors=4096,
            progress=False,
        )


@pytest.fixture(scope="session")
def report_json(digits_study: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(digits_study.numbers).read_text(encoding="utf-8"))
    return found


@pytest.fixture
def noise() -> list[Recording]:
    """Three recordings of noise, shorter than the tiny model's window."""
    generator = torch.Generator().manual_seed(3)
    lengths = (4000, 6400, 8000)
    return [
        Recording(
            f"noise-{i}",
            (0.1 * torch.randn(n, generator=generator), 16_000),
            labels={"speaker": "ab"[i % 2]},
            tokens=(1, 2, 3, 4, 5),
        )
        for i, n in enumerate(lengths)
    ]


@pytest.fixture
def small_model(fresh_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A random model; its studies leave out drawing, which takes most of their time."""
    monkeypatch.setattr("hooked_whisper.study.report._picture", lambda *_: "data:,")
    return fresh_model


@pytest.fixture(autouse=True)
def _blocks_run_once(blocks_run_once: None) -> None:
    """Studies take the same few clips again and again."""
