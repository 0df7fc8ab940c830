"""What the lenses' tests share: other batch sizes and lengths, processed weights, a tripwire."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.speech.tokens import get_tokenizer

Inputs = tuple[Tensor, Tensor]


@pytest.fixture
def make_inputs(tiny_cfg: Any) -> Callable[[int, int], Inputs]:
    """`make_inputs(n_rows, n_pos)`: a random mel and random tokens for `tiny_model`."""

    def make(n_rows: int, n_pos: int) -> Inputs:
        generator = torch.Generator().manual_seed(10 * n_rows + n_pos)
        mel = torch.randn(n_rows, tiny_cfg.n_mels, tiny_cfg.n_frames, generator=generator)
        tokens = torch.randint(0, tiny_cfg.d_vocab, (n_rows, n_pos), generator=generator)
        return mel.clamp(-1, 1), tokens

    return make


@pytest.fixture(params=["as it is", "processed"])
def any_model(request: Any, tiny_cfg: Any, make_model: Any) -> Any:
    """A small random model, also with an unembedding and biases of its own."""
    model = make_model(tiny_cfg)
    if request.param == "processed":
        model.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    return model


@pytest.fixture(scope="module")
def speaking_model(tiny_cfg: Any, make_model: Any) -> Any:
    """A small random model with Whisper's vocabulary, so that it can be decoded."""
    cfg = replace(tiny_cfg, d_vocab=51865, n_text_layers=2, n_text_ctx=16)
    get_tokenizer(cfg)  # openai-whisper leaves its vocabulary file open
    return make_model(cfg)


@pytest.fixture(scope="session")
def never_runs() -> Callable[[Any], AbstractContextManager[None]]:
    """`with never_runs(model):` fails if the model computes anything."""

    @contextmanager
    def watch(model: Any) -> Iterator[None]:
        def trip(value: Tensor, hook: Any) -> None:
            raise AssertionError(f"{hook.name} ran before the error")

        with model.hooks([("*.hook_embed", trip), ("encoder.hook_mel", trip)]):
            yield

    return watch
