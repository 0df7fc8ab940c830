"""Steer a digit: a direction that means "one", added to the encoder's output.

    python examples/steer_a_digit.py [FOLDER]

The mean of the encoder's output over "one" less that over the other digits is a direction. Added
while "three" is spoken, at growing strength: how probable is each word, and what is written?
The direction is made from other people's voices than the one it is used on.
"""

import sys
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.figures import plot_by_layer
from hooked_whisper.interventions import Interventions, Site, Steer, class_mean_difference

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
torch.set_grad_enabled(False)

model = HookedWhisper.from_pretrained("digits", device="cpu")
heard = recordings()[0]  # jackson says "three one four"

# The encoder's output over every word that somebody else than jackson says.
ones, others = [], []
for each in recordings():
    if each.speaker != heard.speaker:
        output = model(model.to_mel(each.path))[0]
        for word in each.words:
            places = output[round(50 * word.start_s) : round(50 * word.end_s)]
            (ones if word.word == "one" else others).append(places)
direction = class_mean_difference(torch.cat(ones), torch.cat(others))
print(f"from {len(ones)} times 'one' and {len(others)} other words of four other people")

mel = model.to_mel(heard.path)
site = Site("encoder.ln_final.hook_normalized", window_s=(0.0, heard.words[0].end_s))
ids = {word: int(model.to_tokens(f" {word}", prepend_sot=False)[0, 0]) for word in ("three", "one")}
strengths = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
lines = {word: torch.zeros(len(strengths)) for word in ids}
for i, strength in enumerate(strengths):
    with Interventions(model, Steer(site, direction, strength)):
        steps = model.generate(mel, 8, return_cache=True, names_filter="decoder.hook_logits")
    probs = steps.cache["decoder.hook_logits"][0, steps.n_prompt - 1].softmax(dim=-1)
    for word, token in ids.items():
        lines[word][i] = probs[token]
    print(f"strength {strength:4.2f}: P(three) {probs[ids['three']]:.2f}, ", end="")
    print(f"P(one) {probs[ids['one']]:.2f}   {steps.texts[0]}")

figure = plot_by_layer(
    {"probability of the first word": {f'"{word}"': line for word, line in lines.items()}},
    layers=[f"{strength:g}" for strength in strengths],
    title='A direction for "one", added at "three"',
)
figure.axes[0].set_xlabel("strength")
figure.savefig(out / "steer_a_digit.png")
print(f"picture: {out / 'steer_a_digit.png'}")
