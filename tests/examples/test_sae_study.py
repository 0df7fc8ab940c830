"""The study of latents runs as its documentation says, and finds what it says."""

import re
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def ran(run_example: Callable[..., Any]) -> Any:
    return run_example("sae_study", "--digits", "3")


def test_every_digit_has_a_latent_that_tells_it(ran: Any) -> None:
    found = re.findall(r"^(\w+) +\d+  (\d\.\d+)$", ran.printed, re.MULTILINE)
    assert len(found) == 10
    assert min(float(auroc) for _, auroc in found) >= 0.95


def test_setting_latents_turns_a_digit_into_another_and_no_other(ran: Any) -> None:
    assert "turned into the wanted digit, all others left: 3 of 3" in ran.printed
    changed = re.search(r"removing its own latents, all others left: (\d) of 3", ran.printed)
    assert changed and int(changed[1]) >= 2


def test_it_leaves_a_picture(ran: Any) -> None:
    height, width = ran.picture("latents.png")
    assert height > 300 and width > 800
