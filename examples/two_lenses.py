"""Two lenses: after which layer does the model know what it heard?

    python examples/two_lenses.py [FOLDER]

The encoder lens stops the encoder early and lets the decoder read that. The logit lens stops the
decoder early and reads its words off. Both on one recording; then the encoder lens on all eight.
"""

import sys
from pathlib import Path

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.lenses import encoder_lens, logit_lens

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

model = HookedWhisper.from_pretrained("digits", device="cpu")
spoken = recordings()
heard = spoken[0]
mel = model.to_mel(heard.path)

print("the encoder stopped after so many layers, and what the decoder makes of it:")
lens = encoder_lens(model, mel, max_new_tokens=12)
for layer, texts in zip(lens.layers, lens.texts, strict=True):
    print(f"  {layer}: {texts[0]}")

texts = [each.text for each in spoken]
all_mels = model.to_mel([each.path for each in spoken])
after = encoder_lens(model, all_mels, max_new_tokens=8).emerges_at(texts)
print(f"right after so many layers, and from there on: {after}")

# The decoder's stream after each sublayer, read as if it were the last one.
decoding = model.generate(mel, return_cache=True, names_filter="decoder.*")
lens = logit_lens(model, decoding)
print("the decoder's first guess of each word, and the sublayer from which on it is right:")
for step, word in enumerate(heard.words):
    ranks = lens.target_ranks[:, 0, step].tolist()
    known = max((i + 1 for i, rank in enumerate(ranks) if rank > 0), default=0)
    guess = model.to_string(lens.top_tokens[1, 0, step, :1]).strip()
    print(f"  {word.word}: first {guess!r}, right from {lens.labels[known]} on")

figure = lens.plot(title=f"Logit lens: {heard.text}")
figure.savefig(out / "two_lenses.png")
print(f"picture: {out / 'two_lenses.png'}")
