"""A damaged result of patching is refused with an error of ours, or reads as it was."""

import json
import struct
from pathlib import Path
from typing import Any

import torch

from hooked_whisper.metrics import LogProb
from hooked_whisper.patching import SweepResult, patch_sweep

from .mutations import SEEDS, N, Outcomes, of_bytes, of_json


def with_header(data: bytes, seed: int) -> bytes:
    """The file with another header inside of safetensors' own."""
    (n,) = struct.unpack("<Q", data[:8])
    outer = json.loads(data[8 : 8 + n])
    about = json.loads(outer["__metadata__"]["sweep"])
    outer["__metadata__"]["sweep"] = json.dumps(of_json(about, seed))
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + n :]


def test_damage_is_refused(
    tiny_model: Any, pair: Any, tmp_path: Path, without_shape_checks: None, outcomes: Outcomes
) -> None:
    names, path = "encoder.blocks.*.hook_resid_post", tmp_path / "sweep"
    result = patch_sweep(tiny_model, *pair, names, metric=LogProb(5), progress=False)
    result.save(path)
    whole = path.read_bytes()
    for seed in SEEDS:
        path.write_bytes(with_header(whole, seed) if seed % 2 else of_bytes(whole, seed))
        found = outcomes.read(seed, lambda: SweepResult.load(path))
        if found is not None:
            assert torch.equal(found.values, result.values) and found.axes == result.axes, seed
            assert found.metric == result.metric and found.conditions == result.conditions, seed
    assert outcomes["refused"] > N * 0.8
