"""The study of the lenses prints the numbers that docs/lenses.md gives."""

import re
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_its_numbers_are_those_of_the_documentation(run_example: Callable[..., Any]) -> None:
    ran = run_example("lens_study")
    with_ln, without = re.findall(r"transcripts right, of 8: +(.*)", ran.printed)
    assert (with_ln, without) == ("[0, 0, 0, 7, 8]", "[0, 0, 3, 0, 1]")
    assert re.search(r"1_mid_cross +17 of 26 digits", ran.printed)
    assert re.search(r"cross_attn of layer 3 +\+5\.05", ran.printed)
    assert "read most from its own time: 26 of 26 digits" in ran.printed
    assert len(list(ran.folder.glob("*.png"))) == 5
