"""Measure the two ways in which ReLU autoencoders compute losses and gradients.

python -m benchmarks.sae_relu   # writes benchmarks/results/<date>-sae-relu-<device>.md

Going through the active latents alone, or through matrices of all: `is_sparse_faster` chooses
by the share of latents that are active. Both in turns, on the same batch.
"""

import datetime
import os
import statistics
import time
from pathlib import Path

import torch

from benchmarks.run import cpu_model
from hooked_whisper.sae import ReLUConfig, make_sae, selection

RESULTS = Path(__file__).parent / "results"
D_IN, BATCH, ROUNDS = 384, 4096, 7
SIZES = (3072, 12_288)
ACTIVE = (1 / 6, 1 / 12, 1 / 30, 1 / 100)
"""Shares of the latents that are active at once."""


def main() -> None:
    """Measure each size at each share, and write it down."""
    lines = [
        "# Losses of ReLU autoencoders: active latents alone, or matrices of all",
        "",
        f"{datetime.date.today()}, {cpu_model()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, load before timing {os.getloadavg()[0]:.1f}. Losses with gradients "
        f"of {BATCH} vectors of width {D_IN}, float32; medians of {ROUNDS} rounds, in turns.",
        "",
        "| latents | active at once | active alone, s | all, s | times |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for d_sae in SIZES:
        for share in ACTIVE:
            few, all_ = _seconds(d_sae, share)
            row = f"| {d_sae} | {share:.1%} | {few:.3f} | {all_:.3f} | {all_ / few:.2f} |"
            print(row)
            lines.append(row)
    path = RESULTS / f"{datetime.date.today()}-sae-relu-cpu-float32.md"
    path.write_text("\n".join(lines) + "\n")


def _seconds(d_sae: int, share: float) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, D_IN, generator=generator)
    sae = make_sae(ReLUConfig(d_in=D_IN, d_sae=d_sae), generator)
    with torch.no_grad():
        pre = (x[:256] @ sae.W_enc).flatten()
        sae.b_enc.fill_(-float(pre.kthvalue(int(len(pre) * (1 - share))).values))
    taken: dict[float, list[float]] = {1.0: [], -1.0: []}
    for _ in range(ROUNDS + 1):
        for bound, seconds in taken.items():
            selection._SPARSE_SHARE["cpu"] = bound
            sae.zero_grad()
            start = time.perf_counter()
            sae.losses(x).total.backward()
            seconds.append(time.perf_counter() - start)
    few, all_ = (statistics.median(seconds[1:]) for seconds in taken.values())
    return few, all_


if __name__ == "__main__":
    main()
