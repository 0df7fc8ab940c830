"""HookedWhisper from every source gives the original's logits, and goes round through a file."""

from dataclasses import replace

import pytest
import torch

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.errors import CheckpointError

_for = HookedWhisperConfig.for_release
SMALL = {"n_audio_ctx": 44, "n_text_ctx": 30, "d_model": 32, "n_audio_heads": 4, "n_text_heads": 2}
CONFIGS = {
    "128-mels": _for("large-v3", **{**SMALL, "n_audio_layers": 3, "n_text_layers": 3}),
    "english": _for("tiny.en", **SMALL),
    "turbo-layers": _for("turbo", **{**SMALL, "n_audio_layers": 6, "n_text_layers": 2}),
}
TOLERANCE = 1e-5
"""Against transformers, which adds in another order."""


def inputs(cfg):
    generator = torch.Generator().manual_seed(3)
    mel = torch.randn(2, cfg.n_mels, cfg.n_frames, generator=generator).clamp(-1, 1)
    return mel, torch.randint(0, cfg.d_vocab, (2, 7), generator=generator)


def assert_openais(model, theirs):
    mel, tokens = inputs(model.cfg)
    with torch.no_grad():
        assert torch.equal(model(mel, tokens), theirs(mel, tokens))
    heads = theirs.alignment_heads.to_dense()
    assert torch.equal(model.alignment_heads.to_dense(), heads)
    assert not model.training


def assert_transformers(model, theirs):
    mel, tokens = inputs(model.cfg)
    with torch.no_grad():
        logits = theirs(input_features=mel, decoder_input_ids=tokens).logits
        difference = (model(mel, tokens) - logits).abs().max()
    assert difference <= TOLERANCE * max(1, logits.abs().max() / 10)
    pairs = theirs.generation_config.alignment_heads
    assert model.alignment_heads.to_dense().nonzero().tolist() == pairs


def assert_equal(model, other):
    assert replace(model.cfg, model_name=other.cfg.model_name) == other.cfg
    assert not model.training
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name
    assert torch.equal(model.alignment_heads.to_dense(), other.alignment_heads.to_dense())


@pytest.mark.slow
class TestTinyAtFullSize:
    """Loaded from memory it gives the original's logits; every file holds that same model.

    fp32 files here: OpenAI's are fp16, which test_openai.py shows to be widened exactly.
    """

    def test_openai(self, random_tiny_openai, save_openai, tmp_path):
        theirs = random_tiny_openai
        model = HookedWhisper.from_openai(theirs)
        assert_openais(model, theirs)
        save_openai(theirs, tmp_path / "tiny.pt", torch.float32)
        loaded = HookedWhisper.from_pretrained(tmp_path / "tiny.pt", device="cpu")
        loaded.set_alignment_heads(dump(theirs.alignment_heads))
        assert_equal(loaded, model)
        loaded.save_pretrained(tmp_path / "own")
        assert_equal(HookedWhisper.from_pretrained(tmp_path / "own", device="cpu"), model)

    def test_transformers(self, random_tiny_hf, tmp_path):
        model = HookedWhisper.from_hf(random_tiny_hf)
        assert_transformers(model, random_tiny_hf)
        random_tiny_hf.save_pretrained(tmp_path, max_shard_size="50MB")
        assert_equal(HookedWhisper.from_pretrained(tmp_path, device="cpu"), model)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_openai_and_back(cfg, make_openai, save_openai, tmp_path):
    theirs = make_openai(cfg)
    model = HookedWhisper.from_openai(theirs)
    assert_openais(model, theirs)
    model.save_pretrained(tmp_path / "own")
    assert_openais(HookedWhisper.from_pretrained(tmp_path / "own", device="cpu"), theirs)
    save_openai(theirs, tmp_path / "a.pt", torch.float32)
    model = HookedWhisper.from_pretrained(tmp_path / "a.pt", device="cpu")
    model.set_alignment_heads(dump(theirs.alignment_heads))
    assert_openais(model, theirs)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_transformers_and_back(cfg, make_hf, tmp_path):
    theirs = make_hf(cfg)
    model = HookedWhisper.from_hf(theirs)
    assert_transformers(model, theirs)
    model.save_pretrained(tmp_path / "own")
    theirs.save_pretrained(tmp_path / "hf")
    for folder in ("own", "hf"):
        loaded = HookedWhisper.from_pretrained(tmp_path / folder, device="cpu")
        assert_transformers(loaded, theirs)


def test_what_is_loaded_is_the_users_own(openai_model, tmp_path):
    model = HookedWhisper.from_openai(openai_model)
    before = {name: value.clone() for name, value in openai_model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(openai_model.state_dict()[name], before[name]) for name in before)
    model.save_pretrained(tmp_path / "own")
    loaded = HookedWhisper.from_pretrained(tmp_path / "own", device="cpu")
    (tmp_path / "own" / "model.safetensors").write_bytes(b"")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_is_what_was_asked_for(openai_model, dtype):
    model = HookedWhisper.from_openai(openai_model, dtype=dtype)
    tensors = {**dict(model.named_parameters()), "pos": model.encoder.positional_embedding}
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_processed_model_goes_round(openai_model, tmp_path, dtype):
    model = HookedWhisper.from_openai(openai_model)
    model.process_weights_()
    model.to(dtype).save_pretrained(tmp_path)
    loaded = HookedWhisper.from_pretrained(tmp_path, device="cpu", dtype=dtype)
    assert loaded.cfg == model.cfg
    mel, tokens = inputs(model.cfg)
    with torch.no_grad():
        mel = mel.to(dtype)
        assert torch.equal(loaded(mel, tokens), model(mel, tokens))


def test_a_refused_file_says_so_through_from_pretrained(tmp_path):
    (tmp_path / "tiny.pt").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"tiny\.pt cannot be read as a torch checkpoint"):
        HookedWhisper.from_pretrained(tmp_path / "tiny.pt")


def dump(heads):
    """Alignment heads as openai-whisper writes them in its registry."""
    import base64
    import gzip

    return base64.b85encode(gzip.compress(heads.to_dense().numpy().tobytes()))
