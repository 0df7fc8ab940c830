"""Whisper's encoder alone, against transformers: bare, for classes, in Qwen2-Audio and Voxtral."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    NoDecoderError,
    WeightNameError,
    WeightShapeError,
)

LAYERS = 3
AUDIO = {"num_mel_bins": 9, "max_source_positions": 12}
TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def random(model):
    """The model with random values everywhere, so that no LayerNorm or bias is plain."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return model.eval()


def qwen():
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioEncoderConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2Config,
    )

    audio = Qwen2AudioEncoderConfig(
        d_model=24, encoder_layers=LAYERS, encoder_attention_heads=3, encoder_ffn_dim=96, **AUDIO
    )
    text = Qwen2Config(**TEXT)
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=3)
    return random(Qwen2AudioForConditionalGeneration(config))


def voxtral():
    from transformers import (
        LlamaConfig,
        VoxtralConfig,
        VoxtralEncoderConfig,
        VoxtralForConditionalGeneration,
    )

    audio = VoxtralEncoderConfig(
        hidden_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        intermediate_size=96,
        vocab_size=40,
        **AUDIO,
    )
    text = LlamaConfig(**TEXT, head_dim=8)
    config = VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=3)
    return random(VoxtralForConditionalGeneration(config))


def classifier():
    from transformers import WhisperConfig, WhisperForAudioClassification

    ids = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 1)
    config = WhisperConfig(
        d_model=24,
        encoder_layers=LAYERS,
        encoder_attention_heads=3,
        encoder_ffn_dim=96,
        decoder_layers=1,
        decoder_attention_heads=3,
        decoder_ffn_dim=96,
        vocab_size=40,
        classifier_proj_size=5,
        use_weighted_layer_sum=True,
        decoder_start_token_id=1,
        **ids,
        **AUDIO,
    )
    return random(WhisperForAudioClassification(config))


MAKE = {"qwen2-audio": qwen, "voxtral": voxtral, "classifier": classifier}


def tower_of(whole):
    inside = getattr(whole, "model", whole)
    return getattr(inside, "audio_tower", None) or whole.encoder


@pytest.fixture(scope="module", params=MAKE, ids=str)
def whole(request):
    return MAKE[request.param]()


@pytest.fixture(scope="module")
def mel():
    return torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


def assert_is(model, tower, mel):
    """Every residual stream, the last LayerNorm and what the tower gives out."""
    assert not model.cfg.has_decoder and "an encoder alone" in repr(model)
    kept = []
    hooks = [
        layer.register_forward_hook(lambda *args: kept.append(args[2])) for layer in tower.layers
    ]
    with torch.no_grad():
        theirs = tower(mel).last_hidden_state
        ours, cache = model.run_with_cache(mel)
    for hook in hooks:
        hook.remove()
    for layer, hidden in enumerate(kept):
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        resid = cache[f"encoder.blocks.{layer}.hook_resid_post"]
        assert (resid - hidden).abs().max() < 1e-5
    if type(tower).__name__ == "Qwen2AudioEncoder":
        assert theirs.shape[1] * 2 == ours.shape[1]
        stream = model(mel, stop_at_layer=("encoder", LAYERS))
        with torch.no_grad():
            assert (tower.layer_norm(stream) - ours).abs().max() < 1e-5
            ours = model.encoder.pooled(stream)
    assert (ours - theirs).abs().max() < 1e-5


def test_in_memory(whole, mel):
    assert_is(HookedWhisper.from_hf(whole), tower_of(whole), mel)
    assert_is(HookedWhisper.from_hf(tower_of(whole)), tower_of(whole), mel)


@pytest.mark.parametrize("shards", [None, "20KB"], ids=["one-file", "sharded"])
def test_folders(whole, mel, tmp_path, shards):
    whole.save_pretrained(tmp_path / "whole", **({"max_shard_size": shards} if shards else {}))
    assert_is(HookedWhisper.from_pretrained(tmp_path / "whole", device="cpu"), tower_of(whole), mel)
    tower_of(whole).save_pretrained(tmp_path / "bare")
    model = HookedWhisper.from_pretrained(tmp_path / "bare", device="cpu")
    assert_is(model, tower_of(whole), mel)
    model.save_pretrained(tmp_path / "own")
    again = HookedWhisper.from_pretrained(tmp_path / "own", device="cpu")
    assert again.cfg == model.cfg
    assert_is(again, tower_of(whole), mel)


def test_only_the_towers_shards_are_needed(tmp_path, mel):
    whole = qwen()
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {name for key, name in weight_map.items() if "audio_tower." in key}
    others = set(weight_map.values()) - needed
    assert others
    for name in others:
        (tmp_path / name).unlink()
    assert_is(HookedWhisper.from_pretrained(tmp_path, device="cpu"), tower_of(whole), mel)


def test_the_encoder_of_a_whole_whisper(hf_model, tmp_path, tiny_mel, make_model):
    hf_model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {key: value for key, value in load_file(path).items() if ".encoder." in key}
    save_file(state, path)
    with pytest.warns(UserWarning, match="of a WhisperForConditionalGeneration, and the weights h"):
        model = HookedWhisper.from_pretrained(tmp_path, device="cpu")
    with torch.no_grad():
        theirs = hf_model.model.encoder(tiny_mel).last_hidden_state
    assert (model(tiny_mel) - theirs).abs().max() < 1e-5
    for form in ("openai", "huggingface"):
        with pytest.raises(NoDecoderError, match="Save it with save_pretrained"):
            model.save_pretrained(tmp_path / "a", format=form)


# Refused


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def voxtral_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voxtral") / "whole"
    voxtral().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"audio_config": None}, ArchitectureError, "audio_config in .* is None; that of a vox"),
        ({"audio_config": {"model_type": "voxtral_realtime_encoder"}}, ArchitectureError, "must"),
        ({"model_type": "voxtral_realtime"}, ArchitectureError, "of a 'voxtral_realtime' model"),
        ({"audio_config": {"hidden_size": 48}}, ArchitectureError, "d_mlp|heads|ffn"),
        ({"audio_config": {}}, WeightNameError, "lacks"),
    ],
    ids=["none", "another", "realtime", "other-sizes", "defaults"],
)
def test_configs_of_something_else(voxtral_folder, tmp_path, values, error, message):
    folder = shutil.copytree(voxtral_folder, tmp_path / "a")
    change(folder, **values)
    with pytest.raises((error, WeightShapeError), match=message):
        HookedWhisper.from_pretrained(folder)


def test_tensors_that_are_missing(voxtral_folder, tmp_path):
    folder = shutil.copytree(voxtral_folder, tmp_path / "a")
    path = folder / "model.safetensors"
    state = load_file(path)
    key = next(key for key in state if key.endswith("layers.1.fc1.weight"))
    save_file({name: value for name, value in state.items() if name != key}, path)
    with pytest.raises(WeightNameError, match=r"lacks 1 tensor: .*layers\.1\.fc1\.weight"):
        HookedWhisper.from_pretrained(folder)
    save_file({name: value for name, value in state.items() if "audio_tower" not in name}, path)
    with pytest.raises(WeightNameError, match=r"has 0 tensors 'conv1\.weight' of an encoder"):
        HookedWhisper.from_pretrained(folder)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        HookedWhisper.from_pretrained(folder)
