"""Loading at Tiny's full size takes little more memory than the weights it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to measure peaks"
)

LIMIT = 1.3


def test_loading_peaks_at_the_weights(tmp_path, random_tiny_openai, random_tiny_hf, save_openai):
    """The first in a process that has to import what loading needs, the others after it."""
    save_openai(random_tiny_openai, tmp_path / "fp16.pt")
    save_openai(random_tiny_openai, tmp_path / "fp32.pt", torch.float32)
    random_tiny_hf.save_pretrained(tmp_path / "hf")
    random_tiny_hf.save_pretrained(tmp_path / "sharded", max_shard_size="50MB")
    openais = ["fp16.pt:float32", "fp16.pt:float32", "fp32.pt:float32", "fp32.pt:float16"]
    ratios = measure(tmp_path, *openais, "hf:float32", "hf:float16", "sharded:float32")
    assert len(ratios) == 7
    assert all(0.9 < ratio <= LIMIT for _, ratio in ratios), ratios


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
