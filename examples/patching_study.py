"""Where the digits model keeps a spoken digit, and which heads fetch it: four experiments.

    python examples/patching_study.py [--pairs 12] [--out out]

Offline, on the shipped model and recordings. Words are cut out of the recordings and put
together anew, one a second, so that the truth is known: which digit is when.

1. Activation patching: the encoder's stream at the time of one digit, taken from another
   recording. At which layer does this digit of the transcript change, and no other?
2. A sweep over the decoder's cross-attention heads: which of them fetch the digit?
3. Knocking out their edges to the digit's time: is the digit gone?
4. Restricting the encoder's attention to its neighbours: how far does it have to see?
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from spoken import RATE_HZ, Word, join, shipped_words, slot

from hooked_whisper import HookedWhisper
from hooked_whisper.interventions import CutAttention, Example, Interventions, RestrictAttention
from hooked_whisper.metrics import ExactTranscript, LogitDifference
from hooked_whisper.patching import SweepResult, patch_sweep

N_WORDS = 3
N_PROMPT = 4


@dataclass(frozen=True)
class Pair:
    """Two sequences whose words stand at the same times."""

    clean: Example
    corrupted: Example
    clean_words: tuple[str, ...]
    corrupted_words: tuple[str, ...]


def spoken_sequences() -> list[list[Word]]:
    """Words of the shipped recordings, N_WORDS of one speaker at a time."""
    return [
        words[start : start + N_WORDS]
        for words in shipped_words()
        for start in range(len(words) - N_WORDS + 1)
    ]


def make_pairs(model: HookedWhisper, n_pairs: int) -> list[Pair]:
    """Pairs of sequences that differ in every word, and that the model hears rightly."""
    heard = []
    for words in spoken_sequences():
        text = tuple(word.text for word in words)
        example = Example.from_audio(model, join(words), rate_hz=RATE_HZ)
        if model.to_string(example.tokens)[0].split() == list(text):
            heard.append((text, example))
    pairs = [
        Pair(clean, corrupted, right, wrong)
        for right, clean in heard
        for wrong, corrupted in heard
        if all(a != b for a, b in zip(right, wrong, strict=True)) and len(set(right)) == N_WORDS
    ]
    step = max(1, len(pairs) // n_pairs)
    return pairs[::step][:n_pairs]


def patch_each_digit(
    model: HookedWhisper, pairs: list[Pair], names: str = "encoder.blocks.*.hook_resid_post"
) -> dict[int, float]:
    """Share of patches, by layer, after which one digit is the other's and the rest are not."""
    right = torch.zeros(len(model.hook_names(names)))
    for pair in pairs:
        for digit in range(N_WORDS):
            wanted = list(pair.corrupted_words)
            wanted[digit] = pair.clean_words[digit]
            result = patch_sweep(
                model,
                pair.clean,
                pair.corrupted,
                names,
                metric=ExactTranscript(" ".join(wanted)),
                per="window",
                parts=[slot(digit)],
                progress=False,
            )
            right += result.values[0, 0, :, 0]
    shares = right / (len(pairs) * N_WORDS)
    return dict(zip(result.axes["layer"], shares.tolist(), strict=True))


def sweep_cross_heads(model: HookedWhisper, pairs: list[Pair], digit: int) -> SweepResult:
    """How much of a digit each cross-attention head carries.

    The clean run hears all digits; in the corrupted one, silence stands in one's place.
    Each head's output there is put into the clean run.
    """
    clean = [pair.clean for pair in pairs]
    # Where a digit is silent, the model goes on with the next one.
    metrics = [
        LogitDifference(
            int(each.tokens[0, N_PROMPT + digit]),
            int(each.tokens[0, N_PROMPT + digit + 1]),
            pos=N_PROMPT + digit - 1,
        )
        for each in clean
    ]
    return patch_sweep(
        model,
        clean,
        [each.with_silence(slot(digit)) for each in clean],
        "decoder.blocks.*.cross_attn.hook_z",
        metric=metrics,
        per="head",
        direction="noising",
        progress=False,
    )


def knock_out(
    model: HookedWhisper, pairs: list[Pair], heads: list[tuple[int, int]], digit: int
) -> tuple[float, float]:
    """Shares of recordings in which the digit is gone, and in which the ones before it stay."""
    gone = kept = 0
    edits = [
        CutAttention(
            f"decoder.blocks.{layer}.cross_attn.hook_attn_scores", window_s=slot(digit), head=head
        )
        for layer, head in heads
    ]
    for pair in pairs:
        with Interventions(model, *edits):
            said = model.generate(pair.clean.mel).texts[0].split()
        gone += said[digit : digit + 1] != [pair.clean_words[digit]]
        kept += said[:digit] == list(pair.clean_words[:digit])
    return gone / len(pairs), kept / len(pairs)


def restrict_encoder(model: HookedWhisper, pairs: list[Pair], half_width: int) -> float:
    """Share of recordings heard rightly when encoder positions see only so far."""
    right = 0
    for pair in pairs:
        with Interventions(model, RestrictAttention("encoder", half_width)):
            said = model.generate(pair.clean.mel).texts[0].split()
        right += said == list(pair.clean_words)
    return right / len(pairs)


def main() -> None:
    """Run the four experiments and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = HookedWhisper.from_pretrained("digits", device="cpu")
    pairs = make_pairs(model, args.pairs)
    print(f"{len(pairs)} pairs of sequences of {N_WORDS} digits, one a second")

    print("\n1. The encoder's stream at one digit's time, taken from the other recording:")
    print("   share of patches after which that digit is the other's, and no other digit changes")
    for layer, share in patch_each_digit(model, pairs).items():
        print(f"   after layer {layer}: {share:6.1%}")

    digit = 1
    print("\n2. Cross-attention heads, each given what it reads when the digit is silent:")
    result = sweep_cross_heads(model, pairs, digit)
    low, high = result.interval(effect=True)
    for place in result.best(8):
        at = (0, place["layer"], place["head"])
        print(
            f"   head {place['layer']}.{place['head']}: {place['effect']:5.2f} of the whole effect "
            f"(95 %: {low[at]:.2f} to {high[at]:.2f})"
        )
    result.plot(title="what each cross-attention head carries of a digit").savefig(
        args.out / "cross_heads.png"
    )

    print("\n3. No edge from these heads to the digit's time:")
    ranked = [(place["layer"], place["head"]) for place in result.best(24)]
    for n_heads in (1, 2, 4, 6, 8, 12, 24):
        gone, kept = knock_out(model, pairs, ranked[:n_heads], digit)
        print(
            f"   the first {n_heads:2d}: digit gone {gone:6.1%}, digits before it kept {kept:6.1%}"
        )

    print("\n4. The encoder's attention restricted to so many positions either side:")
    for half_width in (75, 50, 25, 10, 5, 2):
        share = restrict_encoder(model, pairs, half_width)
        print(f"   ±{half_width:2d} ({half_width * 0.02:.2f} s): {share:6.1%} heard rightly")


if __name__ == "__main__":
    main()
