"""CTranslate2's folders give the weights that its own converter wrote, and compute what it does."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import (
    ArchitectureError,
    CheckpointError,
    SourceError,
    WeightNameError,
    WeightShapeError,
)
from hooked_whisper.weights.rename import huggingface_name

from .ct2 import convert_to_ct2, small_vocabulary

ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra 'test' is not installed")

FLOATS = {None: torch.float32, "float32": torch.float32}
FLOATS |= {"float16": torch.float16, "bfloat16": torch.bfloat16}
BESIDE = {"int8": torch.float32, "int8_float16": torch.float16, "int8_float32": torch.float32}
BESIDE |= {"int8_bfloat16": torch.bfloat16, "int16": torch.float32}
"""What the weights that are no integers are in."""


@pytest.fixture(scope="module")
def folders(hf_model, tiny_cfg, tmp_path_factory):
    """The same weights in a type of CTranslate2, each converted once."""
    root, made = tmp_path_factory.mktemp("ct2"), {}

    def folder(quantization):
        if quantization not in made:
            tokens = small_vocabulary(tiny_cfg.d_vocab)
            target = root / str(quantization)
            made[quantization] = convert_to_ct2(hf_model, target, quantization, tokens)
        return made[quantization]

    return folder


@pytest.fixture
def fresh(folders, tmp_path):
    """A folder in float16 that a test may change."""
    for path in folders("float16").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def theirs(hf_model, model):
    """The original's tensor for each of ours."""
    state = hf_model.state_dict()
    return {name: state[f"model.{huggingface_name(name)}"] for name in model.state_dict()}


@pytest.mark.parametrize("quantization", FLOATS, ids=str)
def test_floats_are_bit_for_bit_what_was_converted(folders, hf_model, quantization):
    model = HookedWhisper.from_pretrained(folders(quantization), device="cpu")
    for name, value in theirs(hf_model, model).items():
        expected = value.to(FLOATS[quantization]).float()
        assert torch.equal(model.state_dict()[name], expected), name
    assert model.cfg.n_text_heads == 3 and model.cfg.n_audio_heads == 2
    pairs = hf_model.generation_config.alignment_heads
    assert model.alignment_heads.to_dense().nonzero().tolist() == pairs


@pytest.mark.parametrize("quantization", BESIDE)
def test_integers_are_bit_for_bit_their_dequantised_reference(folders, hf_model, quantization):
    """By numpy alone, from the original weights: CTranslate2's rule there and back."""
    model = HookedWhisper.from_pretrained(folders(quantization), device="cpu")
    n_quantised = 0
    for name, value in theirs(hf_model, model).items():
        ours, value = model.state_dict()[name], value.detach()
        if value.ndim == 1 or "positional" in name:
            expected = value.to(BESIDE[quantization]).float()
        else:
            expected = torch.from_numpy(reference(value.numpy(), quantization, name, hf_model))
            n_quantised += 1
        assert torch.equal(ours, expected), name
    assert n_quantised == 3 + 2 * 6 + 3 * 10


def reference(weights, quantization, name, hf_model):
    """What the integers of a matrix stand for; a matrix in int16 is scaled with its neighbours."""
    if quantization == "int16":
        scale = np.float32(2**10 / np.abs(fused(name, weights, hf_model)).max())
        integers = np.rint(weights * scale)
        return (integers * (np.float32(1) / scale)).astype(np.float32)
    rows = weights.reshape(len(weights), -1)
    scale = np.float32(127) / np.abs(rows).max(1, keepdims=True)
    return (np.rint(rows * scale) * (1 / scale)).reshape(weights.shape)


def fused(name, weights, hf_model):
    parts = {"attn": ("query", "key", "value"), "cross_attn": ("key", "value")}
    block, _, rest = name.rpartition("attn.")
    part, kind = rest.partition(".")[0], "cross_attn" if block.endswith("cross_") else "attn"
    if part not in parts[kind]:
        return weights
    names = [huggingface_name(name.replace(f".{part}.", f".{p}.")) for p in parts[kind]]
    return np.concatenate([hf_model.state_dict()[f"model.{n}"].numpy() for n in names])


@pytest.mark.parametrize("quantization", ["float32", "int8", "int16"])
def test_it_computes_what_ctranslate2_computes(folders, tiny_cfg, quantization):
    """Its encoder's output, and the logits and tokens of greedy decoding, all in float32."""
    folder = folders(quantization)
    model = HookedWhisper.from_pretrained(folder, device="cpu")
    runtime = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    mel = torch.randn(1, 80, tiny_cfg.n_frames, generator=torch.Generator().manual_seed(2))
    features = ctranslate2.StorageView.from_array(mel.numpy())
    with torch.no_grad():
        ours = model(mel)
    encoded = np.array(runtime.encode(features))
    np.testing.assert_allclose(encoded, ours.numpy(), atol=1e-4, rtol=1e-4)
    start = [98, 100]
    (result,) = runtime.generate(
        features, [start], beam_size=1, max_length=8 + len(start), suppress_blank=False,
        suppress_tokens=None, return_logits_vocab=True,
    )  # fmt: skip
    tokens = list(start)
    for written, logits in zip(result.sequences_ids[0], result.logits[0], strict=False):
        with torch.no_grad():
            mine = model(mel, torch.tensor([tokens]))[0, -1]
        np.testing.assert_allclose(np.array(logits), mine.numpy(), atol=1e-3, rtol=1e-3)
        assert written == int(mine.argmax())
        tokens.append(written)
    assert len(tokens) > 4


