"""Adapters of peft: on they are the merged model, off the base, and both are peft's."""

import copy
import json
import shutil
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.config import Vocabulary
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    ConfigError,
    HookError,
    SourceError,
    WeightNameError,
    WeightShapeError,
)

from .peft_files import adapted, merged, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")

LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
ADAPTERS = {
    "rank-1": {"r": 1, "target_modules": ["q_proj", "v_proj"]},
    "rank-16": {"r": 16, "target_modules": LINEAR, "lora_alpha": 3},
    "all-linear": {"r": 4, "target_modules": "all-linear"},
    "rslora": {"r": 4, "target_modules": ["fc1", "out_proj"], "use_rslora": True},
    "dora": {"r": 2, "target_modules": LINEAR, "use_dora": True, "use_rslora": True},
    "patterns": {
        "r": 3,
        "target_modules": r".*decoder.*(q_proj|fc1)",
        "rank_pattern": {"encoder_attn.q_proj": 5, r"layers\.1\.fc1": 2},
        "alpha_pattern": {"fc1": 20},
    },
    "some-layers": {"target_modules": ["fc1"], "layers_to_transform": [1]},
    "layers-pattern": {
        "target_modules": ["fc1"],
        "layers_to_transform": 1,
        "layers_pattern": "layers",
    },
    "excluded": {"target_modules": ["fc2"], "exclude_modules": r".*encoder\.layers.*"},
    "modules-to-save": {"target_modules": ["q_proj"], "modules_to_save": ["conv1", "layer_norm"]},
    "saved-embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved-tokens": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "proj_out"],
    },
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]},
    "all-biases": {"target_modules": ["q_proj"], "bias": "all"},
    "their-biases": {"target_modules": ["fc1"], "bias": "lora_only"},
    "lora-bias": {"target_modules": ["v_proj"], "lora_bias": True},
    "fan-in-fan-out": {"target_modules": ["fc1"], "fan_in_fan_out": True},
}


@pytest.fixture(scope="module")
def base(hf_model, tmp_path_factory):
    """A model of transformers, and its folder."""
    folder = tmp_path_factory.mktemp("base") / "small"
    hf_model.save_pretrained(folder)
    return hf_model, folder


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """An adapter's folder that no test changes."""
    model = adapted(base[0], r=4, target_modules=["q_proj", "v_proj"])
    return save_adapter(model, tmp_path_factory.mktemp("adapters") / "plain")


@pytest.fixture
def folder(plain, tmp_path):
    """An adapter's folder that a test may change."""
    return shutil.copytree(plain, tmp_path / "adapter")


def logits(model, mel, tokens):
    with torch.no_grad():
        if isinstance(model, HookedWhisper):
            return model(mel, tokens)
        return model(input_features=mel, decoder_input_ids=tokens).logits


def assert_near(ours, theirs):
    assert (ours - theirs).abs().max() < 1e-5 * max(1, float(theirs.abs().max()))


QUICK = ("rank-1", "dora", "patterns", "modules-to-save", "rows", "their-biases")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ADAPTERS]


