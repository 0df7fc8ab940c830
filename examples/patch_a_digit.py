"""Patch a digit: when, and in which layer, is the sound of a digit that digit?

    python examples/patch_a_digit.py [FOLDER]

Two recordings, "three one four" and "eight five two", with the digits at the same times. A sweep
puts the stream of the first into the second, layer by layer and 0.3 s by 0.3 s, and measures how
far the second digit turns from "five" into "one".
"""

import sys
from pathlib import Path

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.interventions import Example, Interventions, Patch, Site
from hooked_whisper.metrics import LogitDifference
from hooked_whisper.patching import patch_sweep

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

model = HookedWhisper.from_pretrained("digits", device="cpu")
one_said, five_said = recordings()[:2]
clean = Example.from_audio(model, one_said.path, " three")
corrupted = Example.from_audio(model, five_said.path, " three")

# After <start, en, transcribe, notimestamps, three>, position 4 writes the second digit.
one, five = (int(model.to_tokens(word, prepend_sot=False)[0, 0]) for word in (" one", " five"))
metric = LogitDifference(one, five, pos=4)
result = patch_sweep(
    model,
    clean,
    corrupted,
    "encoder.blocks.*.hook_resid_post",
    metric=metric,
    per="window",
    window_s=0.3,
    progress=False,
)
word = one_said.words[1]
print(f"'one' is spoken from {word.start_s:.2f} to {word.end_s:.2f} s")
print(f"one less five, in logits: {float(result.clean):.1f} in the first recording,")
print(f"{float(result.corrupted):.1f} in the second; the patches that bring most of it over:")
for place in result.best(4):
    print(
        f"  layer {place['layer']}, {place['start_s']:.1f} to {place['end_s']:.1f} s: "
        f"{place['effect']:.2f} of the difference"
    )

# The same patch while decoding: only this digit changes.
window_s = (word.start_s - 0.2, word.end_s + 0.2)
names = "encoder.blocks.2.hook_resid_post"
_, source = model.run_with_cache(clean.mel, names_filter=names)
with Interventions(model, Patch(Site(names, window_s=window_s), source)):
    print(f"{five_said.text!r} becomes {model.generate(corrupted.mel).texts[0]!r}")

figure = result.plot(title='"five" into "one": which time of which layer has to be patched')
figure.savefig(out / "patch_a_digit.png")
print(f"picture: {out / 'patch_a_digit.png'}")
