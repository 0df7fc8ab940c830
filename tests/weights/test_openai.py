"""OpenAI's checkpoint files, good and bad, and models in memory."""

import dataclasses
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    WeightNameError,
    WeightShapeError,
)
from hooked_whisper.weights import from_openai_state, load_weights
from hooked_whisper.weights.rename import openai_name


@pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-torch-1.6"])
def test_a_checkpoint_file(openai_model, tiny_cfg, write_pt, into_module, stored, zipped):
    state_dict = {name: v.to(stored) for name, v in openai_model.state_dict().items()}
    path = write_pt(
        {"dims": dataclasses.asdict(openai_model.dims), "model_state_dict": state_dict},
        _use_new_zipfile_serialization=zipped,
    )
    loaded = load_weights(path)
    assert dataclasses.replace(loaded.cfg, model_name="tiny-random") == tiny_cfg
    assert loaded.cfg.model_name == "small"
    assert loaded.alignment_heads is None
    for name, value in into_module(loaded).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state_dict[openai_name(name)].float()), name


def test_a_model_in_memory_is_copied(openai_model, into_module):
    loaded = from_openai_state(openai_model)
    assert torch.equal(loaded.alignment_heads, openai_model.alignment_heads.to_dense())
    theirs = openai_model.state_dict()
    for name, value in into_module(loaded).items():
        assert torch.equal(value, theirs[openai_name(name)]), name
        assert value.data_ptr() != theirs[openai_name(name)].data_ptr(), name


@pytest.mark.parametrize("model", [nn.Linear(2, 2), {"dims": 1}, "tiny"], ids=str)
def test_another_model_in_memory(model):
    with pytest.raises(ArchitectureError, match=r"takes a whisper\.model\.Whisper, and got"):
        from_openai_state(model)


def test_an_altered_model_in_memory(openai_model):
    altered = type(openai_model)(openai_model.dims)
    altered.encoder.adapter = nn.Linear(2, 2)
    message = r"this Whisper holds 2 tensors that .*: encoder\.adapter\.bias, encoder\.adapter\.w"
    with pytest.raises(WeightNameError, match=message):
        from_openai_state(altered)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-torch-1.6"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_short(checkpoint, write_pt, zipped, share):
    path = write_pt(checkpoint, _use_new_zipfile_serialization=zipped)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CheckpointError, match=r"small\.pt cannot be read as a torch checkpoint"):
        load_weights(path)


@pytest.mark.parametrize(
    "content",
    [b"<!doctype html><title>404</title>", b"\0" * 1000, b"PK\x03\x04" + b"\0" * 500, b"\x80\x02."],
    ids=["html", "zeros", "zip-like", "pickle-like"],
)
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "tiny.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tiny\.pt cannot be read as a torch checkpoint"):
        load_weights(path)


def test_a_zip_file_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "tiny.pt", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CheckpointError, match=r"tiny\.pt cannot be read as a torch checkpoint"):
        load_weights(tmp_path / "tiny.pt")


