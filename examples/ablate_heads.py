"""Ablate heads: how many cross-attention heads does the model need?

    python examples/ablate_heads.py [FOLDER]

A sweep takes away each of the 24 heads by itself: how much less probable are the right words? Then
they go together, those that are missed least first, or those that are missed most: how many
recordings are still written down rightly?
"""

import sys
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.digits import recordings
from hooked_whisper.figures import plot_head_scores
from hooked_whisper.interventions import Example, Interventions, Site, ZeroAblation
from hooked_whisper.metrics import SequenceLogProb
from hooked_whisper.patching import patch_sweep

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
torch.set_grad_enabled(False)

model = HookedWhisper.from_pretrained("digits", device="cpu")
spoken = recordings()
examples = [
    Example.from_audio(model, each.path, " " + each.text, append_eot=True) for each in spoken
]

# Zeros in place of one head's output at a time; the log-probability of each whole text.
result = patch_sweep(
    model,
    examples,
    "zero",
    "decoder.blocks.*.cross_attn.hook_z",
    metric=[SequenceLogProb(each.tokens, start=4) for each in examples],
    per="head",
    direction="noising",
    progress=False,
)
lost = (result.clean[:, None, None] - result.values[:, 0]).mean(dim=0)
order = lost.flatten().argsort().tolist()
n_heads = model.cfg.n_text_heads
names = [f"{place // n_heads}.{place % n_heads}" for place in order]
print(f"log-probability of a text: {result.clean.mean():.3f} on average")
print(f"missed most, of {len(order)} heads (layer.head), with the nats that are lost:")
print("  " + ", ".join(f"{names[i]} {lost.flatten()[order[i]]:.2f}" for i in (-1, -2, -3, -4)))

encoded = model(Mel.cat([each.mel for each in examples]))


def n_right(places):
    """How many of the recordings are written down rightly without these heads."""
    edits = [
        ZeroAblation(
            Site(f"decoder.blocks.{place // n_heads}.cross_attn.hook_z", head=place % n_heads)
        )
        for place in places
    ]
    with Interventions(model, *edits):
        texts = model.generate(None, 12, encoder_output=encoded).texts
    return sum(text == each.text for text, each in zip(texts, spoken, strict=True))


print(f"right, of {len(spoken)} recordings, without so many heads:")
print("  heads            " + "".join(f"{n:>4}" for n in (4, 8, 12, 16)))
for what, places in (("missed least", order), ("missed most", order[::-1])):
    print(f"  {what:<17}" + "".join(f"{n_right(places[:n]):>4}" for n in (4, 8, 12, 16)))

figure = plot_head_scores(
    lost,
    label="log-probability of a text that is lost (nats)",
    title="Each cross-attention head taken away by itself",
)
figure.savefig(out / "ablate_heads.png")
print(f"picture: {out / 'ablate_heads.png'}")
