"""The study of latents runs as its documentation says, and finds what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "examples" / "sae_study.py"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("study")
    command = [sys.executable, str(STUDY), "--out", "pictures", "--digits", "6"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "pictures"


def test_every_digit_has_a_latent_that_tells_it(ran: tuple[str, Path]) -> None:
    found = re.findall(r"^(\w+) +\d+  (\d\.\d+)$", ran[0], re.MULTILINE)
    assert len(found) == 10
    assert min(float(auroc) for _, auroc in found) >= 0.95


def test_setting_latents_turns_a_digit_into_another_and_no_other(ran: tuple[str, Path]) -> None:
    assert "turned into the wanted digit, all others left: 6 of 6" in ran[0]
    changed = re.search(r"removing its own latents, all others left: (\d) of 6", ran[0])
    assert changed and int(changed[1]) >= 4


def test_it_leaves_a_picture(ran: tuple[str, Path]) -> None:
    from matplotlib.image import imread

    picture = imread(ran[1] / "latents.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 800
    assert picture[..., :3].std() > 0.05
