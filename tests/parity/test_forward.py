"""The encoder's output and the logits, against both references, at every length.

All sizes at some lengths, Tiny's too at its full length; a narrow model at each.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

EVERY_LENGTH = [*range(1, 34), 63, 64, 65, 100, 224, 448]
ATTENTION = ["eager", "sdpa"]


@pytest.mark.parametrize("batch", [1, 3])
def test_encoder_output(
    family: Any, batch: int, assert_same: Callable[..., None], assert_close: Callable[..., None]
) -> None:
    mel = family.mel[:batch]
    ours = family.hooked(mel)
    assert_same(ours, family.openai.encoder(mel), "openai-whisper")
    # At the full window transformers' two ways are tried on one recording and on three.
    is_full = family.hooked.cfg.n_audio_ctx == 1500
    for attention in ATTENTION[batch > 1 : 1 + (batch > 1)] if is_full else ATTENTION:
        with family.hf_attention(attention) as hf:
            assert_close(ours, hf.model.encoder(mel).last_hidden_state, f"transformers {attention}")


@pytest.mark.parametrize("batch", [1, 3])
def test_logits(
    family: Any, batch: int, assert_same: Callable[..., None], assert_close: Callable[..., None]
) -> None:
    check_lengths(family, batch, [1, 2, 3, 33], ATTENTION, assert_same, assert_close)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_at_every_length(
    narrow: Any,
    batch: int,
    attention: str,
    assert_same: Callable[..., None],
    assert_close: Callable[..., None],
) -> None:
    check_lengths(narrow, batch, EVERY_LENGTH, [attention], assert_same, assert_close)


@pytest.mark.parametrize(
    ("size", "batch", "attention"),
    [("tiny", 1, "sdpa"), pytest.param("few words", 3, "eager", marks=pytest.mark.slow)],
)
def test_logits_of_all_positions_at_full_size(
    make_family: Any,
    size: str,
    batch: int,
    attention: str,
    assert_same: Callable[..., None],
    assert_close: Callable[..., None],
) -> None:
    check_lengths(make_family(size), batch, [448], [attention], assert_same, assert_close)


def check_lengths(
    family: Any,
    batch: int,
    lengths: list[int],
    attentions: list[str],
    assert_same: Callable[..., None],
    assert_close: Callable[..., None],
) -> None:
    """Each length is a run of its own: a mask may be wrong at one length only.

    transformers runs the longest, which is causal and hence good for all.
    """
    encoded, tokens = family.encoded[:batch], family.tokens[:batch]
    longest = {}
    for attention in attentions:
        with family.hf_attention(attention) as hf:
            longest[attention] = hf(
                encoder_outputs=(encoded,),
                decoder_input_ids=tokens[:, : max(lengths)],
                use_cache=False,
            ).logits
    for length in lengths:
        ours = family.hooked.decoder(tokens[:, :length], encoded)
        for attention, theirs in longest.items():
            what = f"{length} tokens, transformers {attention}"
            assert_close(ours, theirs[:, :length], what, times=family.times)
        theirs = family.openai.decoder(tokens[:, :length], encoded)
        assert_same(ours, theirs, f"{length} tokens, openai-whisper")


def test_logits_are_of_order_10(family: Any) -> None:
    """Else the tolerances of this folder would mean something else."""
    logits = family.hooked.decoder(family.tokens[:, :16], family.encoded)
    assert 5 < logits.abs().max() < 60


def test_mel_to_logits_in_one_call(
    family: Any, assert_same: Callable[..., None], assert_close: Callable[..., None]
) -> None:
    mel, tokens = family.mel[:2], family.tokens[:2, :5]
    ours = family.hooked(mel, tokens)
    assert_same(ours, family.openai(mel, tokens), "logits, openai-whisper")
    theirs = family.hf(input_features=mel, decoder_input_ids=tokens, use_cache=False).logits
    assert_close(ours, theirs, "logits, transformers", times=family.times)


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
