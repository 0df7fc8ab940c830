"""Edit while transcribing: a function of your own, on any activation, in every decoding step.

    python examples/edit_while_transcribing.py [FOLDER]

Cross-attention says where the decoder listens. A hook of one line turns its ear to what is said
0.9 s later, which is the next word here. What is written then, and where did it listen meanwhile?
"""

import sys
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.figures import plot_patterns

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

model = HookedWhisper.from_pretrained("digits", device="cpu")
heard = recordings()[0]
mel = model.to_mel(heard.path)
print(f"said: {heard.text}")


def later(pattern, hook):
    """Attention to what is said 0.9 s later; [batch head query key], as it came."""
    return pattern.roll(round(0.9 * 50), dims=-1)


# Layer 0 listens to no word yet. Names are globs, lists of names, or functions of the name.
names = [f"decoder.blocks.{layer}.cross_attn.hook_pattern" for layer in (1, 2, 3)]
patterns, titles = [], []
for what, hooks in (("as it is", []), ("0.9 s later", [(names, later)])):
    with model.hooks(fwd_hooks=hooks):
        # Everything in this block is edited: transcribe, decode with beams, run_with_cache, ...
        text = model.transcribe(heard.path, language="en")["text"].strip()
        steps = model.generate(mel, return_cache=True, names_filter=names)
    looks = steps.cache["decoder", 2, "pattern", "cross_attn"][0].mean(dim=0)
    patterns.append(looks[steps.n_prompt - 1 : steps.n_prompt + 2])
    titles.append(f"{what}: {text!r}")
    print(f"listening {what}: {text!r}")

print(f"no hook is left: {model.transcribe(heard.path)['text'].strip()!r}")
figure = plot_patterns(
    torch.stack(patterns),
    query_labels=["1st step", "2nd step", "3rd step"],
    sound_s=heard.duration_s,
    heads=titles,
    title="Where layer 2 listens in each step, and what is written",
)
figure.savefig(out / "edit_while_transcribing.png")
print(f"picture: {out / 'edit_while_transcribing.png'}")
