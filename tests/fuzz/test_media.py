"""Damaged MP4, WebM, AAC and video files give samples, a warning, or an error of ours."""

import time
from pathlib import Path

import pytest

from hooked_whisper.speech import load_audio

from ..speech.encoding import KINDS, encode, sweep
from .mutations import SEEDS, Outcomes, of_bytes

pytest.importorskip("av", reason="needs the extra `audio`")


@pytest.fixture(scope="module")
def whole() -> list[bytes]:
    return [encode(sweep(0.5), **options) for options in KINDS.values()]


def test_every_outcome_is_samples_or_an_error_of_ours(
    whole: list[bytes], tmp_path: Path, outcomes: Outcomes
) -> None:
    path = tmp_path / "x.mp4"
    for seed in SEEDS:
        path.write_bytes(of_bytes(whole[seed % len(whole)], seed))
        began_s = time.monotonic()
        samples = outcomes.read(seed, lambda: load_audio(path))
        assert samples is None or samples.isfinite().all(), f"seed {seed}"
        assert time.monotonic() - began_s < 20, f"seed {seed} took long"
