"""Which heads and latents make it say "seven"? A circuit: found, and put to the test.

    python examples/which_heads_say_seven.py [FOLDER] [RECORDINGS]

Pairs of recordings differ in one word, "seven" or another digit. What is found on george's pairs
is tested on yweweler's, or on those of all speakers in RECORDINGS, a folder of the Free Spoken
Digit Dataset; takes 5 and 6 are heard, which the model was not trained on. The whole story is in
docs/circuit_of_seven.md.
"""

import random
import sys
from pathlib import Path

import torch
from spoken import DIGITS, RATE_HZ, join, shipped_words, words_of_folder

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.figures import plot_by_layer, plot_head_scores, plot_patching
from hooked_whisper.interventions import Example
from hooked_whisper.lenses import direct_attribution
from hooked_whisper.metrics import LogitDifference
from hooked_whisper.patching import attribution_patch, patch_sweep
from hooked_whisper.sae import load_suite

POS = 4  # after <start, en, transcribe, notimestamps> and the first word: writes the second one
HEADS = ["decoder.blocks.*.cross_attn.hook_z", "decoder.blocks.*.attn.hook_z"]
SITE = "encoder.blocks.3.hook_resid_post"
LATENTS = f"{SITE}.hook_sae_acts_post"
N_HEADS, N_LATENTS = 10, 15


class Pairs:
    """Recordings of three words with "seven" in the middle, and with another digit there."""

    def __init__(self, words, n, right="seven"):
        """n pairs of one speaker's words; another word may take the place of "seven"."""
        sounds = {word.text: word for word in words}
        others = [text for text in sounds if text != right]
        self.examples, self.nothing = ([], []), None
        self.metrics, self.right, self.wrong = [], ids[right], []
        for i, other in enumerate(others[:n]):
            first, last = (others[(i + step) % len(others)] for step in (1, 2))
            tokens = model.to_tokens(f" {first}")
            for middle, examples in zip((right, other), self.examples, strict=True):
                samples = join([sounds[text] for text in (first, middle, last)])
                examples.append(Example(model.to_mel(samples, rate_hz=RATE_HZ), tokens))
            self.metrics.append(LogitDifference(ids[right], ids[other], pos=POS))
            self.wrong.append(ids[other])
        self.tokens = torch.cat([each.tokens for each in self.examples[0]])
        # Both runs' stream behind the encoder's last layer; all that follows starts from it.
        self.streams = []
        for examples in self.examples:
            mel = Mel.cat([each.mel for each in examples])
            self.streams.append(model.run_with_cache(mel, names_filter=SITE)[1][SITE])
        self.clean, self.corrupted = (self.difference(each) for each in self.streams)

    def difference(self, stream, hooks=()):
        """Logit of "seven" less that of the other digit, of each pair, when this is heard."""
        logits = model.run_with_hooks(
            None, self.tokens, encoder_output=model.encoder.finish(stream), fwd_hooks=hooks
        )[:, POS]
        return logits[:, self.right] - logits.gather(1, torch.tensor(self.wrong)[:, None])[:, 0]

    def share(self, stream, hooks=()):
        """The same as a share: 0 what the other word gives, 1 what "seven" does."""
        change = self.difference(stream, hooks) - self.corrupted
        return float((change / (self.clean - self.corrupted)).mean())

    def kept(self, heads):
        """The share of the difference that is left with only these heads of the decoder."""
        if self.nothing is None:
            self.nothing = self.difference(self.streams[0], only([]))
        left = self.difference(self.streams[0], only(heads))
        return float(((left - self.nothing) / (self.clean - self.nothing)).mean())

    def with_latents(self, latents):
        """The other word's stream with these latents as they are in "seven", in the second word."""
        clean, corrupted = (stream[:, 50:100] for stream in self.streams)
        acts, edited = sae.encode(clean), sae.encode(corrupted)
        before = sae.decode(edited)
        edited[..., latents] = acts[..., latents]
        stream = self.streams[1].clone()
        stream[:, 50:100] += sae.decode(edited) - before  # what the latents miss stays
        return stream


def only(heads):
    """A hook that leaves these heads and gives all others their mean over the reference runs."""

    def hook(value, hook):
        edited = means[hook.name].expand_as(value).clone()
        for name, head in heads:
            if name == hook.name:
                edited[:, :, head] = value[:, :, head]
        return edited

    return [(HEADS, hook)]


