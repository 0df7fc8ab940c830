"""An encoder alone: what it can do works, and the rest is one clear error."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from hooked_whisper.data import align_words, find_alignment_heads
from hooked_whisper.errors import ConfigError, NoDecoderError
from hooked_whisper.interventions import Example
from hooked_whisper.lenses import direct_attribution, encoder_lens, logit_lens
from hooked_whisper.metrics import LogProb
from hooked_whisper.patching import attribution_patch, patch_sweep
from hooked_whisper.reports import attention_page
from hooked_whisper.sae import (
    ModelActivations,
    TopKConfig,
    TrainingConfig,
    evaluate_sae,
    train_sae,
)
from hooked_whisper.store import ActivationStore, harvest

HOOK = "encoder.blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def cfg(tiny_cfg):
    return tiny_cfg.encoder_alone()


@pytest.fixture
def model(cfg, make_model):
    return make_model(cfg)


@pytest.fixture
def clips(cfg):
    generator = torch.Generator().manual_seed(1)
    n_samples = cfg.n_samples
    return [
        (0.1 * torch.randn(length, generator=generator).numpy(), 16_000)
        for length in (n_samples, n_samples // 2, n_samples // 3)
    ]


def test_sizes(cfg, tiny_cfg):
    with pytest.raises(ConfigError, match="d_vocab is 0; it must be at least 1"):
        replace(tiny_cfg, d_vocab=0)
    with pytest.raises(NoDecoderError, match="an encoder alone: it has no decoder"):
        cfg.need_decoder()
    assert tiny_cfg.has_decoder and tiny_cfg.need_decoder() is None


def test_the_encoder_is_the_same(model, cfg, make_model, tiny_cfg, tiny_mel):
    whole = make_model(tiny_cfg)
    whole.encoder.load_state_dict(model.encoder.state_dict())
    ours, cache = model.run_with_cache(tiny_mel)
    theirs, expected = whole.run_with_cache(tiny_mel, names_filter="encoder.*")
    assert torch.equal(ours, theirs)
    assert list(cache) == list(expected)
    assert all(torch.equal(cache[name], expected[name]) for name in cache)
    stream = model(tiny_mel, stop_at_layer=("encoder", 1))
    assert torch.allclose(model.run_from(("encoder", 1), stream), ours, atol=1e-5)
    edited = model.run_with_hooks(tiny_mel, fwd_hooks=[(HOOK, lambda value, hook: value * 0)])
    assert not torch.equal(edited, ours)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.allclose(again(tiny_mel), ours, atol=1e-5)
    assert "encoder alone" in repr(model) and "encoder alone" in model._repr_html_()
    assert not any("decoder" in name for name in [*model.state_dict(), *model.hook_names()])
    model.set_use_attn_result(True)
    assert model.to(torch.float64).dtype == torch.float64


def test_harvest_and_autoencoders(model, clips, tmp_path, tiny_mel):
    harvest(model, clips, [HOOK], tmp_path / "store", n_workers=0)
    assert ActivationStore(tmp_path / "store").n_recordings == 3
    sizes = TopKConfig(d_in=model.cfg.d_model, d_sae=32, k=4, hook_name=HOOK)
    training = TrainingConfig(sizes, n_steps=4, batch_size=16)
    sae = train_sae(training, ModelActivations(model, clips), progress=False)
    judged = evaluate_sae(sae, model, clips, progress=False)
    assert judged.extents["speech"].reconstruction.fvu > 0
    assert judged.extents["all"].recovered is None and "CE" not in repr(judged)
    assert judged.to_dict() and judged._repr_html_() and judged.n_without_text == 0
    with pytest.raises(NoDecoderError):
        evaluate_sae(sae, model, clips, texts=["a", "b", "c"], progress=False)
    model.add_sae(sae)
    model(tiny_mel)


TOKENS = torch.tensor([[1, 2, 3]] * 2)
NEEDS = {
    "tokens": lambda model, mel: model(mel, TOKENS),
    "loss": lambda model, mel: model(mel, return_type="loss"),
    "cache": lambda model, mel: model.run_with_cache(mel, TOKENS),
    "run_from": lambda model, mel: model.run_from(("encoder", 1), model(mel), TOKENS),
    "run_from decoder": lambda model, mel: model.run_from(
        ("decoder", 0), model(mel), encoder_output=model(mel)
    ),
    "stop": lambda model, mel: model(mel, stop_at_layer=("decoder", 0)),
    "hook_names": lambda model, mel: model.hook_names("decoder.*"),
    "add_hook": lambda model, mel: model.add_hook("decoder.hook_logits", lambda value, hook: None),
    "shorthand": lambda model, mel: model.hook_names(("decoder", 0, "resid_post")),
    "W_E": lambda model, mel: model.W_E,
    "W_U": lambda model, mel: model.W_U,
    "b_U": lambda model, mel: model.b_U,
    "W_pos": lambda model, mel: model.W_pos,
    "decoder": lambda model, mel: model.decoder.blocks[0],
    "decoder call": lambda model, mel: model.decoder(TOKENS, model(mel)),
    "logits": lambda model, mel: model.logits(TOKENS, model(mel)),
    "to_tokens": lambda model, mel: model.to_tokens(" one"),
    "to_string": lambda model, mel: model.to_string([1]),
    "to_str_tokens": lambda model, mel: model.to_str_tokens([1]),
    "generate": lambda model, mel: model.generate(mel),
    "decode": lambda model, mel: model.decode(mel),
    "transcribe": lambda model, mel: model.transcribe(torch.zeros(1600).numpy()),
    "detect_language": lambda model, mel: model.detect_language(mel),
    "alignment heads": lambda model, mel: model.set_alignment_heads("tiny"),
    "process_weights_": lambda model, mel: model.process_weights_(),
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_needs_a_decoder(model, tiny_mel, name, without_shape_checks):
    with pytest.raises(NoDecoderError, match="it has no decoder, so that it takes no tokens"):
        NEEDS[name](model, tiny_mel)


def example(model, clip):
    return Example(model.to_mel(*clip[:1], rate_hz=clip[1]), TOKENS[:1])


RECORDINGS = {
    "harvest": lambda model, clips, path: harvest(model, clips, ["decoder.*resid*"], path),
    "align_words": lambda model, clips, path: align_words(model, clips),
    "find_alignment_heads": lambda model, clips, path: find_alignment_heads(model, clips),
    "logit_lens": lambda model, clips, path: logit_lens(model, clips[0], TOKENS[:1]),
    "encoder_lens": lambda model, clips, path: encoder_lens(model, clips[0], TOKENS[:1]),
    "attention_page": lambda model, clips, path: attention_page(model, clips[0], path),
    "patch_sweep": lambda model, clips, path: patch_sweep(
        model, example(model, clips[0]), example(model, clips[1]), [HOOK], metric=LogProb(1)
    ),
    "attribution_patch": lambda model, clips, path: attribution_patch(
        model, example(model, clips[0]), example(model, clips[1]), [HOOK], metric=LogProb(1)
    ),
    "direct_attribution": lambda model, clips, path: direct_attribution(
        model, clips[0], TOKENS[:1]
    ),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_recordings_for_what_needs_a_decoder(model, clips, tmp_path, name, without_shape_checks):
    with pytest.raises(NoDecoderError, match="it has no decoder"):
        RECORDINGS[name](model, clips, tmp_path / "a")
