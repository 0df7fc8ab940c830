"""The main job in one minute, offline: hear, look inside, patch, see what changed.

    python examples/demo.py [--out out]

A person says three digits. The shipped model writes them down; every activation of that
has a name. Then the encoder's residual stream at the time of the second digit is
replaced by that of another recording: this digit changes, and the others do not. So it does
when 10 of 768 latents of a sparse autoencoder are set to what they are there.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper, WhisperCache
from hooked_whisper.digits import SpokenDigits, recordings
from hooked_whisper.figures import plot_cross_attention, plot_patching
from hooked_whisper.interventions import Clamp, Interventions, Site
from hooked_whisper.sae import load_suite

POSITIONS_PER_SECOND = 50
PATCHED_DIGIT = 1
PATCHED_HOOK = "encoder.blocks.2.hook_resid_post"
SAE_HOOK = "encoder.blocks.3.hook_resid_post"
N_LATENTS = 10
SHOWN_HOOKS = [
    "encoder.hook_mel",
    "encoder.blocks.0.attn.hook_pattern",
    "encoder.blocks.2.hook_resid_post",
    "decoder.blocks.0.cross_attn.hook_pattern",
    "decoder.blocks.3.mlp.hook_post",
    "decoder.hook_logits",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    model = HookedWhisper.from_pretrained("digits", device="cpu")
    heard, other = recordings()[:2]
    step("Hear", "the small Whisper in the package writes down what a person says.")
    for each in (heard, other):
        line(each.path.name, model.transcribe(str(each.path))["text"].strip())

    mel = model.to_mel(heard.path)
    tokens = model.generate(mel).tokens[:, :-1]
    with torch.no_grad():
        _, cache = model.run_with_cache(mel, tokens)
        _, other_cache = model.run_with_cache(model.to_mel(other.path), names_filter=PATCHED_HOOK)
    step("Look inside", f"{len(cache)} activations have a name; some of them, with their axes.")
    for name in SHOWN_HOOKS:
        sizes = zip(cache.axes(name), cache[name].shape, strict=True)
        line(name, ", ".join(f"{axis} {n}" for axis, n in sizes))

    start_s, end_s = window(heard, PATCHED_DIGIT)
    step("Patch", f"{start_s:.2f} to {end_s:.2f} s of {PATCHED_HOOK}, from the other one.")
    line("before", heard.text)
    with model.hooks(fwd_hooks=[(PATCHED_HOOK, time_patch(other_cache, heard, PATCHED_DIGIT))]):
        line("after", model.transcribe(str(heard.path))["text"].strip())

    step("Edit", f"{N_LATENTS} of 768 latents of a sparse autoencoder there, as in the other one.")
    line("before", heard.text)
    line("after", transcribe_with_latents(model, heard, other))

    step("See", "two pictures.")
    draw_attention(model, cache, heard, tokens, out / "cross_attention.png")
    line("where the decoder listens for each digit", out / "cross_attention.png")
    draw_patching(model, other_cache, heard, other, mel, tokens, out / "patching.png")
    line("which digit changes with whose time", out / "patching.png")


def step(what: str, how: str) -> None:
    """Print a heading."""
    print(f"\n{what}: {how}")


def line(what: str, found: object) -> None:
    """Print one thing that was found, all of them below each other."""
    print(f"  {what:<42}{found}")


def window(recording: SpokenDigits, digit: int) -> tuple[float, float]:
    """The seconds around a digit, halfway to its neighbours."""
    words = recording.words
    start_s, end_s = words[digit].start_s, words[digit].end_s
    if digit > 0:
        start_s = (start_s + words[digit - 1].end_s) / 2
    if digit + 1 < len(words):
        end_s = (end_s + words[digit + 1].start_s) / 2
    return start_s, end_s


def time_patch(source: WhisperCache, recording: SpokenDigits, digit: int) -> Any:
    """A hook that takes the time of one digit from another recording's cache."""
    start, end = (round(each * POSITIONS_PER_SECOND) for each in window(recording, digit))

    def patch(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, start:end] = source[hook.name][:, start:end]
        return value

    return patch


@torch.no_grad()
def transcribe_with_latents(model: HookedWhisper, heard: SpokenDigits, other: SpokenDigits) -> str:
    """The transcript with the latents in which one digit differs most from another's set to it."""
    sae, latents = load_suite("digits")[SAE_HOOK], f"{SAE_HOOK}.hook_sae_acts_post"
    word = heard.words[PATCHED_DIGIT]
    window_s = (word.start_s, word.end_s)
    start, end = (round(each * POSITIONS_PER_SECOND) for each in window_s)
    with model.saes({SAE_HOOK: sae}, use_error_term=True):
        mine, theirs = (
            model.run_with_cache(model.to_mel(each.path), names_filter=latents)[1][latents][
                0, start:end
            ].mean(dim=0)
            for each in (heard, other)
        )
        most = (theirs - mine).abs().topk(N_LATENTS).indices.tolist()
        edits = [
            Clamp(Site(latents, latent=each, window_s=window_s), float(theirs[each]))
            for each in most
        ]
        with Interventions(model, *edits):
            return str(model.transcribe(str(heard.path))["text"]).strip()


def draw_attention(
    model: HookedWhisper, cache: WhisperCache, heard: SpokenDigits, tokens: Tensor, path: Path
) -> None:
    """Where the decoder looks while it writes each digit, under the sound."""
    layers, heads = model.alignment_heads.indices().tolist()
    patterns = [
        cache["decoder", layer, "pattern", "cross_attn"][0, head]
        for layer, head in zip(layers, heads, strict=True)
    ]
    n = len(heard.words)
    mean = torch.stack(patterns).mean(dim=0)[-n - 1 : -1]
    figure = plot_cross_attention(
        cache["encoder", "mel"][0],
        mean,
        model.to_str_tokens(tokens[0, -n:]),
        sound_s=heard.duration_s,
        spans_s=[(word.start_s, word.end_s, word.word) for word in heard.words],
        title=f"{heard.path.name}: mel, and cross-attention (mean of the alignment heads)",
    )
    figure.savefig(path)


@torch.no_grad()
def draw_patching(
    model: HookedWhisper,
    source: WhisperCache,
    heard: SpokenDigits,
    other: SpokenDigits,
    mel: Any,
    tokens: Tensor,
    path: Path,
) -> None:
    """How probable each of the other recording's digits is, by the digit whose time was patched."""
    n = len(heard.words)
    targets = model.to_tokens(" " + other.text, prepend_sot=False)[0]
    effect = torch.zeros(n + 1, n)
    for row, digit in enumerate([None, *range(n)]):
        hooks = [] if digit is None else [(PATCHED_HOOK, time_patch(source, heard, digit))]
        logits = model.run_with_hooks(mel, tokens, fwd_hooks=hooks)
        probabilities = logits[0, -n - 1 : -1].softmax(dim=-1)
        effect[row] = probabilities.gather(1, targets[:, None])[:, 0]
    pairs = zip(heard.words, other.words, strict=True)
    figure = plot_patching(
        effect,
        ["nothing", *(f'the time of "{word.word}"' for word in heard.words)],
        [f"{mine.word} → {theirs.word}" for mine, theirs in pairs],
        label="probability of the other digit",
        row_label="patched",
        column_label="digit of the transcript",
        title=f"{PATCHED_HOOK}, from {other.path.name}",
        low=0.0,
        high=1.0,
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