def short(name, head):
    return f"{name.split('.')[2]}.{head}" + ("" if "cross" in name else " (self)")


out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
torch.set_grad_enabled(False)
random.seed(0)
model = HookedWhisper.from_pretrained("digits", device="cpu")
sae = load_suite("digits")[SITE]
ids = {word: int(model.to_tokens(f" {word}", prepend_sot=False)[0, 0]) for word in DIGITS}

by_speaker = {}
for words in shipped_words():
    by_speaker.setdefault(words[0].speaker, []).extend(words)
found = Pairs(by_speaker["george"], 4)
if len(sys.argv) > 2:
    takes = [words_of_folder(Path(sys.argv[2]), take) for take in (5, 6)]
    tests = [Pairs(words, 9) for speakers in takes for words in speakers]
else:
    tests = [Pairs(by_speaker["yweweler"], 4)]


# What a head gives on average over the other word's runs, position by position.
ALL = [(name, head) for name in model.hook_names(HEADS) for head in range(model.cfg.n_text_heads)]
_, cache = model.run_with_cache(
    None, found.tokens, encoder_output=model.encoder.finish(found.streams[1]), names_filter=HEADS
)
means = {name: value.mean(dim=0, keepdim=True) for name, value in cache.items()}


def held_out(measure):
    """The mean over the pairs that nothing was chosen by."""
    return sum(measure(each) for each in tests) / len(tests)


# 1. Heads: what is lost when one of them reads the other word instead?
sweep = patch_sweep(
    model,
    *found.examples,
    HEADS,
    metric=found.metrics,
    per="head",
    direction="noising",
    progress=False,
)
ranked = [(place["name"], place["head"], place["effect"]) for place in sweep.best(len(ALL))]
heads = [(name, head) for name, head, _ in ranked[:N_HEADS]]
print("1. heads: share of the difference lost without one (layer.head of cross-attention)")
print("   " + ", ".join(f"{short(name, head)} {effect:.2f}" for name, head, effect in ranked[:8]))

# 2. What do they write to the logits themselves?
run = model.run_with_cache(
    None,
    found.tokens,
    encoder_output=model.encoder.finish(found.streams[0]),
    names_filter="decoder.*",
)[1]
parts = direct_attribution(
    model,
    run,
    by="head",
    targets=ids["seven"],
    versus=torch.tensor(found.wrong)[:, None],
    pos=[POS],
)
mine = [f"L{name.split('.')[2]}{'X' if 'cross' in name else 'H'}{head}" for name, head in heads]
direct = sum(float(parts[label].mean()) for label in mine)
print(f"2. these {N_HEADS} write {direct:.1f} of {float(parts.logits.mean()):.1f} logits directly")

# 3. Keys or values: where they look, or what they find there?
shares = []
for part in ("k", "v"):
    name = f"decoder.blocks.*.cross_attn.hook_{part}"
    hooks = [(name, lambda value, hook: run[hook.name])]
    shares.append(found.share(found.streams[1], hooks))
print(f"3. what comes with the keys of 'seven': {shares[0]:.2f}; with its values: {shares[1]:.2f}")

# 4. Latents: an estimate for all 768, and then the few first ones put in for true.
with model.saes({SITE: sae}, use_error_term=True):
    estimate = attribution_patch(
        model,
        *found.examples,
        LATENTS,
        metric=found.metrics,
        per="latent",
        n_steps=2,
        along="sites",
    )
effects = estimate.mean(effect=True).flatten()
latents = effects.argsort(descending=True).tolist()
print("4. latents: " + ", ".join(f"{each} {effects[each]:.2f}" for each in latents[:8]))
counts = [1, 2, 5, N_LATENTS, 30, sae.cfg.d_sae]
for name, measure in (("found", lambda get: get(found)), ("held out", held_out)):
    shares = [measure(lambda p, n=n: p.share(p.with_latents(latents[:n]))) for n in counts]
    print(f"   {name}: with the first {counts}: " + " ".join(f"{each:.2f}" for each in shares))

