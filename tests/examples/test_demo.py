"""The demo that `make demo` runs does what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(DEMO), "--out", "pictures"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "pictures"


def test_it_prints_the_transcripts(ran: tuple[str, Path]) -> None:
    assert "three one four" in ran[0] and "eight five two" in ran[0]


def test_one_digit_of_the_transcript_changes_and_the_others_do_not(ran: tuple[str, Path]) -> None:
    assert re.findall(r"before: (.*)", ran[0]) == ["three one four"] * 2
    assert re.findall(r"after: +(.*)", ran[0]) == ["three five four"] * 2


def test_it_lists_hooks_with_their_shapes(ran: tuple[str, Path]) -> None:
    assert re.search(r"decoder\.blocks\.0\.cross_attn\.hook_pattern +\(1, 6, 7, 1500\)", ran[0])


@pytest.mark.parametrize("name", ["cross_attention.png", "patching.png"])
def test_it_leaves_pictures(ran: tuple[str, Path], name: str) -> None:
    from matplotlib.image import imread

    picture = imread(ran[1] / name)
    assert picture.shape[0] > 300 and picture.shape[1] > 500
    assert picture[..., :3].std() > 0.05
