"""What looks like good weights and is not."""

import json
import os
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    ConfigError,
    SourceError,
    StoreWriteError,
    WeightNameError,
)
from hooked_whisper.weights import load_weights
from hooked_whisper.weights.rename import expected_shapes, openai_name, sizes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(checkpoint, write_pt, hf_folder, value):
    checkpoint["model_state_dict"]["encoder.conv1.weight"][3, 2, 1] = value
    with pytest.raises(CheckpointError, match=r"'encoder\.conv1\.weight' in .* NaN or infinite"):
        HookedWhisper.from_pretrained(write_pt(checkpoint))
    tensors = load_file(hf_folder / "model.safetensors")
    tensors["model.decoder.layers.0.fc1.bias"][0] = value
    save_file(tensors, hf_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'model\.decoder\.layers\.0\.fc1\.bias' in .*NaN"):
        HookedWhisper.from_pretrained(hf_folder)


def test_values_that_overflow_in_the_wanted_dtype(make_model, tiny_cfg, tmp_path):
    model = make_model(tiny_cfg)
    model.encoder.conv1.bias.data[0] = 1e6
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"'encoder\.conv1\.bias' .* 1e\+06, which overflow"):
        HookedWhisper.from_pretrained(tmp_path / "a", dtype=torch.float16)
    HookedWhisper.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"dtype is torch\.int8; weights are kept in"):
        HookedWhisper.from_pretrained(tmp_path / "a", dtype=torch.int8)


def test_one_number_that_stands_for_terabytes(tiny_cfg, write_pt):
    cfg = replace(tiny_cfg, d_vocab=10**9)
    one = torch.zeros(1)
    state = {openai_name(k): one.expand(sizes(s, cfg)) for k, s in expected_shapes(cfg).items()}
    path = write_pt({"dims": dict(vars(cfg.dims)), "model_state_dict": state})
    with pytest.raises(CheckpointError, match=r"claim \d+ bytes, and the file has \d+: 'decoder"):
        load_weights(path)


class Big:
    def __reduce__(self):
        return bytearray, (10**12,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_asks_for_memory(checkpoint, write_pt, zipped):
    path = write_pt({**checkpoint, "x": Big()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="makes a bytearray of any length"):
        load_weights(path)


def test_a_pickle_that_cannot_be_looked_through(checkpoint, write_pt, tmp_path):
    """PyTorch goes by how a file begins, and would read what a scan of its end passes over."""
    legacy = write_pt({**checkpoint, "x": Big()}, _use_new_zipfile_serialization=False)
    path = tmp_path / "both.pt"
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    path.write_bytes(legacy.read_bytes() + (tmp_path / "empty.zip").read_bytes())
    with pytest.raises(CheckpointError, match="makes a bytearray of any length"):
        load_weights(path)
    path.write_bytes(b"PK\x03\x04" + legacy.read_bytes())
    with pytest.raises(CheckpointError, match="cannot be read as a torch checkpoint"):
        load_weights(path)
    path.write_bytes(legacy.read_bytes()[:300] + b"\xff" * 300)
    with pytest.raises(CheckpointError, match="cannot be read as a torch checkpoint"):
        load_weights(path)


def test_a_pickle_that_numbers_its_objects_beyond_any_count(checkpoint, write_pt, tmp_path):
    with (
        zipfile.ZipFile(write_pt(checkpoint)) as old,
        zipfile.ZipFile(tmp_path / "n.pt", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert data[:5] == b"\x80\x02}q\x00"
                data = b"\x80\x02}r\x00\x00\x00\x70" + data[5:]
            new.writestr(name, data)
    with pytest.raises(CheckpointError, match="counts its objects up to any number"):
        load_weights(tmp_path / "n.pt")


def test_a_compressed_pickle(checkpoint, write_pt, tmp_path):
    with (
        zipfile.ZipFile(write_pt(checkpoint)) as old,
        zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name) + b"\0" * 10**4)
    with pytest.raises(CheckpointError, match="holds compressed parts"):
        load_weights(tmp_path / "z.pt")


@pytest.mark.parametrize(
    ("change", "omits", "message"),
    [
        ({"n_audio_ctx": 10**10}, ["encoder.positional_embedding"], "computed anew up to 1500"),
        ({"d_vocab": 10**10}, [], "can stand for 51866 at most"),
    ],
)
def test_native_claims(make_model, tiny_cfg, tmp_path, change, omits, message):
    make_model(tiny_cfg).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in omits:
        del tensors[name]
    if not omits:
        rows = tensors.pop("decoder.token_embedding.weight")[:2].clone()
        tensors["decoder.token_embedding.rows"] = rows
        tensors["decoder.token_embedding.row_ids"] = torch.tensor([0])
    save_file(tensors, path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps({**values, "omitted": omits}))
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path)


@pytest.fixture(scope="module")
def finetune(make_hf, tiny_cfg, tmp_path_factory):
    """A folder of an English model with one token more."""
    folder = tmp_path_factory.mktemp("finetune")
    make_hf(replace(tiny_cfg, d_vocab=51865, d_model=12)).save_pretrained(folder)
    return folder


@pytest.fixture
def added(finetune, tmp_path):
    """The same folder, to which files may be added."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(finetune / name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("generation_config.json", {"is_multilingual": False}),
        ("generation_config.json", {"no_timestamps_token_id": 50362}),
        ("added_tokens.json", {"<|notimestamps|>": 50362}),
        ("vocab.json", {"<|endoftext|>": 50256}),
        ("tokenizer.json", {"added_tokens": [{"id": 50362, "content": "<|notimestamps|>"}]}),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"50257": {"content": "<|startoftranscript|>"}}},
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_vocabulary_that_is_not_what_its_size_says(added, name, values):
    (added / name).write_text(json.dumps(values))
    with pytest.raises(ArchitectureError, match=r"has 51865 tokens.* d_vocab=51864 \(English only"):
        load_weights(added)
    model = HookedWhisper.from_pretrained(added, d_vocab=51864)
    assert not model.is_multilingual
    assert model.W_E.shape[0] == 51864
    whole = HookedWhisper.from_pretrained(added, d_vocab=51865)
    assert torch.equal(whole.W_E[:51864], model.W_E)


def test_adapters_and_wrappers(checkpoint, write_pt, tmp_path, hf_model):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ArchitectureError, match=r"of the kind None; LoRA, .* merge_and_unload"):
        load_weights(tmp_path)
    for prefix, message in (("module.", "DistributedDataP"), ("_orig_mod.", "torch.compile put")):
        state = {prefix + key: value for key, value in checkpoint["model_state_dict"].items()}
        with pytest.raises(WeightNameError, match=message):
            load_weights(write_pt({**checkpoint, "model_state_dict": state}))


def test_what_is_no_path(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", "a\0b", "x" * 5000, "~nosuchuser/x"):
        with pytest.raises(SourceError) as caught:
            load_weights(source)
        assert len(str(caught.value)) < 600 + len(str(tmp_path))


def test_a_disk_that_is_full(make_model, tiny_cfg, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hooked_whisper.weights.native.write_tensors", full)
    with pytest.raises(StoreWriteError, match="No space left on device"):
        make_model(tiny_cfg).save_pretrained(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
