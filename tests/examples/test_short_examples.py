"""Every short example runs, finds what the gallery says of it, and leaves its picture."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

FINDINGS = {
    "first_cache": [
        "'three one four'",
        r"decoder\.blocks\.2\.cross_attn\.hook_pattern +\(1, 6, 7, 1500\)",
        r"layer 0: 0\.46, 1\.79",
        r"layer 3: 0\.78, 0\.25",
    ],
    "watch_attention": [r"2 +1\.00 +1\.00 +1\.00 +1\.00 +1\.00 +1\.00", "follows least .* is 3.3"],
    "edit_while_transcribing": ["0.9 s later: 'one four'", "no hook is left: 'three one four'"],
    "patch_a_digit": [r"layer 0, 1\.[25] to 1\.[58] s", "becomes 'eight one two'"],
    "two_lenses": [r"\[3, 3, 3, 3, 3, 3, 4, 3\]", "one: first .*, right from 1_mid_cross on"],
    "steer_a_digit": [r"strength 0\.00: .* three one four", r"strength 1\.00: .* one one four"],
    "ablate_heads": [r"  0\.5 0\.09, 3\.0 0\.02", "missed least +8 +8 ", r"missed most +\d +3 "],
    "sae_latents": [
        "number 163 stands out in 'seven'",
        "taken away in 'seven': 'seven'",
        "twice its height in 'one': 'three seven four'",
    ],
    "residual_statistics": [r"1370 vectors of speech", r"after layer 3 +1\.32 +0\.25"],
    "which_heads_say_seven": [
        r"2\.5 0\.11, 2\.1 0\.11, 3\.1 0\.11",
        r"keys of 'seven': 0\.02; with its values: 0\.98",
        "seven 163",
        r"only these 10 heads +0\.95 +0\.98",
        r"only the other 38 +0\.14 +0\.17",
    ],
}
"""What each prints, as patterns; the picture of each bears its name."""


SLOW = {"ablate_heads", "which_heads_say_seven"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.slow if each in SLOW else ()) for each in FINDINGS],
)
def test_it_finds_what_it_says_and_draws_it(run_example: Callable[..., Any], name: str) -> None:
    ran = run_example(name, out=None)
    for finding in FINDINGS[name]:
        assert re.search(finding, ran.printed), f"not found: {finding}\n\n{ran.printed}"
    pictures = sorted(path.name for path in ran.folder.iterdir())
    assert pictures and all(each.startswith(name) for each in pictures)
    for each in pictures:
        height, width = ran.picture(each)
        assert 150 <= height <= 1600 and 420 <= width <= 2100
        assert (ROOT / "docs" / "pictures" / f"example_{each}").is_file()


@pytest.mark.parametrize("name", FINDINGS)
def test_it_is_in_the_gallery_with_its_command_and_picture(name: str) -> None:
    gallery = (ROOT / "docs" / "examples.md").read_text()
    assert f"python examples/{name}.py" in gallery
    assert f"pictures/example_{name}" in gallery