# 5. The weights alone: what would each latent say through these heads?
rows = sae.W_dec - sae.W_dec.mean(dim=1, keepdim=True)
rows = rows * model.encoder.ln_final.weight
read = [model.decoder.blocks[int(name.split(".")[2])].cross_attn for name, _ in heads]
written = sum(
    rows @ each.W_V[head] @ each.W_O[head] for each, (_, head) in zip(read, heads, strict=True)
)
written = (written - written.mean(dim=1, keepdim=True)) * model.decoder.ln_final.weight
says = written @ model.W_U[:, [ids[word] for word in DIGITS]]
says = says - says.mean(dim=1, keepdim=True)
loudest = says.argmax(dim=0).tolist()
print("5. the latent that says each digit loudest, by the weights alone:")
print("   " + ", ".join(f"{word} {each}" for word, each in zip(DIGITS, loudest, strict=True)))
three = says.topk(3, dim=0).indices.flatten().tolist()
for name, several in (("the ten of them", loudest), ("the three loudest of each", three)):
    shares = (
        found.share(found.with_latents(several)),
        held_out(lambda p, several=several: p.share(p.with_latents(several))),
    )
    print(f"   share that {name} bring over: {shares[0]:.2f}, held out {shares[1]:.2f}")

# 6. Is that all? Only these heads; all but these; as many others drawn at random.
print("6. share of the difference left     found  held out")
rest = [each for each in ALL if each not in heads]
for name, chosen in ((f"only these {N_HEADS} heads", heads), (f"only the other {len(rest)}", rest)):
    left = found.kept(chosen), held_out(lambda p, chosen=chosen: p.kept(chosen))
    print(f"   {name:<32}{left[0]:5.2f}  {left[1]:8.2f}")
cross = [each for each in ALL if "cross" in each[0]]
drawn = [found.kept(random.sample(cross, N_HEADS)) for _ in range(10)]
at_random = f"{N_HEADS} cross-attention heads at random"
print(f"   {at_random:<32}{sum(drawn) / len(drawn):5.2f}  (at most {max(drawn):.2f})")
added = [found.kept(heads) - found.kept([h for h in heads if h != each]) for each in heads]
print(f"   each of the {N_HEADS} adds {min(added):.2f} to {max(added):.2f} to the others")

# 7. Are these the heads of "seven", or of every word?
other = Pairs(by_speaker["jackson"], 2, right="one")
print(f'7. jackson\'s "one" against other digits: {other.kept(heads):.2f} with only these heads,')
print(f"   {other.share(other.with_latents(latents[:N_LATENTS])):.2f} with the {N_LATENTS} latents")

# Three pictures: the sweep over heads, what is left with some of them, what the weights say.
effect = sweep.mean(effect=True)
kinds = {"self-attention": "decoder.attn.hook_z", "cross-attention": "decoder.cross_attn.hook_z"}
plot_head_scores(
    {kind: effect[sweep.axes["site"].index(site)] for kind, site in kinds.items()},
    label='share of "seven" lost',
    title="One head of the decoder reads the other word instead",
    low=0,
).savefig(out / "which_heads_say_seven_heads.png")
steps = [0, 2, 4, 6, 8, 10, 12, 16]
chosen = [[(name, head) for name, head, _ in ranked[:n]] for n in steps]
samples = [[found.kept(random.sample(cross, n)) for _ in range(3)] for n in steps]
figure = plot_by_layer(
    {
        'share of "seven" left': {
            "george (chosen on)": torch.tensor([found.kept(each) for each in chosen]),
            "held out": torch.tensor([held_out(lambda p, c=each: p.kept(c)) for each in chosen]),
            "at random": torch.tensor(samples).mean(dim=1),
        }
    },
    layers=[str(n) for n in steps],
    title="With only so many heads of the decoder",
)
figure.axes[0].set_xlabel("heads, in the order of the sweep")
figure.savefig(out / "which_heads_say_seven_kept.png")
plot_patching(
    says[loudest],
    [f"{latent}" for latent in loudest],
    DIGITS,
    label="logit, less the mean over digits, for one unit",
    row_label="latent",
    column_label="digit",
    title="What the loudest latents say through these heads, by the weights alone",
).savefig(out / "which_heads_say_seven_weights.png")
print(f"pictures: {out}/which_heads_say_seven_*.png")
