"""Loading takes little more memory than the weights it leaves; at Tiny's full size where slow."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hooked_whisper import HookedWhisperConfig

from .ct2 import convert_to_ct2, small_vocabulary
from .ggml_blocks import random_blocks
from .ggml_files import write_ggml

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to measure peaks"
)

LIMIT = 1.2
IMPORTED_BYTES = 30e6
"""What the first load in a process takes besides, to import what it needs: 15 to 30 MB."""
SMALL = HookedWhisperConfig.for_release("tiny", n_audio_layers=2, n_text_layers=2, d_vocab=20_000)
"""70 MB."""


SOME = ["fp16.pt:float32", "fp16.pt:float32", "fp32.pt:float16", "q8.bin:float32", "int8:float32"]
REST = ["fp32.pt:float32", "q8.bin:float16", "hf:float32", "hf:float16", "sharded:float32"]


@pytest.mark.parametrize(
    ("cfg", "cases"),
    [
        (SMALL, SOME),
        pytest.param(HookedWhisperConfig.for_release("tiny"), SOME + REST, marks=pytest.mark.slow),
    ],
    ids=["small", "tiny"],
)
def test_loading_peaks_at_the_weights(cfg, cases, tmp_path, make_openai, make_hf, save_openai):
    """The first in a process that has to import what loading needs, the others after it."""
    theirs = make_openai(cfg)
    save_openai(theirs, tmp_path / "fp16.pt")
    save_openai(theirs, tmp_path / "fp32.pt", torch.float32)
    state, dims = theirs.state_dict(), dataclasses.asdict(theirs.dims)
    n_bytes = sum(value.nbytes for value in state.values())
    blocks = {"quantise": lambda rows: random_blocks("q8_0", rows.size)}
    write_ggml(tmp_path / "q8.bin", dims, state, "q8_0", **blocks)
    theirs = make_hf(cfg)
    convert_to_ct2(theirs, tmp_path / "int8", "int8", small_vocabulary(cfg.d_vocab))
    if "hf:float32" in cases:
        theirs.save_pretrained(tmp_path / "hf")
        theirs.save_pretrained(tmp_path / "sharded", max_shard_size="50MB")
    ratios = measure(tmp_path, *cases)
    assert len(ratios) == len(cases)
    assert ratios[0][1] <= LIMIT + IMPORTED_BYTES / n_bytes, ratios
    assert all(0.9 < ratio <= LIMIT for _, ratio in ratios[1:]), ratios


def measure(folder: Path, *cases: str) -> list[tuple[str, float]]:
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("memory_probe.py"), *cases],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