@pytest.mark.parametrize("name", CASES)
def test_on_is_peft_and_off_is_the_base(base, tmp_path, tiny_mel, tiny_tokens, name):
    theirs = adapted(base[0], **ADAPTERS[name])
    model = HookedWhisper.from_pretrained(
        save_adapter(theirs, tmp_path), base=base[1], device="cpu"
    )
    on, off = logits(theirs, tiny_mel, tiny_tokens), logits(base[0], tiny_mel, tiny_tokens)
    assert (on - off).abs().max() > 1e-3
    assert_near(logits(model, tiny_mel, tiny_tokens), on)
    with model.adapter(False):
        assert_near(logits(model, tiny_mel, tiny_tokens), off)
        with model.adapter(True):
            assert_near(logits(model, tiny_mel, tiny_tokens), on)
    assert_near(logits(model, tiny_mel, tiny_tokens), logits(merged(theirs), tiny_mel, tiny_tokens))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_convolutions(base, tmp_path, tiny_mel, tiny_tokens, dora):
    """Against peft's merged model: it cannot run Whisper with an adapter on a convolution."""
    theirs = adapted(base[0], r=2, target_modules=["conv1", "conv2"], use_dora=dora)
    model = HookedWhisper.from_pretrained(
        save_adapter(theirs, tmp_path), base=base[1], device="cpu"
    )
    assert_near(logits(model, tiny_mel, tiny_tokens), logits(merged(theirs), tiny_mel, tiny_tokens))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_embedding_alone_is_untied(base, tmp_path, tiny_mel, tiny_tokens, dora):
    """As in peft's running model; merging there changes the unembedding too."""
    theirs = adapted(base[0], r=2, target_modules=["embed_tokens"], use_dora=dora)
    model = HookedWhisper.from_pretrained(
        save_adapter(theirs, tmp_path), base=base[1], device="cpu"
    )
    assert_near(logits(model, tiny_mel, tiny_tokens), logits(theirs, tiny_mel, tiny_tokens))
    with model.adapter(False):
        assert_near(logits(model, tiny_mel, tiny_tokens), logits(base[0], tiny_mel, tiny_tokens))


def test_a_pickle_and_a_base_in_another_format(
    base, tmp_path, tiny_mel, tiny_tokens, without_shape_checks
):
    theirs = adapted(base[0], r=2, target_modules=["fc1"])
    save_adapter(theirs, tmp_path / "a")
    state = load_file(tmp_path / "a" / "adapter_model.safetensors")
    torch.save(state, tmp_path / "a" / "adapter_model.bin")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    HookedWhisper.from_hf(base[0]).save_pretrained(tmp_path / "b.pt", format="openai")
    model = HookedWhisper.from_pretrained(tmp_path / "a", base=tmp_path / "b.pt", device="cpu")
    assert_near(logits(model, tiny_mel, tiny_tokens), logits(theirs, tiny_mel, tiny_tokens))


def test_the_base_is_named_in_the_config(base, folder, plain):
    change(folder, base_model_name_or_path=str(base[1]))
    model = HookedWhisper.from_pretrained(folder, device="cpu")
    assert "adapter" in repr(model) and ", on" in repr(model)
    change(folder, base_model_name_or_path=str(folder))
    with pytest.raises(SourceError, match="is an adapter itself"):
        HookedWhisper.from_pretrained(folder)
    change(folder, base_model_name_or_path="no-such-model")
    with pytest.raises(SourceError, match=r"the base of the adapter in .* is not there: .*base="):
        HookedWhisper.from_pretrained(folder)
    change(folder, base_model_name_or_path=None)
    with pytest.raises(SourceError, match=r"does not name its base\. Say which it is"):
        HookedWhisper.from_pretrained(folder)
    with pytest.raises(SourceError, match="is no adapter, which alone has one"):
        HookedWhisper.from_pretrained(base[1], base=base[1])


def test_more_tokens_than_the_base_has(hf_model, base, tmp_path, tiny_mel, tiny_tokens):
    more = copy.deepcopy(hf_model)
    n_tokens = more.config.vocab_size + 2
    more.resize_token_embeddings(n_tokens, mean_resizing=False)
    theirs = adapted(more, target_modules=["q_proj"], modules_to_save=["embed_tokens", "proj_out"])
    save_adapter(theirs, tmp_path)
    model = HookedWhisper.from_pretrained(tmp_path, base=base[1], device="cpu")
    assert model.cfg.d_vocab == n_tokens
    tokens = tiny_tokens.clone()
    tokens[:, -1] = n_tokens - 1
    assert_near(logits(model, tiny_mel, tokens), logits(theirs, tiny_mel, tokens))
    with model.adapter(False):
        ours = logits(model, tiny_mel, tiny_tokens)[..., :-2]
        assert_near(ours, logits(hf_model, tiny_mel, tiny_tokens))


