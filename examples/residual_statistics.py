"""Residual statistics: how are the numbers in the encoder's stream distributed?

    python examples/residual_statistics.py [FOLDER]

Is the stream sparse or dense, how many directions does it use, are there giants among its
dimensions? On the speech of all shipped recordings: padding, nine tenths of each window, would
drown it.
"""

import sys
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.analysis import (
    hoyer_sparsity,
    kurtosis,
    outlier_dimensions,
    participation_ratio,
    residual_histogram,
    share_below,
    speech_vectors,
)
from hooked_whisper.digits import recordings
from hooked_whisper.figures import plot_histograms

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

model = HookedWhisper.from_pretrained("digits", device="cpu")
mel = Mel.cat([model.to_mel(each.path) for each in recordings()])
sites = {
    "embedded sound": "encoder.hook_embed",
    **{f"after layer {layer}": f"encoder.blocks.{layer}.hook_resid_post" for layer in range(4)},
    "after the LayerNorm": "encoder.ln_final.hook_normalized",
}
with torch.no_grad():
    _, cache = model.run_with_cache(mel, names_filter=list(sites.values()))
n = mel.n_positions
n_vectors = len(speech_vectors(cache[sites["embedded sound"]], n))
print(f"{n_vectors} vectors of speech, of {model.cfg.d_model} dimensions")

# Excess kurtosis: 0 for a bell curve, -1.2 for a uniform spread, high for heavy tails.
# Sparsity (Hoyer): 0 where all dimensions are as large, 1 where one is all.
# Small: numbers under a tenth of the root mean square; 8 % of a bell curve are.
print(f"{'':<22}kurtosis  sparsity  small  directions  largest dimension")
pictures = {}
for name, site in sites.items():
    stream = cache[site]
    largest = outlier_dimensions(stream, n, times=0)
    print(
        f"{name:<22}{float(kurtosis(stream, n)):>8.2f}"
        f"{float(hoyer_sparsity(stream, n).nanmean()):>10.2f}"
        f"{share_below(stream, 0.1, n, of_rms=True):>7.1%}"
        f"{participation_ratio(stream, n):>12.1f}"
        f"{float(largest.times[0]):>12.1f} × the median"
    )
    values = speech_vectors(stream, n)
    found = residual_histogram(values / values.std(), n_bins=120, low=-6, high=6)
    pictures[name] = (found.counts, found.edges)

bell = torch.randn(2_000_000, 1, generator=torch.Generator().manual_seed(0))
found = residual_histogram(bell, n_bins=120, low=-6, high=6)
pictures["a bell curve"] = (found.counts, found.edges)
figure = plot_histograms(
    {name: pictures[name] for name in ("after layer 0", "after layer 3", "a bell curve")},
    label="value, in standard deviations of the stream",
    title="The encoder's stream on speech",
)
figure.savefig(out / "residual_statistics.png")
print(f"picture: {out / 'residual_statistics.png'}")