def test_tensors_that_are_stored_once_and_named_twice(hf_model, tiny_cfg, tmp_path):
    """Equal biases and norms have one place in the file."""
    import copy

    model = copy.deepcopy(hf_model)
    for layer in model.model.decoder.layers:
        torch.nn.init.zeros_(layer.fc2.bias)
        torch.nn.init.ones_(layer.final_layer_norm.weight)
    folder = convert_to_ct2(model, tmp_path / "a", "float16", small_vocabulary(tiny_cfg.d_vocab))
    assert b"decoder/layer_2/ffn/linear_1/bias\0" in (folder / "model.bin").read_bytes()[-600:]
    ours = HookedWhisper.from_pretrained(folder, device="cpu")
    for block in ours.decoder.blocks:
        assert not block.mlp.fc_out.bias.any() and (block.ln3.weight == 1).all()
    assert torch.equal(ours.W_E, hf_model.model.decoder.embed_tokens.weight.half().float())


# What lies beside the weights


@pytest.mark.parametrize("name", ["vocabulary.json", "vocabulary.txt"])
def test_the_vocabulary_is_believed(make_hf, tmp_path, name):
    """One token was added to English only, and the model's size is that of 99 languages."""
    from hooked_whisper import HookedWhisperConfig

    cfg = HookedWhisperConfig.for_release(
        "tiny", n_audio_ctx=6, n_text_ctx=5, d_model=4, n_audio_heads=2, n_text_heads=2,
        n_audio_layers=1, n_text_layers=1,
    )  # fmt: skip
    tokens = [f"t{i}" for i in range(cfg.d_vocab)]
    tokens[50256], tokens[50362] = "<|endoftext|>", "<|notimestamps|>"
    folder = convert_to_ct2(make_hf(cfg), tmp_path / "a", "float16", tokens)
    if name.endswith("txt"):
        (folder / "vocabulary.json").unlink()
        (folder / name).write_text("\n".join(tokens) + "\n", encoding="utf-8")
    said = rf"51865 tokens, .* but <\|notimestamps\|> in {name} is 50362.* d_vocab=51864"
    with pytest.raises(ArchitectureError, match=said):
        HookedWhisper.from_pretrained(folder)
    assert HookedWhisper.from_pretrained(folder, d_vocab=51864).cfg.d_vocab == 51864
    (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["lang_ids"] = list(range(50259, 50359))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ArchitectureError, match=r"but lang_ids in config\.json lists 100 languages"
    ):
        HookedWhisper.from_pretrained(folder)
    config |= {"lang_ids": list(range(50259, 50358)), "suppress_ids": [5, 6]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="suppress_ids in .* are other tokens than OpenAI's"):
        assert HookedWhisper.from_pretrained(folder).cfg.d_vocab == 51865


def test_a_folder_without_config_has_the_default_heads(fresh, tiny_cfg):
    (fresh / "config.json").unlink()
    heads = HookedWhisper.from_pretrained(fresh, device="cpu").alignment_heads.to_dense()
    assert heads[tiny_cfg.n_text_layers // 2 :].all()


# Refused


def header(name, shape, kind, data):
    text = name.encode() + b"\0"
    sizes = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return struct.pack("<H", len(text)) + text + sizes + struct.pack("<BI", kind, len(data)) + data


def patch(folder, old, new, count=1):
    path = folder / "model.bin"
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, count))


def test_cut_at_any_place(fresh):
    path = fresh / "model.bin"
    whole = path.read_bytes()
    for n in (40, 70, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=r"model\.bin cannot be read as a CTranslate2"):
            HookedWhisper.from_pretrained(fresh)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="something follows its last tensor"):
        HookedWhisper.from_pretrained(fresh)


def test_another_model_or_layout(fresh):
    patch(fresh, b"WhisperSpec", b"TransfoSpec")
    with pytest.raises(ArchitectureError, match="CTranslate2 model of another kind, 'TransfoSpec'"):
        HookedWhisper.from_pretrained(fresh)
    patch(fresh, b"TransfoSpec\0\3", b"WhisperSpec\0\2")
    with pytest.raises(ArchitectureError, match=r"of revision 2 in version 6.*Convert the model"):
        HookedWhisper.from_pretrained(fresh)


