"""A first look inside: every activation of a run, by name.

    python examples/first_cache.py [FOLDER]

A run with a cache keeps what every part of the model computed. Here: what there is, how to ask
for it, and how much each encoder layer changes the stream, 20 ms by 20 ms.
"""

import sys
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.figures import plot_mel

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

model = HookedWhisper.from_pretrained("digits", device="cpu")
heard = recordings()[0]
print(f"{heard.path.name}: {model.transcribe(heard.path)['text'].strip()!r}")

# One run of the encoder on the sound and of the decoder on the text, everything kept.
mel = model.to_mel(heard.path)
tokens = model.to_tokens(" " + heard.text)
with torch.no_grad():
    logits, cache = model.run_with_cache(mel, tokens)
print(f"{cache}, among them:")

# An activation has a long name, which the cache knows by a short one too, and named axes.
for key in (
    ("encoder", "mel"),
    ("encoder", 0, "pattern"),
    ("encoder", -1, "resid_post"),
    ("decoder", 2, "pattern", "cross_attn"),
    ("decoder", "logits"),
):
    name = cache.full_name(key)
    axes = " ".join(cache.axes(name))
    print(f"  {name:<46}{tuple(cache[key].shape)!s:<20}[{axes}]")

# The window is 30 s long, and this recording 3.2 s: positions behind it are padding.
n = int(mel.n_positions)
print(f"{n} of {model.cfg.n_audio_ctx} encoder positions hold sound")

# How long is the step from the stream before a layer to the one after it?
steps = {}
for layer in range(model.cfg.n_audio_layers):
    before, after = (cache["encoder", layer, site][0, :n] for site in ("resid_pre", "resid_post"))
    steps[f"layer {layer}"] = (after - before).norm(dim=-1) / before.norm(dim=-1)

spoken = torch.zeros(n, dtype=torch.bool)
for word in heard.words:
    spoken[round(50 * word.start_s) : round(50 * word.end_s)] = True
print("length of a layer's step, as a share of the stream's: in words, between them")
for name, step in steps.items():
    print(f"  {name}: {step[spoken].mean():.2f}, {step[~spoken].mean():.2f}")

figure = plot_mel(
    cache["encoder", "mel"][0],
    sound_s=heard.duration_s,
    words=heard.words,
    activations=steps,
    title="How much each encoder layer changes the stream (share of its length)",
)
figure.savefig(out / "first_cache.png")
print(f"picture: {out / 'first_cache.png'}")