def test_the_adapters_own_tokens(make_hf, tmp_path):
    sizes = {"n_audio_ctx": 10, "n_text_ctx": 9, "n_audio_layers": 1, "n_text_layers": 1}
    sizes |= {"d_model": 8, "n_audio_heads": 2, "n_text_heads": 2}
    plain = make_hf(HookedWhisperConfig.for_release("tiny", **sizes))
    plain.save_pretrained(tmp_path / "base")
    more = copy.deepcopy(plain)
    more.resize_token_embeddings(51866, mean_resizing=False)
    theirs = adapted(more, target_modules=["q_proj"], modules_to_save=["embed_tokens", "proj_out"])
    folder = save_adapter(theirs, tmp_path / "adapter")
    (folder / "added_tokens.json").write_text('{"[UH]": 51865}')
    model = HookedWhisper.from_pretrained(folder, base=tmp_path / "base", device="cpu")
    assert model.cfg.vocabulary == Vocabulary(51865, text=(("[UH]", 51865),))
    assert model.to_string([51865]) == "[UH]"


# The switch


def test_merging_leaves_a_plain_model(
    base, plain, tmp_path, tiny_mel, tiny_tokens, without_shape_checks
):
    model = HookedWhisper.from_pretrained(plain, base=base[1], device="cpu")
    before = logits(model, tiny_mel, tiny_tokens)
    with pytest.raises(ConfigError, match=r"Call model\.merge_adapter\(\) first"):
        model.process_weights_()
    with pytest.raises(ConfigError, match="the adapter is off here"), model.adapter(False):
        model.merge_adapter()
    assert not any("adapter" in name for name in model.state_dict())
    model.save_pretrained(tmp_path / "merged")
    again = HookedWhisper.from_pretrained(tmp_path / "merged", device="cpu")
    assert torch.equal(logits(again, tiny_mel, tiny_tokens), before)
    assert model.merge_adapter() is model
    model.process_weights_()
    assert_near(logits(model, tiny_mel, tiny_tokens), before)
    for call in (lambda: model.adapter(False), model.merge_adapter):
        with pytest.raises(ConfigError, match="this model has no adapter"):
            call()
    with pytest.raises(ConfigError, match="on \\(True\\) or off"):
        model.adapter("off")


def test_it_goes_where_the_model_goes(base, plain, without_shape_checks, tiny_mel, tiny_tokens):
    model = HookedWhisper.from_pretrained(plain, base=base[1], device="cpu", dtype=torch.float64)
    with model.adapter(False):
        off = logits(model, tiny_mel.double(), tiny_tokens)
    model.to(torch.float32)
    with model.adapter(False):
        assert (logits(model, tiny_mel, tiny_tokens) - off).abs().max() < 1e-4
        name = "encoder.blocks.0.attn.hook_q"
        with pytest.raises(RuntimeError, match="stop"), model.adapter(True):
            raise RuntimeError("stop")
        _, cache = model.run_with_cache(tiny_mel, tiny_tokens, names_filter=name)
    _, other = model.run_with_cache(tiny_mel, tiny_tokens, names_filter=name)
    assert not torch.equal(cache[name], other[name])


def test_one_thread_at_a_time(base, plain):
    model = HookedWhisper.from_pretrained(plain, base=base[1], device="cpu")
    caught = []

    def other():
        try:
            with model.adapter(False):
                pass
        except HookError as error:
            caught.append(error)

    with model.adapter(False):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
    assert len(caught) == 1 and model.adapter_weights.is_on