def test_claims_beyond_the_file(fresh):
    path = fresh / "model.bin"
    whole = path.read_bytes()
    start = whole[: 4 + 2 + 12 + 4]
    rows = header("decoder/embeddings/weight", (2**31, 2**20), 0, b"")
    path.write_bytes(start + struct.pack("<I", 1) + rows)
    with pytest.raises(CheckpointError, match=r"is \(2147483648, 1048576\) and has 0 bytes"):
        HookedWhisper.from_pretrained(fresh)
    path.write_bytes(start + struct.pack("<I", 2**32 - 1) + rows)
    with pytest.raises(CheckpointError, match="claims 4294967295 tensors"):
        HookedWhisper.from_pretrained(fresh)
    place = whole.index(b"decoder/layer_1/ffn/linear_0/weight\0") + 36
    path.write_bytes(whole[:place] + struct.pack("<BII", 2, 2**15, 24) + whole[place + 9 :])
    with pytest.raises(CheckpointError, match=r"'decoder/layer_1/ffn/linear_0/weight' is .* and"):
        HookedWhisper.from_pretrained(fresh)


def test_one_matrix_for_many(fresh):
    """Small files cannot stand for large models."""
    whole = (fresh / "model.bin").read_bytes()
    end = whole.rindex(b"\x1a\0decoder/projection/weight\0")
    names = [("decoder/layer_2/ffn/linear_9/weight", "decoder/layer_1/ffn/linear_0/weight")]
    texts = [part.encode() + b"\0" for pair in names for part in pair]
    data = b"".join(struct.pack("<H", len(text)) + text for text in texts)
    (fresh / "model.bin").write_bytes(whole[: end - 4] + struct.pack("<I", 1) + data)
    with pytest.raises(CheckpointError, match=r"has one matrix for .*linear_0/weight' and .*_9"):
        HookedWhisper.from_pretrained(fresh)


def test_what_is_no_whisper(fresh):
    at = b"decoder/pre_norm\0\0\1\1\0\0\0"
    patch(fresh, at + b"\1", at + b"\0")
    with pytest.raises(ArchitectureError, match=r"decoder/pre_norm in .* is 0; every Whisper"):
        HookedWhisper.from_pretrained(fresh)
    patch(fresh, at + b"\0", at + b"\1")
    patch(fresh, b"decoder/num_heads", b"decoder/num_headz")
    with pytest.raises(WeightNameError, match=r"lacks \['decoder/num_heads'\]"):
        HookedWhisper.from_pretrained(fresh)
    patch(fresh, b"decoder/num_headz", b"decoder/num_heads")
    patch(fresh, b"layer_1/ffn/linear_0/bias", b"layer_1/ffn/linear_0/bios")
    with pytest.raises(WeightNameError, match=r"lacks 1 tensor: decoder/layer_1/ffn.*bias\."):
        HookedWhisper.from_pretrained(fresh)


def test_a_bias_of_keys(fresh, tiny_cfg):
    path = fresh / "model.bin"
    data = bytearray(path.read_bytes())
    name = b"encoder/layer_0/self_attention/linear_0/bias\0"
    place = data.index(name) + len(name) + 1 + 4 + 1 + 4 + 2 * (tiny_cfg.d_model + 3)
    assert data[place : place + 2] == b"\0\0"
    data[place + 1] = 0x3C
    path.write_bytes(data)
    with pytest.raises(ArchitectureError, match=r"linear_0/bias\[key\]' in .* is not 0; the keys"):
        HookedWhisper.from_pretrained(fresh)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(fresh, value):
    path = fresh / "model.bin"
    data = bytearray(path.read_bytes())
    name = b"encoder/layer_0/ffn/linear_1/bias\0"
    place = data.index(name) + len(name) + 1 + 4 + 1 + 4
    data[place : place + 2] = np.float16(value).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'encoder/layer_0/ffn/linear_1/bias' in .*NaN or"):
        HookedWhisper.from_pretrained(fresh)


def test_a_scale_of_zero(folders, tmp_path):
    for path in folders("int8").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "model.bin").read_bytes())
    name = b"decoder/embeddings/weight_scale\0"
    place = data.index(name) + len(name) + 1 + 4 + 1 + 4
    data[place : place + 4] = bytes(4)
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'decoder/embeddings/weight' in .*NaN or infinite"):
        HookedWhisper.from_pretrained(tmp_path)


def test_the_file_instead_of_its_folder(fresh):
    with pytest.raises(SourceError, match=r"is one file of a checkpoint\. Give its folder"):
        HookedWhisper.from_pretrained(fresh / "model.bin")


def test_shapes_that_do_not_fit(fresh, tiny_cfg):
    name = b"decoder/layer_1/ffn/linear_0/weight\0"
    d = tiny_cfg.d_model
    old, new = struct.pack("<BII", 2, 4 * d, d), struct.pack("<BII", 2, d, 4 * d)
    patch(fresh, name + old, name + new)
    with pytest.raises(WeightShapeError, match=r"linear_0/weight' in .* is \(24, 96\); this con"):
        HookedWhisper.from_pretrained(fresh)


def test_the_shapes_say_what_is_no_config(fresh):
    patch(fresh, b"decoder/num_heads\0\0\2\2\0\0\0\3\0", b"decoder/num_heads\0\0\2\2\0\0\0\7\0")
    with pytest.raises(
        ArchitectureError, match=r"the shapes in .* are none of a Whisper: n_text_h"
    ):
        HookedWhisper.from_pretrained(Path(fresh))
