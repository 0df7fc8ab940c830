"""Run as a program: how much memory loading takes, as a multiple of the weights it leaves.

Usage: python memory_probe.py SOURCE:DTYPE ...
Prints a line of JSON: pairs of SOURCE:DTYPE and peak over the size of the weights.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper

M_MMAP_THRESHOLD = -3
"""Of malloc.h."""


def status_bytes(field: str) -> int:
    """Of this process's memory: `VmRSS` what it holds now, `VmHWM` the most it held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def peak_ratio(source: str, dtype: torch.dtype) -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = status_bytes("VmRSS")
    model = HookedWhisper.from_pretrained(source, device="cpu", dtype=dtype)
    peak = status_bytes("VmHWM") - before
    tensors = [*model.parameters(), model.encoder.positional_embedding]
    return peak / sum(tensor.nbytes for tensor in tensors)


if __name__ == "__main__":
    # Every tensor in a mapping of its own, which goes back as it is freed.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**17)
    ratios = []
    for case in sys.argv[1:]:
        source, _, dtype = case.rpartition(":")
        ratios.append((case, peak_ratio(source, getattr(torch, dtype))))
    print(json.dumps(ratios))
