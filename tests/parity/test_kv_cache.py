"""Decoding with keys and values kept: a token at a time, and in chunks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

STEPS = [4, *[1] * 8]
"""A prompt, then a token at a time."""

MANY_STEPS = [4, *[1] * 62]
"""To behind the growth of the cache's first room, 64 positions."""

CHUNKS = [1, 2, 12, 5]
"""Runs shorter and longer than what the cache holds."""

ALL_CHUNKS = [1, 2, 30, 31, 50, 110, 224]
"""The same, to the last of 448 positions."""


@pytest.mark.parametrize("batch", [1, 3])
def test_token_by_token(
    family: Any, batch: int, assert_same: Callable[..., None], assert_close: Callable[..., None]
) -> None:
    """The bits of openai-whisper with its own cache, and the logits of one pass."""
    check_steps(family, batch, STEPS, assert_same, assert_close)


def test_many_tokens(
    narrow: Any, assert_same: Callable[..., None], assert_close: Callable[..., None]
) -> None:
    check_steps(narrow, 3, MANY_STEPS, assert_same, assert_close)


def check_steps(
    family: Any,
    batch: int,
    sizes: list[int],
    assert_same: Callable[..., None],
    assert_close: Callable[..., None],
) -> None:
    encoded, tokens = family.encoded[:batch], family.tokens[:batch, : sum(sizes)]
    one_pass = family.openai.decoder(tokens, encoded)
    our_cache, no_hooks = family.hooked.install_kv_cache_hooks()
    assert no_hooks == []
    start = 0
    with openai_cache(family.openai) as their_cache:
        for chunk in tokens.split(sizes, dim=1):
            ours = family.hooked.decoder(chunk, encoded, kv_cache=our_cache)
            theirs = family.openai.decoder(chunk, encoded, kv_cache=their_cache)
            end = start + chunk.shape[1]
            assert_same(ours, theirs, f"logits of positions {start} to {end}, with caches")
            what = f"logits of positions {start} to {end}"
            assert_close(ours, one_pass[:, start:end], what, times=family.times)
            start = end


@contextmanager
def openai_cache(model: Any) -> Iterator[Any]:
    """openai-whisper's cache, which the hooks that it puts on the model fill."""
    cache, hooks = model.install_kv_cache_hooks()
    try:
        yield cache
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("batch", [1, 3])
def test_chunks(family: Any, batch: int, assert_close: Callable[..., None]) -> None:
    """openai-whisper's one pass is the reference: its own cache takes one new token only."""
    check_chunks(family, batch, CHUNKS, assert_close)


@pytest.mark.parametrize("batch", [1, 3])
def test_chunks_to_the_last_position(
    narrow: Any, batch: int, assert_close: Callable[..., None]
) -> None:
    check_chunks(narrow, batch, ALL_CHUNKS, assert_close)


def check_chunks(
    family: Any, batch: int, sizes: list[int], assert_close: Callable[..., None]
) -> None:
    encoded, tokens = family.encoded[:batch], family.tokens[:batch, : sum(sizes)]
    theirs = family.openai.decoder(tokens, encoded)
    ours = torch.cat(in_chunks(family.hooked, tokens, encoded, sizes), dim=1)
    assert_close(ours, theirs, "logits", times=family.times)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("sizes", [STEPS, ALL_CHUNKS], ids=["by-token", "in-chunks"])
def test_as_transformers_with_its_cache(
    narrow: Any, sizes: list[int], attention: str, assert_close: Callable[..., None]
) -> None:
    encoded, tokens = narrow.encoded, narrow.tokens[:, : sum(sizes)]
    kept, theirs = None, []
    with narrow.hf_attention(attention) as hf:
        for chunk in tokens.split(sizes, dim=1):
            output = hf(
                encoder_outputs=(encoded,),
                decoder_input_ids=chunk,
                past_key_values=kept,
                use_cache=True,
            )
            kept = output.past_key_values
            theirs.append(output.logits)
    ours = in_chunks(narrow.hooked, tokens, encoded, sizes)
    assert_close(torch.cat(ours, dim=1), torch.cat(theirs, dim=1), "logits")


def test_a_hooked_pattern_in_chunks(narrow: Any, assert_close: Callable[..., None]) -> None:
    """The explicit path has a mask of its own where queries are fewer than keys."""
    hooked, tokens, encoded = narrow.hooked, narrow.tokens, narrow.encoded
    with hooked.hooks([("*hook_pattern", lambda value, hook: None)]):
        ours = torch.cat(in_chunks(hooked, tokens, encoded, ALL_CHUNKS), dim=1)
    assert_close(ours, narrow.openai.decoder(tokens, encoded), "logits")


def in_chunks(model: Any, tokens: Tensor, encoded: Tensor, sizes: list[int]) -> list[Tensor]:
    cache, _ = model.install_kv_cache_hooks()
    return [model.decoder(chunk, encoded, kv_cache=cache) for chunk in tokens.split(sizes, dim=1)]
