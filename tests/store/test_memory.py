"""Memory does not grow with the number of recordings: measured, of a whole process."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hooked_whisper.store import ActivationStore

from ..processes import Child


def peak_mib() -> float:
    """The most memory that this process held since it was last forgotten, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_ten_times_the_recordings_take_the_same_memory(
    small_harvest: Callable[..., ActivationStore],
    in_child: Callable[..., Child],
    tmp_path: Path,
    without_shape_checks: None,
) -> None:
    """Kept mels of 360 recordings more would be 7 MiB, their samples 13."""
    rng = np.random.default_rng(0)
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(400):
        soundfile.write(clips / f"{number:03d}.wav", 0.1 * rng.standard_normal(9_000), 16_000)
    paths = sorted(clips.iterdir())

    def measure(n: int) -> float:
        def run() -> None:
            small_harvest(paths[:40], tmp_path / f"warm{n}")
            Path("/proc/self/clear_refs").write_text("5")
            small_harvest(paths[:n], tmp_path / f"store{n}")
            (tmp_path / f"peak{n}").write_text(str(peak_mib()))

        assert in_child(run).wait() == 0
        return float((tmp_path / f"peak{n}").read_text())

    few, many = measure(40), measure(400)
    assert many - few < 4, (few, many)
