"""This package's own folders, written and read."""

import json
from dataclasses import replace

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
from hooked_whisper.weights import load_weights, registry, save_weights
from hooked_whisper.weights.rename import expected_shapes, sizes


def random_state(cfg, dtype=torch.float32):
    return {
        name: torch.randn(sizes(shape, cfg)).to(dtype)
        for name, shape in expected_shapes(cfg).items()
    }


@pytest.fixture
def state(tiny_cfg):
    return random_state(tiny_cfg)


@pytest.fixture
def folder(tmp_path, tiny_cfg, state):
    save_weights(tmp_path / "own", tiny_cfg, state)
    return tmp_path / "own"


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("processed", [False, True], ids=["plain", "processed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_saved_loads(tmp_path, tiny_cfg, into_module, processed, dtype):
    cfg = replace(tiny_cfg, use_attn_in=True, tie_unembedding=not processed, key_bias=processed)
    heads = torch.rand(cfg.n_text_layers, cfg.n_text_heads) > 0.5
    state = random_state(cfg, dtype)
    save_weights(str(tmp_path / "a" / "b"), cfg, state, heads)
    loaded = load_weights(tmp_path / "a" / "b")
    assert loaded.cfg == cfg
    assert torch.equal(loaded.alignment_heads, heads)
    values = into_module(loaded, dtype=dtype)
    assert values.keys() == state.keys()
    assert all(torch.equal(values[name], state[name]) for name in state)


def test_a_folder_holds_two_files_and_no_leftovers(folder, tiny_cfg, state):
    save_weights(folder, tiny_cfg, state)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["version"]) == ("hooked_whisper", 1)


def test_transposed_and_shared_tensors_are_written_whole(tmp_path, tiny_cfg, state, into_module):
    name = "encoder.blocks.0.attn.query.weight"
    state[name] = state[name].T
    state["encoder.conv2.bias"] = state["encoder.conv1.bias"]
    save_weights(tmp_path / "own", tiny_cfg, state)
    values = into_module(load_weights(tmp_path / "own"))
    assert all(torch.equal(values[name], state[name]) for name in state)


def test_saving_over_an_earlier_save_replaces_it(folder, tiny_cfg, state, into_module):
    new = {name: value + 1 for name, value in state.items()}
    save_weights(folder, tiny_cfg, new)
    values = into_module(load_weights(folder))
    assert all(torch.equal(values[name], new[name]) for name in new)


def test_a_failed_save_leaves_the_earlier_one(folder, tiny_cfg, state, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="division"):
            save_weights(folder, tiny_cfg, {name: value + 1 for name, value in state.items()})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_damage_between_saving_and_loading(folder):
    """A bit that flips leaves a number that is finite; a size that changes may fit all shapes."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for at in (-1, -5000):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"is damaged.*Copy both files again"):
            load_weights(folder)
    path.write_bytes(whole)
    load_weights(folder)
    config = json.loads((folder / "config.json").read_text())["config"]
    change_config(folder, config={**config, "model_name": "mine", "use_attn_in": True})
    assert load_weights(folder).cfg.model_name == "mine"
    change_config(folder, config={**config, "n_audio_heads": 4})
    with pytest.raises(CheckpointError, match=r"is not of the config\.json beside it"):
        load_weights(folder)


def test_another_packages_model_is_not_overwritten(hf_folder, tiny_cfg, state):
    with pytest.raises(SourceError, match=r"config\.json belongs to another package's model"):
        save_weights(hf_folder, tiny_cfg, state)


def test_a_file_in_the_way(tmp_path, tiny_cfg, state):
    (tmp_path / "own").write_text("")
    with pytest.raises(SourceError, match="own is a file; save_pretrained writes a folder"):
        save_weights(tmp_path / "own", tiny_cfg, state)


def test_saving_an_incomplete_state(tmp_path, tiny_cfg, state):
    del state["encoder.conv1.bias"]
    with pytest.raises(WeightNameError, match=r"the model lacks 1 tensor: encoder\.conv1\.bias"):
        save_weights(tmp_path / "own", tiny_cfg, state)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"version": 2}, CheckpointError, "has version 2 .*; this release reads version 1"),
        ({"version": None}, CheckpointError, "has version None"),
        ({"config": None}, ArchitectureError, "holds None as the config"),
        ({"config": {}}, ArchitectureError, "missing fields .*d_model"),
        ({"omitted": ["encoder.conv1.bias"]}, CheckpointError, r"omits \['encoder\.conv1\.bias'\]"),
        ({"omitted": "encoder"}, CheckpointError, "omits 'encoder'"),
        ({"omitted": [[]]}, CheckpointError, r"omits \[\[\]\]"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_config_file_with_a_mistake(folder, changes, error, message):
    change_config(folder, **changes)
    with pytest.raises(error, match=message):
        load_weights(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": "24"}, "d_model in .* is '24'; it must be of type int"),
        ({"key_bias": "no"}, "key_bias in .* is 'no'; it must be of type bool"),
        ({"d_model": 25}, "holds no config of a Whisper: d_model is 25"),
        ({"width": 3}, r"unknown fields \['width'\]"),
    ],
    ids=["text", "switch", "odd", "unknown"],
)
def test_a_config_with_a_mistake(folder, tiny_cfg, changes, message):
    change_config(folder, config={**tiny_cfg.to_dict(), **changes})
    with pytest.raises(ArchitectureError, match=message):
        load_weights(folder)


def test_a_misshapen_tensor(folder, tiny_cfg):
    change_config(folder, config={**tiny_cfg.to_dict(), "d_vocab": 102})
    message = r"'decoder\.token_embedding\.weight' in .* is \(101, 24\); .* because d_vocab is 102"
    with pytest.raises(WeightShapeError, match=message):
        load_weights(folder)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors beside its config\.json"):
        load_weights(folder)


class TestTheShippedFormat:
    """Few rows of the embedding, and no audio positions: what the digits model is stored as."""

    ROW_IDS = (100, 7, 50)

    @pytest.fixture
    def stored(self, state):
        embedding = state.pop("decoder.token_embedding.weight")
        del state["encoder.positional_embedding"]
        state["decoder.token_embedding.rows"] = embedding[: len(self.ROW_IDS) + 1].half()
        state["decoder.token_embedding.row_ids"] = torch.tensor(self.ROW_IDS, dtype=torch.int32)
        return state

    @pytest.fixture
    def write(self, folder, stored):
        def write(**changes):
            save_file({**stored, **changes}, folder / "model.safetensors")
            change_config(folder, omitted=["encoder.positional_embedding"])
            return folder

        return write

    def test_it_unfolds(self, write, stored, tiny_cfg, make_module, monkeypatch):
        from hooked_whisper.weights import assign_weights

        monkeypatch.setattr(registry, "DIGITS_FOLDER", write())
        loaded = load_weights("digits")
        assert loaded.omitted == ("encoder.positional_embedding",)
        module = make_module(tiny_cfg)
        positions = torch.randn(tiny_cfg.n_audio_ctx, tiny_cfg.d_model)
        module.encoder.positional_embedding = positions
        assign_weights(module, loaded, device="cpu", dtype=torch.float32)
        values = module.state_dict()
        assert torch.equal(values["encoder.positional_embedding"], positions)
        rows = stored["decoder.token_embedding.rows"].float()
        embedding = values["decoder.token_embedding.weight"]
        assert embedding.shape == (101, 24)
        for row, token in enumerate(self.ROW_IDS):
            assert torch.equal(embedding[token], rows[row])
        others = [token for token in range(101) if token not in self.ROW_IDS]
        assert torch.equal(embedding[others], rows[-1].expand(len(others), -1))

    @pytest.mark.parametrize(
        ("row_ids", "error", "message"),
        [
            ([7, 50], WeightShapeError, r"row_ids .* is \(2,\); \(4, 24\) rows need \(3,\) ids"),
            ([7, 7, 50], CheckpointError, "different integers from 0 to 100"),
            ([7, 101, 50], CheckpointError, "different integers from 0 to 100"),
            ([-1, 7, 50], CheckpointError, "different integers from 0 to 100"),
            ([1.0, 7.0, 50.0], CheckpointError, "different integers from 0 to 100"),
        ],
        ids=["few", "twice", "beyond", "negative", "floats"],
    )
    def test_row_ids_with_a_mistake(self, write, row_ids, error, message):
        tensor = torch.tensor(row_ids)
        folder = write(**{"decoder.token_embedding.row_ids": tensor})
        with pytest.raises(error, match=message):
            load_weights(folder)

    def test_rows_without_ids(self, folder, write):
        tensors = load_file(write() / "model.safetensors")
        del tensors["decoder.token_embedding.row_ids"]
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(WeightNameError, match=r"holds 1 tensor .*token_embedding\.rows"):
            load_weights(folder)

    def test_an_installation_without_the_model(self, tmp_path, monkeypatch):
        monkeypatch.setattr(registry, "DIGITS_FOLDER", tmp_path)
        with pytest.raises(SourceError, match="digits model is not in this installation"):
            load_weights("digits")
