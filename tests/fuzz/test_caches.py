"""A damaged cache is refused with an error of ours, or holds what was saved."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.speech.mel import Mel

from .mutations import SEEDS, N, Outcomes, of_bytes, of_json


def of_header(data: bytes, seed: int) -> bytes:
    """A file of safetensors with something else in its header, or in the JSON in there."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    if seed % 3 == 0:
        header = of_json(header, seed)
    else:
        kept = header["__metadata__"]
        key = ("axes", "n_frames", "n_layers")[seed // 3 % 3]
        kept[key] = json.dumps(of_json(json.loads(kept[key]), seed))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def test_damage_is_refused(
    make_model: Any,
    tiny_cfg: Any,
    tiny_mel: Tensor,
    tmp_path: Path,
    without_shape_checks: None,
    outcomes: Outcomes,
) -> None:
    mel = Mel(tiny_mel, torch.tensor([60, 31]))
    _, cache = make_model(tiny_cfg).run_with_cache(mel, names_filter="encoder.*resid*")
    path = tmp_path / "run"
    cache.save(path)
    whole = path.read_bytes()
    for seed in SEEDS:
        path.write_bytes((of_bytes if seed % 2 else of_header)(whole, seed))
        found = outcomes.read(seed, lambda: WhisperCache.load(path))
        if found is not None:
            assert list(found) == list(cache), seed
            assert found.n_frames is not None and found.n_frames.tolist() == [60, 31], seed
            for name in cache:
                assert torch.equal(found[name], cache[name]), (seed, name)
                assert found.axes(name) == cache.axes(name), (seed, name)
    assert outcomes["refused"] > N / 2
