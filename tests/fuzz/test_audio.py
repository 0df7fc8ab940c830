"""A damaged audio file of any kind gives samples, a warning, or an error of ours; nothing else."""

import io
import random
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hooked_whisper.errors import HookedWhisperError
from hooked_whisper.speech import load_audio

from .mutations import FIRST, N, Outcomes, of_bytes

KINDS = [
    (container, subtype)
    for container in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(container)
    if container not in ("RAW", "SD2")  # without a header; with a second file
]
SUFFIXES = ["wav", "flac", "ogg", "mp3", "aiff", "au", "vox", "bin"]


@pytest.fixture(scope="module")
def whole() -> list[bytes]:
    """A small file of every kind that libsndfile writes."""
    samples = np.cumsum(np.random.default_rng(0).standard_normal(3000)) / 400
    files = []
    for container, subtype in KINDS:
        file = io.BytesIO()
        try:
            soundfile.write(file, samples, 8000, format=container, subtype=subtype)
        except soundfile.SoundFileError:  # it reads some kinds that it does not write
            continue
        files.append(file.getvalue())
    return files


def with_swapped_fields(data: bytes, rng: random.Random) -> bytes:
    """A file in whose header two fields have changed places, or one holds an extreme number."""
    changed = bytearray(data)
    size = rng.choice([2, 4, 8])
    first, second = (rng.randrange(0, min(len(data), 128) - size, 2) for _ in range(2))
    fields = [changed[place : place + size] for place in (first, second)]
    extreme = rng.choice([b"\xff" * size, bytes(size), b"\x7f" + b"\xff" * (size - 1)])
    new = rng.choice([fields[::-1], [extreme, fields[1]], [extreme[::-1], fields[1]]])
    for place, field in zip((first, second), new, strict=True):
        changed[place : place + size] = field
    return bytes(changed)


def mutated(whole: list[bytes], seed: int) -> bytes:
    rng = random.Random(seed)
    data = rng.choice(whole)
    if seed % 4 == 0:
        return with_swapped_fields(data, rng)
    if seed % 40 == 1:  # the header of one kind before the sound of another
        return data[: rng.randrange(8, 200)] + rng.choice(whole)[rng.randrange(200) :]
    return of_bytes(data, seed)


def test_every_outcome_is_samples_or_an_error_of_ours(
    whole: list[bytes], tmp_path: Path, outcomes: Outcomes
) -> None:
    assert len(whole) > 100
    for seed in range(FIRST, FIRST + (N * 5 if N == 100 else N)):
        path = tmp_path / f"x.{SUFFIXES[seed % len(SUFFIXES)]}"
        if seed % 8:
            path = tmp_path / "x.wav"
        path.write_bytes(mutated(whole, seed))
        began_s = time.monotonic()
        samples = outcomes.read(seed, lambda path=path: load_audio(path))
        assert samples is None or samples.isfinite().all(), f"seed {seed}"
        assert time.monotonic() - began_s < 20, f"seed {seed} took long"


def test_half_of_a_file_is_never_taken_for_the_whole(whole: list[bytes], tmp_path: Path) -> None:
    """Whatever else is wrong with it too."""
    path = tmp_path / "x.bin"
    for number, data in enumerate(whole):
        path.write_bytes(data[: len(data) // 2])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                load_audio(path)
            except HookedWhisperError:
                continue
        assert any("may not be whole" in str(each.message) for each in caught), number
