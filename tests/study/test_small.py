"""Studies of models with one layer or one head, and of one recording or speaker."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.data import Recording
from hooked_whisper.study import study

SIZES = ("n_audio_layers", "n_audio_heads", "n_text_layers", "n_text_heads")
OPTIONS: dict[str, Any] = {"n_latents": 16, "k": 4, "n_vectors": 64, "progress": False}


@pytest.fixture
def study_of(
    make_model: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_shape_checks: None,
) -> Callable[..., Any]:
    """Without pictures, which take most of its time."""
    monkeypatch.setattr("hooked_whisper.study.report._picture", lambda *_: "data:,")

    def run(sizes: tuple[int, ...], d_vocab: int, heard: list[Recording], *, pages: bool) -> Any:
        sizes_of: dict[str, Any] = dict(zip(SIZES, sizes, strict=True))
        sizes_of |= {"n_mels": 80, "n_audio_ctx": 30, "n_text_ctx": 20, "d_model": 8}
        model = make_model(HookedWhisperConfig(**sizes_of, d_vocab=d_vocab))
        return study(model, heard, tmp_path, pages=pages, **OPTIONS)

    return run


@pytest.mark.parametrize("d_vocab", [40, 51864], ids=["no-text", "text"])
def test_one_head(study_of: Any, noise: list[Recording], d_vocab: int) -> None:
    """And with pages, which have no transcripts to compare where the vocabulary is another."""
    found = study_of((1, 1, 1, 1), d_vocab, noise, pages=d_vocab == 40)
    numbers = found.to_dict()["sections"]["encoder_attention"]["numbers"]
    assert "There is one head only, so that there is no trend." in found.findings
    for entropy in (numbers["entropy"], numbers["whole_windows"]["entropy"]):
        assert entropy["values"] == [pytest.approx(entropy["mean"])]
        assert (entropy["n"], entropy["peak"], entropy["trough"]) == (1, 0, 0)
        assert entropy["slope"] is None and entropy["rank_correlation"] is None
    assert (found.folder / "features.html").exists() == (d_vocab == 40)


@pytest.mark.parametrize("sizes", [(2, 1, 1, 2), (1, 2, 2, 1)], ids=str)
def test_one_layer_or_one_head(study_of: Any, noise: list[Recording], sizes: Any) -> None:
    found = study_of(sizes, 40, noise, pages=False)
    entropy = found.to_dict()["sections"]["encoder_attention"]["numbers"]["entropy"]
    assert entropy["n"] == 2 and entropy["slope"] is not None


def test_one_recording(study_of: Any, noise: list[Recording]) -> None:
    found = study_of((1, 1, 1, 1), 40, noise[:1], pages=False)
    quality = found.to_dict()["sections"]["features"]["numbers"]["quality"]
    assert (quality["n_recordings"], quality["held_out"]) == (1, False)


def test_one_speaker_has_nothing_to_be_told_from(study_of: Any, noise: list[Recording]) -> None:
    heard = [replace(each, labels={"speaker": "a"}) for each in noise]
    found = study_of((1, 1, 1, 1), 40, heard, pages=False)
    assert found.to_dict()["sections"]["features"]["numbers"]["latents_that_tell"] == []
