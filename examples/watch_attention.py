"""Watch attention: where does the model listen while it writes each word?

    python examples/watch_attention.py [FOLDER]

Every word is looked up in the sound by cross-attention. How much of each head's attention lies
within the word that is written, on all shipped recordings; and, for the longest, a picture.
"""

import sys
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis import time_alignment
from hooked_whisper.digits import recordings
from hooked_whisper.figures import plot_cross_attention

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

model = HookedWhisper.from_pretrained("digits", device="cpu")
n_layers, n_heads = model.cfg.n_text_layers, model.cfg.n_text_heads
in_word = torch.zeros(n_layers, n_heads)
n_words = 0
for heard in recordings():
    # The cache of decoding: its positions are the steps in which the words were written.
    mel = model.to_mel(heard.path)
    decoding = model.generate(mel, return_cache=True, names_filter="*.cross_attn.hook_pattern")
    assert decoding.texts == [heard.text]
    first, n = decoding.n_prompt - 1, len(heard.words)
    times = torch.tensor([[word.start_s, word.end_s] for word in heard.words])
    for layer in range(n_layers):
        looks = decoding.cache["decoder", layer, "pattern", "cross_attn"][:, :, first : first + n]
        in_word[layer] += time_alignment(looks, times, mel.n_positions).in_word[0].sum(dim=-1)
    n_words += n

in_word /= n_words
print(f"share of attention within the word that is being written, {n_words} words")
print("layer   " + "".join(f"head {head}  " for head in range(n_heads)))
for layer, row in enumerate(in_word.tolist()):
    print(f"{layer:>5}   " + "".join(f"{value:6.2f}  " for value in row))
best, worst = in_word.flatten().argmax(), in_word[1:].flatten().argmin() + n_heads
print(f"the head that follows best is {best // n_heads}.{best % n_heads},")
print(f"the one that follows least in layers 1 to 3 is {worst // n_heads}.{worst % n_heads}")

# The longest recording again, with the heads that word times are read from.
heard = max(recordings(), key=lambda each: each.duration_s)
mel = model.to_mel(heard.path)
decoding = model.generate(mel, return_cache=True, names_filter=["*hook_mel", "*_attn.hook_pattern"])
layers, heads = model.alignment_heads.indices().tolist()
patterns = [
    decoding.cache["decoder", layer, "pattern", "cross_attn"][0, head]
    for layer, head in zip(layers, heads, strict=True)
]
steps = slice(decoding.n_prompt - 1, decoding.n_prompt - 1 + len(heard.words))
figure = plot_cross_attention(
    decoding.cache["encoder", "mel"][0],
    torch.stack(patterns).mean(dim=0)[steps],
    [word.word for word in heard.words],
    sound_s=heard.duration_s,
    spans_s=[(word.start_s, word.end_s, word.word) for word in heard.words],
    title=f"{heard.path.name}: where the decoder listens",
)
figure.savefig(out / "watch_attention.png")
print(f"picture: {out / 'watch_attention.png'}")
