"""What the tests of edits share: decoding by hand, step by step, and the digits model."""

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.generation.kv_cache import KVCache
from hooked_whisper.interventions.edits import Interventions


@pytest.fixture(scope="session")
def digits() -> HookedWhisper:
    """The shipped model; shared, so leave it as it was."""
    return HookedWhisper.from_pretrained("digits", device="cpu")


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """What users run: jaxtyping's checks would answer bad input before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def one_pass() -> Callable[..., Tensor]:
    """`one_pass(model, mel, tokens, *edits)`: logits with the edits."""

    def run(model: Any, mel: Any, tokens: Tensor, *edits: Any) -> Tensor:
        with torch.no_grad(), Interventions(model, *edits):
            return model(mel, tokens)

    return run


@pytest.fixture(scope="session")
def in_steps() -> Callable[..., Tensor]:
    """`in_steps(model, mel, tokens, *edits)`: the same, 3 tokens first and then one at a time."""

    def run(model: Any, mel: Any, tokens: Tensor, *edits: Any) -> Tensor:
        kv_cache = KVCache()
        steps = [tokens[:, :3], *tokens[:, 3:].split(1, dim=1)]
        with torch.no_grad(), Interventions(model, *edits):
            encoded = model.encoder(mel)
            logits = [model.decoder(step, encoded, kv_cache=kv_cache) for step in steps]
        return torch.cat(logits, dim=1)

    return run
