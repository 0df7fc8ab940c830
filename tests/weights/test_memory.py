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


def test_loading_peaks_at_the_weights(
    tmp_path, openai_model, random_tiny_openai, random_tiny_hf, save_openai
):
    save_openai(openai_model, tmp_path / "warm-up.pt")
    save_openai(random_tiny_openai, tmp_path / "fp16.pt")
    save_openai(random_tiny_openai, tmp_path / "fp32.pt", torch.float32)
    random_tiny_hf.save_pretrained(tmp_path / "hf")
    random_tiny_hf.save_pretrained(tmp_path / "sharded", max_shard_size="50MB")
    cases = ["fp16.pt:float32", "fp32.pt:float32", "fp32.pt:float16", "hf:float32", "hf:float16"]
    cases.append("sharded:float32")
    ratios = measure(tmp_path, "warm-up.pt", *cases)
    assert list(ratios) == cases
    assert all(0.9 < ratio <= LIMIT for ratio in ratios.values()), ratios
    # In a fresh process, where loading also imports what it needs.
    cold = measure(tmp_path, "-", "fp16.pt:float32")
    assert all(0.9 < ratio <= LIMIT for ratio in cold.values()), cold


def measure(folder: Path, warm_up: str, *cases: str) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("memory_probe.py"), warm_up, *cases],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