# Refused


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"peft_type": "IA3"}, ArchitectureError, "of the kind 'IA3'; LoRA, also DoRA"),
        ({"use_qalora": True}, ArchitectureError, "use_qalora True, which is not computed"),
        ({"layer_replication": [[0, 2]]}, ArchitectureError, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, ArchitectureError, "over another base"),
        ({"r": 8}, WeightShapeError, r"lora_A.*is \(4, 24\).* make it \(8, 24\), with rank 8"),
        ({"r": True}, CheckpointError, r"r in .* is True; it must be an integer"),
        ({"r": 10**12}, CheckpointError, r"r in .* is 1000000000000"),
        ({"lora_alpha": "x"}, CheckpointError, "lora_alpha in .* is 'x'"),
        ({"lora_alpha": float("nan")}, CheckpointError, "lora_alpha in .* is nan"),
        ({"bias": "some"}, CheckpointError, "bias in .* is 'some'"),
        ({"use_dora": True}, WeightNameError, "its config makes .*lora_magnitude_vector"),
        ({"target_modules": ["q_proj"]}, WeightNameError, "v_proj', which its config does not"),
        ({"target_modules": ["q_proj", "v_proj", "fc1"]}, WeightNameError, "lacks 5 modules"),
        ({"target_modules": 3}, CheckpointError, "target_modules in .* is 3"),
        ({"target_modules": "(.+)+!"}, WeightNameError, "does not name"),
        ({"target_modules": "("}, CheckpointError, "the pattern '\\(', which cannot be used"),
        ({"rank_pattern": {"q_proj": 2}}, WeightShapeError, "with rank 2"),
        ({"rank_pattern": {"q_proj": "2"}}, CheckpointError, "rank_pattern in"),
        ({"modules_to_save": ["conv1"]}, WeightNameError, "encoder.conv1.bias"),
        ({"layers_to_transform": ["a"]}, CheckpointError, "layers_to_transform in"),
        ({"trainable_token_indices": [1, 1]}, CheckpointError, "different token ids"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_of_something_else(base, folder, values, error, message):
    change(folder, **values)
    with pytest.raises(error, match=message):
        HookedWhisper.from_pretrained(folder, base=base[1])


def test_a_pattern_that_never_ends(base, folder, monkeypatch):
    monkeypatch.setattr("hooked_whisper.weights.adapter_config._SECONDS", 0.05)
    change(folder, target_modules=r"(\w|\w\w|\.)+!" + "(a|b|ab)*" * 3)
    with pytest.raises((CheckpointError, WeightNameError)):
        HookedWhisper.from_pretrained(folder, base=base[1])


def test_files_that_are_not_whole(base, folder):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        HookedWhisper.from_pretrained(folder, base=base[1])
    path.write_bytes(whole)
    tensors = load_file(path)
    key = next(iter(tensors))
    save_file({**tensors, "base_model.model.model.x": tensors[key].clone()}, path)
    with pytest.raises(WeightNameError, match="holds 'x', which its config does not name"):
        HookedWhisper.from_pretrained(folder, base=base[1])
    save_file({**tensors, key: tensors[key] / 0}, path)
    with pytest.raises(CheckpointError, match="holds NaN or infinite values"):
        HookedWhisper.from_pretrained(folder, base=base[1])
    save_file({**tensors, key: tensors[key].int()}, path)
    with pytest.raises(CheckpointError, match=r"holds torch\.int32 values"):
        HookedWhisper.from_pretrained(folder, base=base[1])
    save_file({name: value for name, value in tensors.items() if name != key}, path)
    with pytest.raises(WeightNameError, match="It was cut short"):
        HookedWhisper.from_pretrained(folder, base=base[1])
    path.unlink()
    with pytest.raises(CheckpointError, match=r"none of adapter_model\.safetensors"):
        HookedWhisper.from_pretrained(folder, base=base[1])
    (folder / "adapter_config.json").unlink()
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"weights and no adapter_config\.json"):
        HookedWhisper.from_pretrained(folder, base=base[1])


def test_another_base(plain, make_hf, tiny_cfg, tmp_path):
    make_hf(replace(tiny_cfg, n_audio_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(WeightNameError, match=r"layers\.1\..*which the base does not have"):
        HookedWhisper.from_pretrained(plain, base=tmp_path)
    make_hf(replace(tiny_cfg, d_model=12)).save_pretrained(tmp_path / "narrow")
    with pytest.raises(WeightShapeError, match=r"is \(4, 24\).* make it \(4, 12\)"):
        HookedWhisper.from_pretrained(plain, base=tmp_path / "narrow")


def test_values_that_overflow(base, folder):
    change(folder, lora_alpha=1e9)
    HookedWhisper.from_pretrained(folder, base=base[1], device="cpu")
    with pytest.raises(CheckpointError, match="is not finite in float16"):
        HookedWhisper.from_pretrained(folder, base=base[1], device="cpu", dtype=torch.float16)
