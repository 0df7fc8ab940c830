"""What the tests of edits share: decoding by hand, step by step, and the digits model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.generation.kv_cache import KVCache
from hooked_whisper.interventions.edits import Interventions
from hooked_whisper.interventions.examples import Example


@pytest.fixture(scope="session")
def digits() -> HookedWhisper:
    """The shipped model; shared, so leave it as it was."""
    return HookedWhisper.from_pretrained("digits", device="cpu")


@pytest.fixture(scope="session")
def make_example() -> Callable[..., Example]:
    """`make_example(model, seed, n_rows=1)`: random sound and 7 random tokens."""

    def make(model: Any, seed: int, n_rows: int = 1) -> Example:
        generator = torch.Generator().manual_seed(seed)
        shape = (n_rows, model.cfg.n_mels, model.cfg.n_frames)
        values = torch.randn(shape, generator=generator).clamp(-1, 1)
        tokens = torch.randint(0, model.cfg.d_vocab, (n_rows, 7), generator=generator)
        return Example(Mel(values, torch.full((n_rows,), model.cfg.n_frames)), tokens)

    return make


@pytest.fixture
def pair(tiny_model: Any, make_example: Callable[..., Example]) -> tuple[Example, Example]:
    """Two examples for `tiny_model`."""
    return make_example(tiny_model, 1), make_example(tiny_model, 2)


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
