"""Tests see a tensor of the wrong shape: what tests/conftest.py promises."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from hooked_whisper import Mel
from hooked_whisper.analysis import attention_entropy, time_alignment
from hooked_whisper.sae.selection import _pre_activations

PATTERN = torch.full((2, 3, 4), 0.25)

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "too few axes": (lambda: attention_entropy(PATTERN[0, 0]), "1 dim"),
    "integers": (lambda: attention_entropy(PATTERN.long()), "dtype"),
    "an axis of two lengths": (
        lambda: time_alignment(PATTERN, torch.zeros(5, 2), 4),
        "dimension",
    ),
    "a dataclass": (lambda: Mel(PATTERN, torch.tensor([1, 2, 3])), "batch"),
    "a generator": (
        lambda: _pre_activations(torch.zeros(2, 3), torch.zeros(4, 5), torch.zeros(5)),
        "d_in",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_shape_is_seen(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError), match=message):
        call()


def test_without_the_checks_the_package_answers(without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match=r"integers|float"):
        attention_entropy(PATTERN.long())
