"""whisper.cpp's files, in every type that its converter and its quantiser write."""

import dataclasses
import struct
import sys

import numpy as np
import pytest
import torch

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    WeightNameError,
    WeightShapeError,
)
from hooked_whisper.weights.rename import openai_name

from .ggml_blocks import SIZES, dequantised, random_blocks
from .ggml_files import write_ggml

_for = HookedWhisperConfig.for_release
SMALL = {"n_audio_ctx": 6, "n_text_ctx": 5, "n_audio_layers": 1, "n_text_layers": 2}
WIDE = _for("tiny", **SMALL, d_model=256, n_audio_heads=2, n_text_heads=4, d_vocab=101)
NARROW = _for("tiny", **SMALL, d_model=32, n_audio_heads=4, n_text_heads=2, d_vocab=101)
ENGLISH = [b"the"] * 357 + [b" ("]
"""Tokens that begin as those of GPT-2 do."""


@pytest.fixture(scope="module")
def wide(make_openai):
    return make_openai(WIDE)


@pytest.fixture
def narrow(make_openai):
    return make_openai(NARROW)


@pytest.fixture
def write(narrow, tmp_path):
    """Writes a small model, in float16 unless told, and returns its path."""

    def save(kind="f16", **how):
        path = tmp_path / "ggml-small.bin"
        write_ggml(path, dataclasses.asdict(narrow.dims), narrow.state_dict(), kind, **how)
        return path

    return save


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_floats_are_bit_for_bit_what_was_written(write, narrow, kind):
    model = HookedWhisper.from_pretrained(write(kind), device="cpu")
    for name, value in model.state_dict().items():
        expected = narrow.state_dict()[openai_name(name)]
        if kind == "f16" and expected.ndim > 1 and "positional" not in name:
            expected = expected.half().float()
        assert torch.equal(value, expected), name
    assert replaced(model.cfg) == replaced(NARROW) and model.cfg.model_name == "ggml-small"
    mel = torch.randn(1, 80, 12, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[3, 100, 4]])
    with torch.no_grad():
        assert torch.allclose(model(mel, tokens), narrow(mel, tokens), atol=1e-3)


def replaced(cfg):
    return dataclasses.replace(cfg, model_name="")


@pytest.mark.parametrize("kind", SIZES)
def test_blocks_are_bit_for_bit_what_ggml_makes_of_them(wide, tmp_path, kind):
    """Against a reference of the tests' own: all matrices but convolutions and positions."""
    path, seeds = tmp_path / "q.bin", iter(range(100))

    def quantise(rows):
        return random_blocks(kind, rows.size, next(seeds))

    dims = dataclasses.asdict(wide.dims)
    written = write_ggml(path, dims, wide.state_dict(), kind, quantise=quantise)
    model, n_quantised = HookedWhisper.from_pretrained(path, device="cpu"), 0
    for name, value in model.state_dict().items():
        data = written[openai_name(name)]
        if data.dtype == np.uint8:
            data, n_quantised = dequantised(kind, data.reshape(-1, SIZES[kind][1])), n_quantised + 1
        expected = torch.from_numpy(data.astype(np.float32)).reshape(value.shape)
        assert torch.equal(value, expected), name
    assert n_quantised == 1 + 6 + 2 * 10


