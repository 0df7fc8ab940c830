"""transformers' folders, good and bad, and models in memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    SourceError,
    WeightNameError,
    WeightShapeError,
)
from hooked_whisper.weights import from_hf_state, load_weights
from hooked_whisper.weights.rename import huggingface_name


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def assert_same(values, model):
    theirs = model.state_dict()
    for name, value in values.items():
        assert torch.equal(value, theirs["model." + huggingface_name(name)]), name


@pytest.mark.parametrize("shards", [None, "40KB"], ids=["one-file", "sharded"])
def test_a_folder(hf_model, tmp_path, tiny_cfg, into_module, shards):
    hf_model.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    n_files = len(list(tmp_path.glob("*.safetensors")))
    assert n_files > 1 if shards else n_files == 1
    loaded = load_weights(tmp_path)
    sizes = {**loaded.cfg.to_dict(), "model_name": "tiny-random"}
    assert sizes == tiny_cfg.to_dict()
    assert loaded.cfg.model_name == tmp_path.name
    assert loaded.alignment_heads.nonzero().tolist() == [[0, 1], [2, 0]]
    assert_same(into_module(loaded), hf_model)


def test_half_precision_is_widened(hf_model, hf_folder, into_module):
    change_tensors(hf_folder, lambda held: held.update({k: v.half() for k, v in held.items()}))
    for name, value in into_module(load_weights(hf_folder)).items():
        theirs = hf_model.state_dict()["model." + huggingface_name(name)]
        assert value.dtype == torch.float32
        assert torch.equal(value, theirs.half().float()), name


def test_a_folder_of_the_bare_model(hf_model, tmp_path, into_module):
    hf_model.model.save_pretrained(tmp_path)
    assert "encoder.conv1.weight" in load_file(tmp_path / "model.safetensors")
    assert_same(into_module(load_weights(tmp_path)), hf_model)


def test_no_alignment_heads_where_none_are_given(hf_folder):
    (hf_folder / "generation_config.json").unlink()
    assert load_weights(hf_folder).alignment_heads is None


@pytest.mark.parametrize("bare", [False, True], ids=["whole", "WhisperModel"])
def test_a_model_in_memory_is_copied(hf_model, into_module, bare):
    loaded = from_hf_state(hf_model.model if bare else hf_model)
    if not bare:
        assert loaded.alignment_heads.nonzero().tolist() == [[0, 1], [2, 0]]
    values = into_module(loaded)
    assert_same(values, hf_model)
    theirs = {value.data_ptr() for value in hf_model.state_dict().values()}
    assert not theirs & {value.data_ptr() for value in values.values()}


def test_another_model_in_memory():
    from transformers import BertConfig, BertModel

    small = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(ArchitectureError, match="this BertModel is of a 'bert' model"):
        from_hf_state(BertModel(small))


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), None, "openai/whisper-tiny"], ids=str)
def test_no_transformers_model(model):
    with pytest.raises(ArchitectureError, match="from_hf takes a transformers Whisper, and got a"):
        from_hf_state(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "speech_to_text"}, "of a 'speech_to_text' model"),
        ({"activation_function": "relu"}, "activation_function .* is 'relu'; every Whisper .*gelu"),
        ({"scale_embedding": True}, "scale_embedding in .* is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings in .* is False"),
        ({"encoder_ffn_dim": 100}, "encoder_ffn_dim in .* is 100; .* 96"),
        ({"decoder_ffn_dim": 48}, "decoder_ffn_dim in .* is 48; .* 96"),
        ({"d_model": "24"}, "d_model in .* is '24'; it must be of type int"),
        ({"vocab_size": True}, "vocab_size in .* is True; it must be of type int"),
        ({"decoder_attention_heads": 5}, "n_text_heads is 5, which does not divide d_model 24"),
        ({"encoder_layers": 0}, "n_audio_layers is 0; it must be at least 1"),
        ({"decoder_layers": 10**12}, "1000000000000 decoder layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_of_something_else(hf_folder, changes, message):
    change_json(hf_folder / "config.json", **changes)
    with pytest.raises(ArchitectureError, match=message):
        load_weights(hf_folder)


def test_a_config_that_lacks_a_size(hf_folder):
    config = json.loads((hf_folder / "config.json").read_text())
    del config["num_mel_bins"]
    (hf_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArchitectureError, match=r"config\.json lacks \['num_mel_bins'\]"):
        load_weights(hf_folder)


@pytest.mark.parametrize("pair", [[3, 0], [0, 3], [-1, 0], [0.0, 1], [1], 4, None, "ab"], ids=str)
def test_alignment_heads_that_are_no_heads(hf_folder, pair):
    change_json(hf_folder / "generation_config.json", alignment_heads=[[0, 0], pair])
    with pytest.warns(
        UserWarning, match=r"alignment heads, which.*\(layers 0 to 2, heads 0 to 2\)"
    ):
        load_weights(hf_folder)


def test_a_misshapen_tensor_is_named_as_in_the_file(hf_folder):
    change_json(hf_folder / "config.json", num_mel_bins=128)
    message = r"'model\.encoder\.conv1\.weight' in .*hf is \(24, 80, 3\); .* n_mels is 128\."
    with pytest.raises(WeightShapeError, match=message):
        load_weights(hf_folder)


def test_missing_and_unexpected_tensors(hf_folder):
    change_tensors(
        hf_folder, lambda held: held.update({"lora.A": held.pop("model.decoder.layer_norm.bias")})
    )
    message = r"lacks 1 tensor: model\.decoder\.layer_norm\.bias\. .* 1 tensor .*: lora\.A\."
    with pytest.raises(WeightNameError, match=message):
        load_weights(hf_folder)


@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
def test_an_unembedding_in_the_file_must_be_the_embedding(hf_model, hf_folder, into_module, same):
    def add(held):
        held["proj_out.weight"] = held["model.decoder.embed_tokens.weight"] + (0 if same else 1e-3)

    change_tensors(hf_folder, add)
    if same:
        assert_same(into_module(load_weights(hf_folder)), hf_model)
    else:
        with pytest.raises(ArchitectureError, match=r"'proj_out\.weight' in .* differs from"):
            load_weights(hf_folder)


def test_integer_weights_are_refused(hf_folder):
    change_tensors(hf_folder, lambda held: held.update({"x": torch.ones(3, dtype=torch.int32)}))
    with pytest.raises(CheckpointError, match=r"'x' in .* holds torch\.int32 values"):
        load_weights(hf_folder)


def test_a_file_that_was_cut_short(hf_folder):
    path = hf_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as safetensors"):
        load_weights(hf_folder)


def as_bin(folder, model, **how):
    """Pickled weights in place of safetensors, as transformers wrote them before."""
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **how)
    return folder / "pytorch_model.bin"


class TestPickled:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_one_file(self, hf_folder, hf_model, into_module, zipped):
        as_bin(hf_folder, hf_model, _use_new_zipfile_serialization=zipped)
        assert_same(into_module(load_weights(hf_folder)), hf_model)

    def test_shards(self, hf_folder, hf_model, into_module):
        path = as_bin(hf_folder, hf_model)
        state = list(hf_model.state_dict().items())
        parts = {"pytorch_model-1.bin": state[:40], "pytorch_model-2.bin": state[40:]}
        for name, part in parts.items():
            torch.save(dict(part), hf_folder / name)
        weight_map = {key: name for name, part in parts.items() for key, _ in part}
        path.unlink()
        index = hf_folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert_same(into_module(load_weights(hf_folder)), hf_model)
        change_json(index, weight_map=dict.fromkeys(weight_map, "model-1.safetensors"))
        with pytest.raises(CheckpointError, match="shards are bin files beside it"):
            load_weights(hf_folder)

    def test_safetensors_go_before(self, hf_folder, hf_model, into_module):
        (hf_folder / "pytorch_model.bin").write_bytes(b"never opened")
        assert_same(into_module(load_weights(hf_folder)), hf_model)

    def test_no_object_but_tensors(self, hf_folder, hf_model):
        path = as_bin(hf_folder, hf_model)
        torch.save({**hf_model.state_dict(), "x": Path("touched")}, path)
        with pytest.raises(
            CheckpointError, match=r"_model\.bin holds pickled .*nothing .* executed"
        ):
            load_weights(hf_folder)
        torch.save([1, 2], path)
        with pytest.raises(CheckpointError, match="holds a list, and no tensors by name"):
            load_weights(hf_folder)
        torch.save({"a": torch.zeros(1).expand(10**12)}, path)
        with pytest.raises(CheckpointError, match=r"claim \d+ bytes, and the file has"):
            load_weights(hf_folder)
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(CheckpointError, match=r"cannot be read as a torch checkpoint"):
            load_weights(hf_folder)

    def test_an_unembedding_of_its_own(self, hf_folder, hf_model, into_module):
        path = as_bin(hf_folder, hf_model)
        state = hf_model.state_dict()
        torch.save({**state, "proj_out.weight": state["proj_out.weight"].clone()}, path)
        assert_same(into_module(load_weights(hf_folder)), hf_model)
        torch.save({**state, "proj_out.weight": state["proj_out.weight"] + 1}, path)
        with pytest.raises(ArchitectureError, match=r"'proj_out\.weight' in .* differs from"):
            load_weights(hf_folder)


def test_no_weights_at_all(hf_folder):
    (hf_folder / "model.safetensors").rename(hf_folder / "weights.bin")
    with pytest.raises(SourceError, match=r"none of model\.safetensors, .*holds .*'weights\.bin'"):
        load_weights(hf_folder)


class TestShards:
    @pytest.fixture
    def folder(self, hf_model, tmp_path):
        hf_model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
        return tmp_path / "sharded"

    def shard(self, folder):
        return sorted(folder.glob("model-*.safetensors"))[1]

    def test_one_is_missing(self, folder):
        self.shard(folder).unlink()
        with pytest.raises(CheckpointError, match=r"names the shard 'model-00002-of-.*is not in"):
            load_weights(folder)

    def test_one_was_cut_short(self, folder):
        self.shard(folder).write_bytes(self.shard(folder).read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=r"model-00002-of-.* cannot be read as safetens"):
            load_weights(folder)

    def test_one_is_of_another_model(self, folder):
        shutil.copy(sorted(folder.glob("model-*.safetensors"))[0], self.shard(folder))
        with pytest.raises(WeightNameError, match=r"model-00002-of-.* and .*index\.json differ in"):
            load_weights(folder)

    @pytest.mark.parametrize(
        ("weight_map", "message"),
        [
            (None, "has no 'weight_map'"),
            ({}, "has no 'weight_map'"),
            ({"a": "../../etc/x.safetensors"}, "shards are safetensors files beside it"),
            ({"a": "/x.safetensors"}, "shards are safetensors files beside it"),
            ({"a": "pytorch_model.bin"}, "shards are safetensors files beside it"),
            ({"a": 3}, "names the shard 3"),
        ],
        ids=["none", "empty", "above", "absolute", "pickle", "number"],
    )
    def test_the_index_is_bad(self, folder, weight_map, message):
        change_json(folder / "model.safetensors.index.json", weight_map=weight_map)
        with pytest.raises(CheckpointError, match=message):
            load_weights(folder)
