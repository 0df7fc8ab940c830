"""bfloat16 and float16: in openai-whisper's way, and with converted weights.

What is rounded where is openai-whisper's, to the bit, on any processor; how far that is
from float32 is what rounding in the format does, by transformers' measure too.
"""

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
UNROUNDED = ("hook_attn_scores", "hook_pattern", "hook_scale", "hook_logits")
"""Float32 in half precision too, or not computed unless somebody looks."""


def encoder_input(family: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """A mel; at the full window what an encoder makes of it, but for digits in bfloat16.

    Convolutions and attention over 1,500 positions take a CPU seconds in these formats.
    """
    mel = family.mel[:1]
    is_digits = family.hooked.cfg.model_name == "digits" and dtype == torch.bfloat16
    if family.hooked.cfg.n_audio_ctx == 1500 and not is_digits:
        return {"encoder_output": family.hooked(mel).to(dtype)}
    return {"mel": mel.to(dtype)}


def check_bits(
    ours: HookedWhisper, theirs: Any, inputs: dict[str, Tensor], tokens: Tensor, same: Any
) -> None:
    """That encoder output, where there is a mel, and logits are openai-whisper's."""
    encoded = inputs.get("encoder_output")
    if encoded is None:
        encoded = ours(inputs["mel"])
        assert encoded.dtype == inputs["mel"].dtype
        same(encoded, theirs.encoder(inputs["mel"]), "encoder output")
    logits = ours.decoder(tokens, encoded)
    assert logits.dtype == torch.float32
    same(logits, theirs.decoder(tokens, encoded), "logits")


@DTYPES
def test_half_activations_on_float32_weights(
    family: Any, dtype: torch.dtype, assert_same: Callable[..., None]
) -> None:
    """openai-whisper keeps float32 weights and casts them at use: the same bits."""
    inputs = encoder_input(family, dtype)
    check_bits(family.hooked, family.openai, inputs, family.tokens[:1, :N_TOKENS], assert_same)


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
@pytest.mark.parametrize("size", ["short", "large-v3", "digits"])
def test_converted_weights_give_what_openai_whisper_gives_with_them(
    make_family: Any,
    make_reference: Any,
    size: str,
    dtype: torch.dtype,
    assert_same: Callable[..., None],
) -> None:
    """openai-whisper holds the rounded weights in float32: they lose nothing by it."""
    family = make_family(size)
    converted = HookedWhisper.from_openai(family.openai, dtype=dtype)
    assert converted.dtype == dtype
    inputs, tokens = encoder_input(family, dtype), family.tokens[:1, :N_TOKENS]
    check_bits(converted, make_reference(in_float32(converted)), inputs, tokens, assert_same)


@DTYPES
@pytest.mark.parametrize("size", ["short", "large-v3"])
def test_converted_weights_are_as_far_from_float32_as_roundings_take_them(
    make_family: Any, size: str, dtype: torch.dtype
) -> None:
    """Less than if every activation were off by up to the greatest error of one rounding.

    Errors of real roundings are 0.7 times as large by the mean square, and
    the logits' were 0.72 to 0.86, with kernels for AVX2 to AVX512. Random
    weights average over many directions. In the trained digits model a few
    count: there two runs that round alike are up to 1.5 times as far as
    each other, so that no bound would say anything.
    """
    family = make_family(size)
    mel, tokens = family.mel, family.tokens[:, :N_TOKENS]
    exact = family.hooked(mel, tokens)
    converted = HookedWhisper.from_openai(family.openai, dtype=dtype)
    with in_float32(converted).hooks([(is_rounded, off_by_one_rounding(dtype))]) as perturbed:
        bound = distance(perturbed(mel, tokens), exact)
    for whose, logits in {
        "ours": converted(mel.to(dtype), tokens),
        "those of transformers": in_dtype(family.hf, dtype, mel, tokens),
    }.items():
        assert 0.6 * bound < distance(logits, exact) < bound, whose


def in_float32(model: HookedWhisper) -> HookedWhisper:
    """A model that computes in float32 with the weights of one in half precision."""
    wide = HookedWhisper(model.cfg).eval()
    wide.load_state_dict(model.state_dict())
    return wide


def is_rounded(name: str) -> bool:
    return not name.endswith(UNROUNDED)


def off_by_one_rounding(dtype: torch.dtype) -> Callable[..., Tensor]:
    """A hook after which each number is `x (1 + d)`, `d` random and at most the unit roundoff.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2002,
    section 2.2: u is 2^-8 for bfloat16 and 2^-11 for float16.
    """
    roundoff = torch.finfo(dtype).eps / 2

    def perturb(value: Tensor, hook: Any) -> Tensor:
        return value * (1 + roundoff * (2 * torch.rand_like(value) - 1))

    return perturb


def in_dtype(hf: Any, dtype: torch.dtype, mel: Tensor, tokens: Tensor) -> Tensor:
    """What `hf.to(dtype)` gives, without changing the shared model."""
    weights = {name: value.to(dtype) for name, value in hf.named_parameters()}
    arguments = {
        "decoder_input_ids": tokens,
        "use_cache": False,
        "input_features": mel.to(dtype),
    }
    return torch.func.functional_call(hf, weights, kwargs=arguments).logits.float()


def distance(logits: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference."""
    return (logits - exact).square().mean().sqrt().item()
