"""Names and shapes, against what openai-whisper and transformers really have."""

from dataclasses import replace

import pytest
import torch

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import ArchitectureError, WeightNameError, WeightShapeError
from hooked_whisper.weights.files import MemoryTensor
from hooked_whisper.weights.rename import (
    expected_shapes,
    huggingface_name,
    match_tensors,
    openai_name,
    sizes,
)

REDUCED = {"d_model": 16, "n_audio_heads": 2, "n_text_heads": 2, "n_audio_ctx": 20}


def release(name):
    cfg = HookedWhisperConfig.for_release(name, n_text_ctx=30, **REDUCED)
    layers = {"n_audio_layers": min(cfg.n_audio_layers, 12), "n_text_layers": cfg.n_text_layers % 9}
    return replace(cfg, **{key: max(1, value) for key, value in layers.items()})


def tensors_of(cfg):
    """Tensors of the right names and shapes that take no memory."""
    return {
        openai_name(name): MemoryTensor(torch.empty(sizes(shape, cfg), device="meta"))
        for name, shape in expected_shapes(cfg).items()
    }


@pytest.mark.parametrize("name", ["tiny", "tiny.en", "small", "large-v3", "turbo"])
def test_names_and_shapes_are_openai_whispers(name):
    from whisper.model import Whisper

    cfg = release(name)
    theirs = {key: tuple(v.shape) for key, v in Whisper(cfg.dims).state_dict().items()}
    ours = {openai_name(key): sizes(v, cfg) for key, v in expected_shapes(cfg).items()}
    assert ours == theirs


@pytest.mark.parametrize("name", ["tiny", "tiny.en", "small", "large-v3", "turbo"])
def test_names_and_shapes_are_transformers(name):
    from transformers import WhisperConfig, WhisperModel

    cfg = release(name)
    config = WhisperConfig(
        num_mel_bins=cfg.n_mels,
        max_source_positions=cfg.n_audio_ctx,
        encoder_layers=cfg.n_audio_layers,
        encoder_attention_heads=cfg.n_audio_heads,
        max_target_positions=cfg.n_text_ctx,
        decoder_layers=cfg.n_text_layers,
        decoder_attention_heads=cfg.n_text_heads,
        d_model=cfg.d_model,
        encoder_ffn_dim=cfg.d_mlp,
        decoder_ffn_dim=cfg.d_mlp,
        vocab_size=cfg.d_vocab,
    )
    with torch.device("meta"):
        theirs = {key: tuple(v.shape) for key, v in WhisperModel(config).state_dict().items()}
    ours = {huggingface_name(key): sizes(v, cfg) for key, v in expected_shapes(cfg).items()}
    assert ours == theirs


def test_names_are_told_apart(tiny_cfg):
    for rename in (openai_name, huggingface_name):
        names = [rename(name) for name in expected_shapes(tiny_cfg)]
        assert len(set(names)) == len(names)


def test_a_processed_model_has_its_own_unembedding_and_key_biases(tiny_cfg):
    plain = set(expected_shapes(tiny_cfg))
    processed = expected_shapes(replace(tiny_cfg, tie_unembedding=False, key_bias=True))
    added = set(processed) - plain
    assert {"decoder.unembedding.weight", "decoder.unembedding.bias"} < added
    assert "decoder.blocks.2.cross_attn.key.bias" in added
    assert len(added) == 2 + tiny_cfg.n_audio_layers + 2 * tiny_cfg.n_text_layers


def test_missing_and_unexpected_tensors_are_all_listed(tiny_cfg):
    tensors = tensors_of(tiny_cfg)
    del tensors["encoder.conv1.bias"], tensors["decoder.blocks.1.attn.out.weight"]
    for layer in range(tiny_cfg.n_text_layers):
        del tensors[f"decoder.blocks.{layer}.mlp_ln.bias"]
    tensors["encoder.adapter"] = tensors["decoder.ln.bias"]
    with pytest.raises(WeightNameError) as caught:
        match_tensors(tensors, tiny_cfg, openai_name, "tiny.pt")
    assert str(caught.value) == (
        "tiny.pt lacks 5 tensors: decoder.blocks.1.attn.out.weight, "
        "decoder.blocks.{0,1,2}.mlp_ln.bias, encoder.conv1.bias. "
        "tiny.pt holds 1 tensor that no Whisper of this config has: encoder.adapter. "
        "A checkpoint must be whole, and nothing else."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_mels": 128},
            r"'encoder\.conv1\.weight' in tiny\.pt is \(24, 80, 3\); this config needs "
            r"\(24, 128, 3\) because n_mels is 128\.$",
        ),
        (
            {"d_vocab": 99},
            r"is \(101, 24\); this config needs \(99, 24\) because d_vocab is 99\.$",
        ),
        (
            {"d_model": 48},
            r"\(48, 80, 3\) because d_model is 48\..* 108 more tensors do not fit\.$",
        ),
    ],
    ids=["mels", "vocabulary", "everything"],
)
def test_a_misshapen_tensor_is_explained_by_the_config(tiny_cfg, changes, message):
    with pytest.raises(WeightShapeError, match=message):
        match_tensors(
            tensors_of(tiny_cfg), replace(tiny_cfg, **changes), openai_name, source="tiny.pt"
        )


def test_another_number_of_axes_is_told_without_a_guess_at_the_reason(tiny_cfg):
    tensors = tensors_of(tiny_cfg)
    tensors["encoder.conv1.bias"] = MemoryTensor(torch.zeros(24, 1))
    with pytest.raises(WeightShapeError, match=r"is \(24, 1\); this config needs \(24,\)\.$"):
        match_tensors(tensors, tiny_cfg, openai_name, "tiny.pt")


def test_absurd_layer_counts_are_refused_at_once(tiny_cfg):
    cfg = replace(tiny_cfg, n_text_layers=10**12)
    with pytest.raises(ArchitectureError, match="1000000000000 decoder layers"):
        match_tensors(tensors_of(tiny_cfg), cfg, openai_name, "tiny.pt")
