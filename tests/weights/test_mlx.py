"""MLX's folders, in npz and safetensors, plain and quantised."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    WeightNameError,
    WeightShapeError,
)
from hooked_whisper.weights.rename import openai_name

from .mlx_files import write_mlx

CFG = HookedWhisperConfig.for_release(
    "tiny", n_audio_ctx=6, n_text_ctx=5, n_audio_layers=1, n_text_layers=2, d_model=32,
    n_audio_heads=4, n_text_heads=2, d_vocab=101,
)  # fmt: skip
SAFETENSORS, NPZ, HUB = "weights.safetensors", "weights.npz", "model.safetensors"
POSITIONS = "encoder.positional_embedding"


@pytest.fixture(scope="module")
def theirs(make_openai):
    """openai-whisper's own model, with the positions that are computed."""
    from whisper.model import sinusoids

    model = make_openai(CFG)
    model.encoder.positional_embedding.copy_(sinusoids(6, 32))
    return model


@pytest.fixture
def write(theirs, tmp_path):
    """Writes the model and returns its folder, and what quantised matrices stand for."""

    def save(kind=SAFETENSORS, **how):
        folder = tmp_path / "mlx"
        state = theirs.state_dict()
        return folder, write_mlx(folder, dataclasses.asdict(theirs.dims), state, kind, **how)

    return save


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["f16", "f32"])
@pytest.mark.parametrize("kind", [SAFETENSORS, NPZ, HUB])
def test_floats_are_bit_for_bit_what_was_written(write, theirs, kind, dtype):
    folder, _ = write(kind, dtype=dtype, heads=[[1, 0], [0, 1]])
    model = HookedWhisper.from_pretrained(folder, device="cpu")
    for name, value in model.state_dict().items():
        expected = theirs.state_dict()[openai_name(name)]
        if dtype is np.float16 and name != POSITIONS:
            expected = expected.half().float()
        assert torch.equal(value, expected), name
    assert model.alignment_heads.to_dense().nonzero().tolist() == [[0, 1], [1, 0]]
    assert dataclasses.replace(model.cfg, model_name="") == dataclasses.replace(CFG, model_name="")
    mel = torch.randn(1, 80, 12, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[3, 100, 4]])
    with torch.no_grad():
        assert torch.allclose(model(mel, tokens), theirs(mel, tokens), atol=2e-2)


@pytest.mark.parametrize("kind", [SAFETENSORS, NPZ])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (4, 32), (4, 16), (8, 32)])
def test_integers_are_their_scale_and_bias_in_float32(write, kind, bits, group):
    folder, stands_for = write(kind, bits=bits, group=group)
    model, n_quantised = HookedWhisper.from_pretrained(folder, device="cpu"), 0
    for name, value in model.state_dict().items():
        key = openai_name(name).replace("mlp.0", "mlp1").replace("mlp.2", "mlp2")
        if key in stands_for:
            assert torch.equal(value, torch.from_numpy(stands_for[key])), name
            n_quantised += 1
    assert n_quantised == 1 + 6 + 2 * 10


# Refused


def test_npz_that_is_cut_compressed_or_foreign(write):
    folder, _ = write(NPZ)
    path = folder / NPZ
    whole, arrays = path.read_bytes(), dict(np.load(path))
    for n in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=r"weights\.npz cannot be read as numpy arrays"):
            HookedWhisper.from_pretrained(folder)
    np.savez_compressed(path, **arrays)
    with pytest.raises(CheckpointError, match="holds compressed parts"):
        HookedWhisper.from_pretrained(folder)
    np.savez(path, **arrays, more=np.array(["text"], object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"'more' holds \|O"):
        HookedWhisper.from_pretrained(folder)


def test_an_array_that_claims_more_than_it_holds(write):
    folder, _ = write(NPZ)
    path = folder / NPZ
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    name = "decoder.positional_embedding.npy"
    assert b"(5, 32)" in parts[name]
    parts[name] = parts[name].replace(b"(5, 32), }    ", b"(500000, 32), }")
    with zipfile.ZipFile(path, "w") as new:
        for each, data in parts.items():
            new.writestr(each, data)
    with pytest.raises(CheckpointError, match=r"positional_embedding' is \(500000, 32\) and has"):
        HookedWhisper.from_pretrained(folder)


def test_a_flipped_bit_in_an_array(write):
    folder, _ = write(NPZ)
    data = bytearray((folder / NPZ).read_bytes())
    data[data.index(b"decoder.ln.weight.npy") + 21 + 128 + 20] ^= 1
    (folder / NPZ).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'decoder\.ln\.weight' in .* is damaged: its check"):
        HookedWhisper.from_pretrained(folder)


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"n_audio_state": "32"}, ArchitectureError, "n_audio_state in the dimensions in .* '32'"),
        ({"n_vocab": 0}, ArchitectureError, "none of a Whisper: d_vocab is 0"),
        ({"n_audio_ctx": 10**6}, CheckpointError, "computed anew up to 1500"),
        ({"n_text_layer": 1}, WeightNameError, "that no Whisper of this config has"),
        ({"n_vocab": 100}, WeightShapeError, r"is \(101, 32\); this config needs \(100, 32\)"),
        ({"quantization": {"bits": 4}}, ArchitectureError, r"is {'bits': 4}; read are bits of"),
        ({"quantization": {"bits": 3, "group_size": 64}}, ArchitectureError, r"bits of \(2, 4"),
    ],
)
def test_configs_that_lie(write, values, error, match):
    folder, _ = write()
    change(folder, **values)
    with pytest.raises(error, match=match):
        HookedWhisper.from_pretrained(folder)


def test_quantised_parts_that_do_not_fit(write):
    folder, _ = write(bits=4)
    change(folder, quantization={"bits": 8, "group_size": 32})
    with pytest.raises(CheckpointError, match=r"biases of .* are \(\d+, \d+\) uint32, .*; a group"):
        HookedWhisper.from_pretrained(folder)
    change(folder, quantization=None)
    with pytest.raises(CheckpointError, match=r"holds torch\.uint32 values, not weights"):
        HookedWhisper.from_pretrained(folder)
    change(folder, quantization={"bits": 4, "group_size": 32})
    arrays = load_file(folder / SAFETENSORS)
    del arrays["decoder.token_embedding.weight"]
    save_file(arrays, folder / SAFETENSORS)
    with pytest.raises(WeightNameError, match=r"token_embedding\.\w+' without a weight"):
        HookedWhisper.from_pretrained(folder)


def test_no_weights_and_values_that_are_not_finite(write):
    folder, _ = write()
    arrays = load_file(folder / SAFETENSORS)
    arrays["encoder.conv2.weight"][3, 1, 4] = np.inf
    save_file(arrays, folder / SAFETENSORS)
    with pytest.raises(CheckpointError, match=r"'encoder\.conv2\.weight' in .* NaN or infinite"):
        HookedWhisper.from_pretrained(folder)
    (folder / SAFETENSORS).unlink()
    with pytest.raises(CheckpointError, match=r"has none of weights\.safetensors, weights\.npz"):
        HookedWhisper.from_pretrained(folder)
