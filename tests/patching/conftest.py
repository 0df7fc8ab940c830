"""Two runs of two recordings each, for the tests that patch one into the other."""

import pytest
import torch
from torch import Tensor

from hooked_whisper.interventions.examples import Example
from hooked_whisper.speech.mel import Mel


@pytest.fixture
def clean(tiny_mel: Tensor, tiny_tokens: Tensor) -> Example:
    return Example(Mel(tiny_mel, torch.tensor([60, 40])), tiny_tokens)


@pytest.fixture
def corrupted(tiny_mel: Tensor, tiny_tokens: Tensor) -> Example:
    return Example(Mel(-tiny_mel.flip(2), torch.tensor([60, 40])), tiny_tokens.flip(1))