class Burglar:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["dims", "model_state_dict", "extra", "tensor", "bare"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-torch-1.6"])
def test_a_pickled_object_is_never_executed(checkpoint, write_pt, tmp_path, where, zipped):
    touched = tmp_path / "touched"
    if where == "tensor":
        checkpoint["model_state_dict"]["encoder.conv1.bias"] = Burglar(touched)
    else:
        checkpoint[where] = Burglar(touched)
    content = Burglar(touched) if where == "bare" else checkpoint
    path = write_pt(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"small\.pt holds pickled .*; nothing .* executed"):
        load_weights(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists(), "the object in this test does nothing, so that it shows nothing"


def test_a_plain_pickle_is_never_executed(tmp_path):
    touched = tmp_path / "touched"
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Burglar(touched)))
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load_weights(tmp_path / "a.pt")
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "epoch": 3}, r"must hold 'dims' and .*holds \['state_dict', 'epoch'\]"),
        ({"dims": {}}, r"holds \['dims'\]"),
        ([1, 2], "and holds list"),
        (torch.zeros(3), "and holds Tensor"),
        ({"dims": {}, "model_state_dict": [1]}, "'model_state_dict' in .* is a list"),
        ({"dims": {}, "model_state_dict": {"a": 3}}, "'a' in .* is a int; weights are tensors"),
        ({"dims": {}, "model_state_dict": {3: torch.zeros(1)}}, "3 in .* is a Tensor"),
        (
            {"dims": {}, "model_state_dict": {"a": torch.zeros(2, dtype=torch.int8)}},
            "'a' in .* holds int8 values; weights are one of float16, bfloat16",
        ),
        (
            {"dims": {}, "model_state_dict": {"a": torch.zeros(2).to_sparse()}},
            "'a' in .* is a quantised or sparse tensor",
        ),
        (
            {"dims": {}, "model_state_dict": {"a": torch.zeros(2, device="meta")}},
            "'a' in .* is a meta tensor",
        ),
    ],
    ids=[
        *("lightning", "no-weights", "list", "tensor", "weights-list", "number", "key"),
        *("int8", "sparse", "meta"),
    ],
)
def test_a_file_of_something_else(write_pt, content, message):
    with pytest.raises(CheckpointError, match=message):
        load_weights(write_pt(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_mels": 0}, "n_mels is 0; it must be at least 1"),
        ({"n_mels": -80}, "n_mels is -80; it must be at least 1"),
        ({"n_mels": 80.0}, "n_mels in 'dims' of .* is 80.0; it must be of type int"),
        ({"n_mels": "80"}, "n_mels in 'dims' of .* is '80'; it must be of type int"),
        ({"n_vocab": None}, "n_vocab in 'dims' of .* is None; it must be of type int"),
        ({"n_audio_head": 5}, "n_audio_heads is 5, which does not divide d_model 24"),
        ({"n_audio_state": 48}, "n_audio_state is 48 and n_text_state is 24"),
        ({"n_audio_layer": 10**15}, "a config of 1000000000000000 encoder and 3 decoder layers"),
        ({"n_experts": 8}, r"'dims' of .*small\.pt holds \['n_audio_ctx'.*'n_experts'.*; a Whis"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_dims_of_no_whisper(checkpoint, write_pt, changes, message):
    checkpoint["dims"] |= changes
    with pytest.raises(ArchitectureError, match=message):
        load_weights(write_pt(checkpoint))


@pytest.mark.parametrize("dims", [{}, [80], None, {1: 2}], ids=str)
def test_dims_that_are_none(checkpoint, write_pt, dims):
    checkpoint["dims"] = dims
    with pytest.raises(ArchitectureError, match=r"'dims' of .* a Whisper's are"):
        load_weights(write_pt(checkpoint))


@pytest.mark.parametrize(
    ("field", "value", "tensor", "reason"),
    [
        ("n_mels", 128, "encoder.conv1.weight", "n_mels is 128"),
        ("n_vocab", 10**13, "decoder.token_embedding.weight", "d_vocab is 10000000000000"),
        ("n_audio_ctx", 10**13, "encoder.positional_embedding", "n_audio_ctx is 10000000000000"),
        ("n_text_ctx", 21, "decoder.positional_embedding", "n_text_ctx is 21"),
    ],
)
def test_a_misshapen_tensor(checkpoint, write_pt, field, value, tensor, reason):
    checkpoint["dims"][field] = value
    with pytest.raises(
        WeightShapeError, match=rf"'{tensor}' in .*small\.pt is .* because {reason}"
    ):
        load_weights(write_pt(checkpoint))


def test_missing_and_unexpected_tensors(checkpoint, write_pt):
    state_dict = checkpoint["model_state_dict"]
    state_dict["decoder.ln.wait"] = state_dict.pop("decoder.ln.weight")
    message = r"lacks 1 tensor: decoder\.ln\.weight\. .* holds 1 tensor .*: decoder\.ln\.wait\."
    with pytest.raises(WeightNameError, match=message):
        load_weights(write_pt(checkpoint))


def test_one_layer_more_than_dims_say(checkpoint, write_pt):
    checkpoint["dims"]["n_text_layer"] = 2
    with pytest.raises(
        WeightNameError, match=r"holds 24 tensors .*decoder\.blocks\.2\.attn\.key\.w"
    ):
        load_weights(write_pt(checkpoint))


def test_numbers_of_numpy_are_no_plain_dims(checkpoint, write_pt):
    checkpoint["dims"]["n_mels"] = np.int64(80)
    with pytest.raises(CheckpointError, match=r"holds pickled objects .*numpy"):
        load_weights(write_pt(checkpoint))
