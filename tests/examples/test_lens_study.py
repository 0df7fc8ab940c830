"""The study of the lenses prints the numbers that docs/lenses.md gives."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "examples" / "lens_study.py"


@pytest.mark.slow
def test_its_numbers_are_those_of_the_documentation(tmp_path: Path) -> None:
    command = [sys.executable, str(STUDY), "--out", "pictures"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with_ln, without = re.findall(r"transcripts right, of 8: +(.*)", done.stdout)
    assert (with_ln, without) == ("[0, 0, 0, 7, 8]", "[0, 0, 3, 0, 1]")
    assert re.search(r"1_mid_cross +17 of 26 digits", done.stdout)
    assert re.search(r"cross_attn of layer 3 +\+5\.05", done.stdout)
    assert "read most from its own time: 26 of 26 digits" in done.stdout
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 5
