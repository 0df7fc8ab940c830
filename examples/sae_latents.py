"""Latents of a sparse autoencoder: what fires at "seven", and does the model use it?

    python examples/sae_latents.py [FOLDER]

The shipped autoencoder splits the encoder's last stream into 768 latents. Which of them tells
"seven" from the other digits? What is written when it is taken away, or set to its height at
"seven" while something else is said?
"""

import sys
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.figures import plot_latents
from hooked_whisper.interventions import Clamp, Interventions, Site, ZeroAblation
from hooked_whisper.sae import load_suite

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
torch.set_grad_enabled(False)

model = HookedWhisper.from_pretrained("digits", device="cpu")
site = "encoder.blocks.3.hook_resid_post"
latents = f"{site}.hook_sae_acts_post"
sae = load_suite("digits")[site]

# All latents over every recording, and their mean height in each spoken word.
spoken = recordings()
acts, heights = [], {}
for each in spoken:
    mel = model.to_mel(each.path)
    _, cache = model.run_with_cache_with_saes(mel, saes={site: sae}, names_filter=latents)
    acts.append(cache[latents][0])
    for word in each.words:
        places = slice(round(50 * word.start_s), round(50 * word.end_s))
        heights.setdefault(word.word, []).append(acts[-1][places].mean(dim=0))

# For each digit, the latent that is most above its height in any other digit.
mean = torch.stack([torch.stack(several).mean(dim=0) for several in heights.values()])
best = {}
for i, word in enumerate(heights):
    others = torch.cat([mean[:i], mean[i + 1 :]]).amax(dim=0)
    best[word] = int((mean[i] - others).argmax())
seven = best["seven"]
print(f"of {sae.cfg.d_sae} latents, number {seven} stands out in 'seven'; its mean height:")
for word, several in heights.items():
    print(f"  {word:<6}" + "".join(f"{float(each[seven]):6.1f}" for each in several))

# Does the model use it? Taken away where "seven" is said; as high as there where another is.
high = float(torch.stack(heights["seven"])[:, seven].max())
with_seven = next(each for each in spoken if "seven" in each.text)
with model.saes({site: sae}, use_error_term=True):
    for each, word, edit in (
        (with_seven, "seven", ZeroAblation),
        (spoken[0], "one", lambda where: Clamp(where, 2 * high)),
    ):
        (times,) = [(w.start_s, w.end_s) for w in each.words if w.word == word]
        where = Site(latents, latent=seven, window_s=times)
        with Interventions(model, edit(where)):
            text = model.generate(model.to_mel(each.path), 12).texts[0]
        what = "taken away" if edit is ZeroAblation else "twice its height"
        print(f"{each.text!r}, {what} in {word!r}: {text!r}")

# Each digit's latent, on the recording that has a "seven" among others.
heard, act = max(zip(spoken, acts, strict=True), key=lambda pair: pair[0].duration_s)
columns = list(best.values())
figure = plot_latents(
    act[: round(50 * heard.duration_s), columns],
    [f"{word}: {latent}" for word, latent in best.items()],
    words=[(word.word, word.start_s, word.end_s) for word in heard.words],
    peaks=torch.stack([each.amax(dim=0) for each in acts]).amax(dim=0)[columns],
    title="For each digit, the latent that stands out in it",
)
figure.savefig(out / "sae_latents.png")
print(f"picture: {out / 'sae_latents.png'}")
