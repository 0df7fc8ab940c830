"""The encoder's output and the logits, against both references, at every length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

LENGTHS = [*range(1, 17), 33, 100, 224, 448]
SOME_LENGTHS = [1, 2, 3, 8, 16, 100, 448]
"""For batches of one in the reduced models and of three at full size, to save time."""

ATTENTION = ["eager", "sdpa"]


@pytest.fixture(scope="module")
def encoded(family: Any) -> Tensor:
    """Our encoder's output for three recordings."""
    with torch.no_grad():
        return family.hooked(family.mel)


@pytest.fixture(scope="module")
def hf_logits(family: Any, encoded: Tensor) -> dict[str, Tensor]:
    """transformers' logits at the full length, in either attention; causal, so good for all."""
    logits = {}
    for attention in ATTENTION:
        with torch.no_grad(), family.hf_attention(attention) as hf:
            logits[attention] = hf(
                encoder_outputs=(encoded,), decoder_input_ids=family.tokens, use_cache=False
            ).logits
    return logits


@pytest.mark.parametrize("batch", [1, 3])
def test_encoder_output(
    family: Any, batch: int, assert_same: Callable[..., None], assert_close: Callable[..., None]
) -> None:
    mel = family.mel[:batch]
    ours = family.hooked(mel)
    assert_same(ours, family.openai.encoder(mel), "openai-whisper")
    for attention in ATTENTION:
        with family.hf_attention(attention) as hf:
            assert_close(ours, hf.model.encoder(mel).last_hidden_state, f"transformers {attention}")


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_at_every_length(
    family: Any,
    encoded: Tensor,
    hf_logits: dict[str, Tensor],
    batch: int,
    assert_same: Callable[..., None],
    assert_close: Callable[..., None],
) -> None:
    """Each length is a run of its own: a mask may be wrong at one length only."""
    is_reduced = family.hooked.cfg.n_audio_ctx < 1500
    for length in SOME_LENGTHS if is_reduced == (batch == 1) else LENGTHS:
        tokens = family.tokens[:batch, :length]
        ours = family.hooked.decoder(tokens, encoded[:batch])
        theirs = family.openai.decoder(tokens, encoded[:batch])
        assert_same(ours, theirs, f"{length} tokens, openai-whisper")
        for attention, logits in hf_logits.items():
            what = f"{length} tokens, transformers {attention}"
            assert_close(ours, logits[:batch, :length], what)


def test_logits_are_of_order_10(family: Any, hf_logits: dict[str, Tensor]) -> None:
    """Else the tolerances of this folder would mean something else."""
    assert 5 < hf_logits["eager"][:, :16].abs().max() < 60


def test_mel_to_logits_in_one_call(
    family: Any, assert_same: Callable[..., None], assert_close: Callable[..., None]
) -> None:
    mel, tokens = family.mel[:2], family.tokens[:2, :5]
    ours = family.hooked(mel, tokens)
    assert_same(ours, family.openai(mel, tokens), "logits, openai-whisper")
    theirs = family.hf(input_features=mel, decoder_input_ids=tokens, use_cache=False).logits
    assert_close(ours, theirs, "logits, transformers")


@pytest.mark.parametrize("length", [1, 7])
def test_encoder_output_in_place_of_a_mel(
    short: Any, length: int, assert_same: Callable[..., None]
) -> None:
    mel, tokens = short.mel, short.tokens[:, :length]
    ours = short.hooked(tokens=tokens, encoder_output=short.hooked(mel))
    assert_same(ours, short.openai(mel, tokens), "logits")


def test_one_recording_for_several_rows_of_tokens(
    short: Any, assert_close: Callable[..., None]
) -> None:
    encoded, tokens = short.hooked(short.mel[:1]), short.tokens[:, :9]
    ours = short.hooked.decoder(tokens, encoded)
    one_by_one = [short.openai.decoder(row[None], encoded) for row in tokens]
    assert_close(ours, torch.cat(one_by_one), "logits")
