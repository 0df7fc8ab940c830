"""The attention study runs as its documentation says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hooked_whisper.digits import recordings

STUDY = Path(__file__).parents[2] / "examples" / "attention_study.py"

PICTURES = (
    "entropy_nats",
    "mean_distance",
    "previous_token",
    "energy_correlation",
    "residual",
    "cosines",
    "histogram",
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("study")
    audio = [str(each.path) for each in recordings()[:1]]
    command = [sys.executable, str(STUDY), "--out", "pictures", "--audio", *audio]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "pictures"


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross-attention"])
def test_it_prints_the_entropy_of_all_heads(ran: tuple[str, Path], kind: str) -> None:
    found = re.search(rf"entropy of every {kind} head.*\n((?:  +\d.*\n)+)", ran[0])
    assert found
    rows = [line.split() for line in found[1].splitlines()]
    assert [len(row) for row in rows] == [7] * 4  # the layer, and its six heads
    assert all(0 <= float(value) < 5.08 for row in rows for value in row[1:])  # ln 160


def test_padding_inflates_what_is_not_restricted_to_speech(ran: tuple[str, Path]) -> None:
    found = re.search(r"encoder +mean_distance +([\d.]+) +([\d.]+)", ran[0])
    assert found and float(found[2]) > 5 * float(found[1])


def test_it_finds_the_layer_that_was_trained_to_read_the_words(ran: tuple[str, Path]) -> None:
    found = re.search(r"in the word +2\.\d \(([\d.]+)\)", ran[0])
    assert found and float(found[1]) > 0.9


@pytest.mark.parametrize("name", PICTURES)
def test_it_leaves_pictures(ran: tuple[str, Path], name: str) -> None:
    from matplotlib.image import imread

    picture = imread(ran[1] / f"study_{name}.png")
    assert picture.shape[0] > 200 and picture.shape[1] > 300
    assert picture[..., :3].std() > 0.05
