"""The attention study runs as its documentation says."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from hooked_whisper.digits import recordings

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
def ran(run_example: Callable[..., Any]) -> Any:
    return run_example("attention_study", "--audio", str(recordings()[0].path))


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross-attention"])
def test_it_prints_the_entropy_of_all_heads(ran: Any, kind: str) -> None:
    found = re.search(rf"entropy of every {kind} head.*\n((?:  +\d.*\n)+)", ran.printed)
    assert found
    rows = [line.split() for line in found[1].splitlines()]
    assert [len(row) for row in rows] == [7] * 4  # the layer, and its six heads
    assert all(0 <= float(value) < 5.08 for row in rows for value in row[1:])  # ln 160


def test_padding_inflates_what_is_not_restricted_to_speech(ran: Any) -> None:
    found = re.search(r"encoder +mean_distance +([\d.]+) +([\d.]+)", ran.printed)
    assert found and float(found[2]) > 5 * float(found[1])


def test_it_finds_the_layer_that_was_trained_to_read_the_words(ran: Any) -> None:
    found = re.search(r"in the word +2\.\d \(([\d.]+)\)", ran.printed)
    assert found and float(found[1]) > 0.9


@pytest.mark.parametrize("name", PICTURES)
def test_it_leaves_pictures(ran: Any, name: str) -> None:
    height, width = ran.picture(f"study_{name}.png")
    assert height > 200 and width > 300
