"""The demo that `make demo` runs does what it says."""

import re
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def ran(run_example: Callable[..., Any]) -> Any:
    return run_example("demo")


def test_it_prints_the_transcripts(ran: Any) -> None:
    assert "three one four" in ran.printed and "eight five two" in ran.printed


def test_one_digit_of_the_transcript_changes_and_the_others_do_not(ran: Any) -> None:
    assert re.findall(r"before +(.*)", ran.printed) == ["three one four"] * 2
    assert re.findall(r"after +(.*)", ran.printed) == ["three five four"] * 2


def test_it_lists_hooks_with_their_shapes(ran: Any) -> None:
    sizes = "batch 1, head 6, query 7, key 1500"
    assert re.search(rf"decoder\.blocks\.0\.cross_attn\.hook_pattern +{sizes}", ran.printed)


def test_it_fits_on_a_screen_in_columns(ran: Any) -> None:
    lines = ran.printed.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines[:-2])) <= 100  # the last two name a folder
    assert all(line[43] == " " != line[44] for line in lines if line.startswith("  "))


@pytest.mark.parametrize("name", ["cross_attention.png", "patching.png"])
def test_it_leaves_pictures(ran: Any, name: str) -> None:
    height, width = ran.picture(name)
    assert height > 250 and width > 500
