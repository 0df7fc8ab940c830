"""Weight processing: other weights, the same logits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.config import FLAGS, HookedWhisperConfig
from hooked_whisper.errors import ConfigError
from hooked_whisper.model.whisper import HookedWhisper

OPTIONS = {
    "default": {},
    "fold_ln": {"center_writing_weights": False},
    "centre writing weights": {"fold_ln": False},
    "everything": {"center_unembed": True},
    "nothing": {"fold_ln": False, "center_writing_weights": False},
}


def assert_same_logits(logits: Tensor, expected: Tensor, options: dict[str, Any]) -> None:
    if options.get("center_unembed"):  # shifts all logits of a position alike
        logits, expected = logits.log_softmax(-1), expected.log_softmax(-1)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_leaves_logits_and_encoder_output(
    options: dict[str, Any], fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    logits, encoder_output = fresh_model(tiny_mel, tiny_tokens), fresh_model(tiny_mel)
    fresh_model.process_weights_(**options)
    assert_same_logits(fresh_model(tiny_mel, tiny_tokens), logits, options)
    torch.testing.assert_close(fresh_model(tiny_mel), encoder_output, atol=1e-4, rtol=1e-4)
    assert not fresh_model.cfg.tie_unembedding and fresh_model.cfg.key_bias


@torch.no_grad()
def test_leaves_the_logits_at_tinys_width(make_model: Any) -> None:
    sizes = {"n_audio_layers": 2, "n_text_layers": 2, "n_audio_ctx": 50, "n_text_ctx": 16}
    cfg = HookedWhisperConfig.for_release("tiny", **sizes, d_vocab=999)
    model = make_model(cfg)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embedding" not in name:
            parameter.mul_(0.3)  # of the size of trained weights
    mel = torch.randn(1, cfg.n_mels, cfg.n_frames).clamp(-1, 1)
    tokens = torch.randint(0, cfg.d_vocab, (1, 16))
    before = model(mel, tokens)
    model.process_weights_()
    after = model(mel, tokens)
    # In float32 the logits, of any size here, keep four digits of their spread.
    assert (after - before).abs().max() < 1e-4 * before.std()


@torch.no_grad()
def test_fold_ln_empties_the_layer_norms(fresh_model: Any) -> None:
    kept = fresh_model.encoder.ln_final.weight.clone()
    fresh_model.process_weights_()
    norms = [(name, each) for name, each in fresh_model.named_modules() if hasattr(each, "eps")]
    assert len(norms) == 2 * 2 + 1 + 3 * 3 + 1
    for name, norm in norms:
        if name == "encoder.ln_final":
            assert torch.equal(norm.weight, kept)
        else:
            assert norm.weight.eq(1).all() and norm.bias.eq(0).all(), name


@torch.no_grad()
def test_writing_weights_have_no_mean(
    fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    fresh_model.process_weights_()
    writers = [fresh_model.W_E, fresh_model.W_pos]
    for stack in (fresh_model.encoder, fresh_model.decoder):
        writers += [stack.W_O, stack.b_O, stack.W_out, stack.b_out]
    writers += [fresh_model.decoder.cross_W_O, fresh_model.decoder.cross_b_O]
    for each in writers:
        assert each.mean(-1).abs().max() < 1e-6
    _, cache = fresh_model.run_with_cache(tiny_mel, tiny_tokens)
    assert all(cache["decoder", i, "resid_post"].mean(-1).abs().max() < 1e-5 for i in range(3))


@torch.no_grad()
def test_center_unembed(fresh_model: Any) -> None:
    fresh_model.process_weights_(center_unembed=True)
    assert fresh_model.W_U.mean(-1).abs().max() < 1e-6
    assert fresh_model.b_U.mean().abs() < 1e-6


@torch.no_grad()
def test_twice_is_once(fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> None:
    before = fresh_model(tiny_mel, tiny_tokens)
    fresh_model.process_weights_()
    fresh_model.process_weights_()
    assert_same_logits(fresh_model(tiny_mel, tiny_tokens), before, {})


@torch.no_grad()
@pytest.mark.usefixtures("without_shape_checks")
def test_every_flag_works_on_processed_weights(
    tiny_cfg: Any, make_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    model = make_model(replace(tiny_cfg, **dict.fromkeys(FLAGS, True)))
    before = model(tiny_mel, tiny_tokens)
    model.process_weights_()
    logits, cache = model.run_with_cache(tiny_mel, tiny_tokens)
    assert_same_logits(logits, before, {})
    assert list(cache) == model.hook_names()


@torch.no_grad()
def test_saved_and_loaded(
    fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, tmp_path: Path
) -> None:
    fresh_model.process_weights_()
    fresh_model.set_use_attn_result(True)
    fresh_model.save_pretrained(tmp_path / "processed")
    loaded = HookedWhisper.from_pretrained(tmp_path / "processed", device="cpu")
    assert loaded.cfg == fresh_model.cfg
    assert set(loaded.state_dict()) == set(fresh_model.state_dict())
    assert "decoder.unembedding.weight" in loaded.state_dict()
    assert "encoder.blocks.0.attn.key.bias" in loaded.state_dict()
    assert torch.equal(loaded(tiny_mel, tiny_tokens), fresh_model(tiny_mel, tiny_tokens))
    assert loaded.hook_names() == fresh_model.hook_names()


def test_half_precision_is_refused(fresh_model: Any) -> None:
    half = fresh_model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"weights are torch\.bfloat16; .* needs float32"):
        half.process_weights_()
    assert half.cfg.tie_unembedding and half.decoder.unembedding is None
