"""bfloat16 and float16: in openai-whisper's way, and with converted weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"]
)
N_TOKENS = 33

LUCK = 1.1
"""How much farther one run may be: the two round in other places, neither in better ones."""


def encoder_input(family: Any, dtype: torch.dtype, batch: int = 1) -> dict[str, Tensor]:
    """A mel; for float16 at the full window what an encoder makes of it.

    float16 convolutions and attention over 1,500 positions take a CPU seconds.
    """
    mel = family.mel[:batch]
    if dtype == torch.float16 and family.hooked.cfg.n_audio_ctx == 1500:
        return {"encoder_output": family.hooked(mel)}
    return {"mel": mel}


@DTYPES
def test_half_activations_on_float32_weights(
    family: Any, dtype: torch.dtype, assert_same: Callable[..., None]
) -> None:
    """openai-whisper keeps float32 weights and casts them at use: the same bits."""
    inputs = encoder_input(family, dtype)
    tokens = family.tokens[:1, :N_TOKENS]
    if "mel" in inputs:
        mel = inputs["mel"].to(dtype)
        encoded = family.hooked(mel)
        assert_same(encoded, family.openai.encoder(mel), "encoder output")
    else:
        encoded = inputs["encoder_output"].to(dtype)
    assert encoded.dtype == dtype
    logits = family.hooked.decoder(tokens, encoded)
    assert logits.dtype == torch.float32
    assert_same(logits, family.openai.decoder(tokens, encoded), "logits")


@DTYPES
def test_half_patterns(short: Any, dtype: torch.dtype, assert_same: Callable[..., None]) -> None:
    """Scores and patterns too, which openai-whisper computes with a float32 softmax."""
    from whisper.model import disable_sdpa

    mel, tokens = short.mel.to(dtype), short.tokens[:, :N_TOKENS]
    names = "decoder.blocks.*.hook_attn_scores"
    logits, ours = short.hooked.run_with_cache(mel, tokens, names_filter=["*hook_pattern", names])
    with disable_sdpa():
        assert_same(logits, short.openai(mel, tokens), "logits")
    pattern, scores = ours["decoder", 1, "pattern"], ours["decoder", 1, "attn_scores"]
    assert (pattern.dtype, scores.dtype) == (dtype, torch.float32)
    assert_same(pattern, scores.softmax(dim=-1).to(dtype), "pattern")


@DTYPES
def test_converted_weights_are_as_near_to_float32_as_those_of_transformers(
    family: Any, dtype: torch.dtype
) -> None:
    batch = 1 if family.hooked.cfg.n_audio_ctx == 1500 else 3
    inputs = encoder_input(family, dtype, batch)
    tokens = family.tokens[:batch, :N_TOKENS]
    exact = family.hooked(tokens=tokens, **inputs)
    inputs = {name: value.to(dtype) for name, value in inputs.items()}
    converted = HookedWhisper.from_openai(family.openai, dtype=dtype)
    assert converted.dtype == dtype
    ours = converted(tokens=tokens, **inputs)
    theirs = in_dtype(family.hf, dtype, tokens, **inputs)  # fused attention, like ours
    assert distance(theirs, exact) > 1e-4, "transformers did not run in half precision"
    assert distance(ours, exact) <= LUCK * distance(theirs, exact)


def in_dtype(
    hf: Any,
    dtype: torch.dtype,
    tokens: Tensor,
    mel: Tensor | None = None,
    encoder_output: Tensor | None = None,
) -> Tensor:
    """What `hf.to(dtype)` gives, without changing the shared model."""
    weights = {name: value.to(dtype) for name, value in hf.named_parameters()}
    arguments = {"decoder_input_ids": tokens, "use_cache": False, "input_features": mel}
    if encoder_output is not None:
        arguments["encoder_outputs"] = (encoder_output,)
    return torch.func.functional_call(hf, weights, kwargs=arguments).logits.float()


def distance(logits: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference."""
    return (logits - exact).square().mean().sqrt().item()
