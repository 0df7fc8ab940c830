"""Tensors read out of files piece by piece."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from hooked_whisper.errors import CheckpointError
from hooked_whisper.weights import files
from hooked_whisper.weights.files import (
    MemoryTensor,
    RowsTensor,
    equal_tensors,
)
from hooked_whisper.weights.pieces import RawTensor, safetensors_tensors
from hooked_whisper.weights.torch_files import read_stored, torch_tensors

CPU = torch.device("cpu")


def open_file(kind, tensors, folder):
    if kind == "safetensors":
        save_file(tensors, folder / "a.safetensors")
        return safetensors_tensors(folder / "a.safetensors")
    torch.save(tensors, folder / "a.pt")
    return torch_tensors(folder / "a.pt", read_stored(folder / "a.pt"))


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float16, torch.float32])
def test_pieces_join_into_the_tensor(kind, stored, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 50)  # less than two rows
    tensors = {
        "matrix": torch.randn(13, 7).to(stored),
        "vector": torch.randn(101).to(stored),
        "block": torch.randn(3, 4, 5).to(stored),
    }
    found = open_file(kind, tensors, tmp_path)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        "matrix": (13, 7),
        "vector": (101,),
        "block": (3, 4, 5),
    }
    for name, tensor in tensors.items():
        taken = found[name].take(CPU, wanted)
        assert taken.dtype == wanted
        assert torch.equal(taken, tensor.to(wanted))


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_what_was_taken_outlives_the_file(kind, tmp_path):
    tensor = torch.randn(100, 100)
    found = open_file(kind, {"a": tensor}, tmp_path)
    taken = found["a"].take(CPU, torch.float32)
    for path in tmp_path.iterdir():
        path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(taken, tensor)


@pytest.mark.parametrize("wanted", [torch.float16, torch.float32])
def test_parts_of_one_storage_in_a_pt_file(tmp_path, wanted):
    whole = torch.randn(6, 4)
    tensors = {"first": whole[:2], "rest": whole[2:], "all": whole, "one": torch.tensor(3.5)}
    for more in ({}, {"turned": torch.randn(5, 4).T, "column": whole[:, 1]}):  # which torch reads
        found = open_file("pt", tensors | more, tmp_path)
        assert all(isinstance(each, RawTensor) for each in found.values()) == (not more)
        for name, tensor in (tensors | more).items():
            assert torch.equal(found[name].take(CPU, wanted), tensor.to(wanted)), name


@pytest.mark.parametrize("wanted", [torch.float16, torch.float32])
def test_a_flipped_bit_in_a_pt_file(tmp_path, wanted):
    tensor = torch.arange(4000.0)
    found = open_file("pt", {"a": tensor}, tmp_path)["a"]
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(tensor.numpy().tobytes()) + 4001] ^= 2
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'a' in .*a\.pt is damaged: its checksum is"):
        found.take(CPU, wanted)


def test_a_pt_file_without_checksums(tmp_path):
    from torch.serialization import get_crc32_options, set_crc32_options

    before = get_crc32_options()
    set_crc32_options(False)
    try:
        found = open_file("pt", {"a": torch.arange(9.0)}, tmp_path)
    finally:
        set_crc32_options(before)
    assert found["a"].take(CPU, torch.float32).tolist() == list(range(9))


def test_a_borrowed_tensor_is_copied_and_an_owned_one_handed_over():
    value = torch.randn(4, 4)
    assert MemoryTensor(value).take(CPU, torch.float32).data_ptr() != value.data_ptr()
    assert MemoryTensor(value, owned=True).take(CPU, torch.float32).data_ptr() == value.data_ptr()
    part_of_another = value[1:3]
    taken = MemoryTensor(part_of_another, owned=True).take(CPU, torch.float32)
    assert taken.untyped_storage().nbytes() == taken.nbytes


def test_rows_that_are_not_listed_share_the_last_one():
    rows = torch.tensor([[1.0, 1], [2, 2], [9, 9]]).half()
    whole = RowsTensor(MemoryTensor(rows), MemoryTensor(torch.tensor([3, 0])), n_rows=5)
    assert whole.shape == (5, 2)
    assert whole.take(CPU, torch.float32)[:, 0].tolist() == [2, 9, 9, 1, 9]


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_equal_tensors_compares_every_piece(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 50)
    tensor = torch.randn(40, 8)
    changed = tensor.clone()
    changed[-1, -1] += 1
    found = open_file(kind, {"a": tensor, "b": tensor.clone(), "c": changed}, tmp_path)
    assert equal_tensors(found["a"], found["b"])
    assert not equal_tensors(found["a"], found["c"])
    assert not equal_tensors(found["a"], MemoryTensor(tensor.half()))
    assert equal_tensors(found["a"], MemoryTensor(tensor))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1],
        lambda raw: raw[:20],
        lambda raw: b"",
        lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        lambda raw: struct.pack("<Q", 2**60) + raw[8:],
    ],
    ids=["half", "one-byte", "header", "empty", "git-lfs-pointer", "header-length"],
)
def test_a_broken_safetensors_file(damage, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.randn(30, 30)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be read as safetensors"):
        safetensors_tensors(path)


def test_quantised_safetensors_are_refused(tmp_path):
    header = json.dumps({"w": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(CheckpointError, match=r"'w' in .* holds I8 values; .* unquantised"):
        safetensors_tensors(path)