def test_what_is_quantised_needs_gguf(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    write()
    HookedWhisper.from_pretrained(write("f16"), device="cpu")
    path = write("q8_0", quantise=lambda rows: random_blocks("q8_0", rows.size))
    with pytest.raises(CheckpointError, match=r"is in Q8_0, .* install 'hooked-whisper\[ggml\]'"):
        HookedWhisper.from_pretrained(path)


def test_the_list_of_tokens_is_believed(make_openai, tmp_path):
    """One token was added to English only, and the model's size is that of 99 languages."""
    cfg = dataclasses.replace(NARROW, d_vocab=51865, d_model=8, n_audio_heads=2)
    model = make_openai(cfg)
    write_ggml(tmp_path / "a", dataclasses.asdict(cfg.dims), model.state_dict(), words=ENGLISH)
    with pytest.raises(ArchitectureError, match=r"but ' \(' in a is 357: .* d_vocab=51864"):
        HookedWhisper.from_pretrained(tmp_path / "a")
    assert HookedWhisper.from_pretrained(tmp_path / "a", d_vocab=51864).cfg.d_vocab == 51864


# Refused


def test_cut_at_any_place(write):
    path = write()
    whole = path.read_bytes()
    for n in (3, 20, 48, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=r"small\.bin cannot be read as a"):
            HookedWhisper.from_pretrained(path)
    path.write_bytes(whole + b"\0" * 5)
    with pytest.raises(CheckpointError, match=r"cannot be read as a whisper\.cpp model"):
        HookedWhisper.from_pretrained(path)


def test_an_older_layout_of_blocks(write):
    path = write("q8_0", quantise=lambda r: random_blocks("q8_0", r.size), version=1)
    with pytest.raises(CheckpointError, match="in version 1 of ggml's blocks, and version 2"):
        HookedWhisper.from_pretrained(path)


def change(path, name, old, new):
    """Replace a number of the head of a tensor."""
    data = bytearray(path.read_bytes())
    place = data.index(name.encode()) - old[0]
    data[place : place + 4] = struct.pack("<i", new)
    path.write_bytes(data)


MLP = "decoder.blocks.1.mlp.0.weight"
"""Its head is three numbers and two sizes."""


@pytest.mark.parametrize(
    ("before", "number", "match"),
    [
        (8, 2**31 - 1, "lies beyond its end"),
        (8, -5, r"is \(128, -5\), or is there twice"),
        (12, 17, "is of ggml's type 17; read are F32, F16, Q4_0"),
        (12, 12, "its rows are no whole blocks of 256"),
        (16, 10**9, "no tensor begins at byte"),
        (20, 10**9, "no tensor begins at byte"),
    ],
)
def test_heads_that_lie(write, before, number, match):
    path = write()
    change(path, MLP, (before,), number)
    with pytest.raises(CheckpointError, match=match):
        HookedWhisper.from_pretrained(path)


@pytest.mark.parametrize(
    ("place", "number", "error", "match"),
    [
        (1, 10**9, WeightShapeError, "needs .* because d_vocab is 1000000000"),
        (1, 0, ArchitectureError, "the sizes in .* none of a Whisper: d_vocab is 0"),
        (4, 7, ArchitectureError, "n_audio_heads is 7, which does not divide d_model 32"),
        (5, 10**9, ArchitectureError, "config of 1000000000 encoder"),
        (9, 1, WeightNameError, r"holds \d+ tensors that no Whisper of this config has: decoder"),
        (10, 128, ArchitectureError, "has 80 mel filters of 201 frequencies and n_mels 128"),
    ],
)
def test_sizes_that_lie(write, place, number, error, match):
    path = write()
    data = bytearray(path.read_bytes())
    data[4 * place : 4 * place + 4] = struct.pack("<i", number)
    path.write_bytes(data)
    with pytest.raises(error, match=match):
        HookedWhisper.from_pretrained(path)


def test_values_that_are_not_finite(narrow, write):
    narrow.state_dict()["decoder.ln.bias"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"'decoder\.ln\.bias' in .* NaN or infinite"):
        HookedWhisper.from_pretrained(write())


def test_a_scale_that_is_infinite(write):
    def quantise(rows):
        blocks = random_blocks("q5_1", rows.size)
        blocks[0, :2] = np.array([np.inf], "<f2").view(np.uint8)
        return blocks

    with pytest.raises(CheckpointError, match="NaN or infinite"):
        HookedWhisper.from_pretrained(write("q5_1", quantise=quantise))


def test_a_gguf_file(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ArchitectureError, match=r"is a GGUF file, .* such as ggml-tiny\.en\.bin"):
        HookedWhisper.from_pretrained(tmp_path / "a.gguf")
