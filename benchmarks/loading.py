"""Measure loading against reading the file.

python -m benchmarks.loading tiny.en.pt ggml-tiny.en.bin faster-whisper-tiny.en ...
# writes benchmarks/results/<date>-loading-cpu.md

Files are in the page cache: what is measured is processor time. In turns: all bytes of the weights
read into new memory, `from_pretrained` in the dtype that is stored, and in float32.
"""

import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.run import cpu_model
from hooked_whisper import HookedWhisper

RESULTS = Path(__file__).parent / "results"
ROUNDS = 9


def main() -> None:
    """Measure each file or folder of the command line, and write it down."""
    lines = [
        "# Loading against reading the file",
        "",
        f"{datetime.date.today()}, {cpu_model()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, load before timing {os.getloadavg()[0]:.1f}. Processor time, files "
        f"in the page cache; medians of {ROUNDS} rounds, in turns. Times: medians of the ratios "
        "within a round.",
        "",
        "| source | MB | read, s | as stored, s | times | in float32, s | times |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for source in map(Path, sys.argv[1:]):
        row = _row(source)
        print(row, flush=True)
        lines.append(row)
    path = RESULTS / f"{datetime.date.today()}-loading-cpu.md"
    path.write_text("\n".join(lines) + "\n")


def _row(source: Path) -> str:
    files = [source] if source.is_file() else _weights(source)

    def load(dtype: Any) -> Callable[[], object]:
        return lambda: HookedWhisper.from_pretrained(source, device="cpu", dtype=dtype)

    ways = (lambda: [path.read_bytes() for path in files], load("auto"), load(torch.float32))
    rounds = [[_seconds(way) for way in ways] for _ in range(ROUNDS + 1)][1:]
    read, stored, wide = (statistics.median(each) for each in zip(*rounds, strict=True))
    first, second = (statistics.median(r[n] / r[0] for r in rounds) for n in (1, 2))
    size = sum(path.stat().st_size for path in files) / 1e6
    return (
        f"| {source.name} | {size:.0f} | {read:.3f} | {stored:.3f} | {first:.1f} | {wide:.3f} | "
        f"{second:.1f} |"
    )


def _weights(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".bin", ".safetensors", ".npz")]


def _seconds(way: Callable[[], object]) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began


if __name__ == "__main__":
    main()
