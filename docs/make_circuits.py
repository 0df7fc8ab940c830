"""Make the numbers and pictures of docs/circuits.md: how tiny.en hears a word in a sentence.

    python docs/make_circuits.py [--weights tiny.en.pt] [--sentences FOLDER] [--out docs/pictures]

In each of some sentences, of as many speakers, one word is silenced at its own time; edges are
scored on the first three, and circuits judged on the others. Weights and sentences (with a
manifest.csv) are looked for in $HOOKED_WHISPER_DATA, or in ../shared/data beside the checkout.
Some minutes on two cores.
"""

import argparse
import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.circuits import (
    WordPair,
    circuit_transcripts,
    edge_times,
    faithfulness_curve,
    find_circuit,
    word_pair,
)
from hooked_whisper.errors import HookedWhisperError
from hooked_whisper.interventions import Example
from hooked_whisper.interventions.aligned_words import spoken_words

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("HOOKED_WHISPER_DATA", ROOT.parent / "shared" / "data"))
N_FOUND, N_HELD_OUT = 3, 2
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
N_STEPS = 3


def sentences(folder: Path) -> Iterator[Path]:
    """One short sentence of each speaker that the model gets right."""
    seen = set()
    with (folder / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            is_right = row["tiny_en_wer"] and float(row["tiny_en_wer"]) == 0
            if is_right and 2 < float(row["duration"]) < 7 and row["speaker"] not in seen:
                seen.add(row["speaker"])
                yield folder / row["path"]


def pair_of(model: HookedWhisper, path: Path) -> WordPair | None:
    """The first long word that the model does not guess from the words before it."""
    example = Example.from_audio(model, path)
    words = None
    for word in model.to_string(example.tokens)[0].split():
        plain = "".join(filter(str.isalpha, word)).lower()
        if len(plain) < 5:
            continue
        words = words or spoken_words(model, example, model.to_tokens("").shape[1])
        try:
            found = word_pair(model, example, plain, words=words)
        except HookedWhisperError:
            continue
        with torch.no_grad():
            clean, corrupted = (
                float(found.metric(model(run.mel, run.tokens))) for run in found.pair
            )
        if clean > 1 and corrupted < -1:
            text = model.to_string(example.tokens)[0].strip()
            against = model.to_string([[found.against]])[0]
            print(f"  {path.stem}: {text!r}; {plain!r} at {found.window_s[0]:.2f} to", end=" ")
            print(f"{found.window_s[1]:.2f} s, {clean:.1f} and {corrupted:.1f} against {against!r}")
            return found
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=DATA / "whisper" / "tiny.en.pt")
    parser.add_argument("--sentences", type=Path, default=DATA / "speech" / "sentences")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    args = parser.parse_args()
    began, clock = time.perf_counter(), time.process_time
    model = HookedWhisper.from_pretrained(args.weights, device="cpu")

    print("words:")
    words: list[WordPair] = []
    for path in sentences(args.sentences):
        if (found := pair_of(model, path)) is not None:
            words.append(found)
        if len(words) == N_FOUND + N_HELD_OUT:
            break
    found_on, held_out = words[:N_FOUND], words[N_FOUND:]
    pairs: Any = [[each.pair for each in some] for some in (found_on, held_out)]
    metrics = [[each.metric for each in some] for some in (found_on, held_out)]

    start = clock()
    scores = find_circuit(model, pairs[0], metrics[0], "eap-ig-inputs", n_steps=N_STEPS)
    print(f"scores of {len(scores.edges)} edges on {N_FOUND} pairs: {clock() - start:.0f} s")
    for kind in ("encoder", "cross", "decoder"):
        numbers = scores.graph.of_kind(kind)
        best = numbers[scores.scores()[numbers].argsort(descending=True)[:6]].tolist()
        print(
            f"  {kind}: " + ", ".join(f"{scores.edges[i]} {scores.scores()[i]:.3f}" for i in best)
        )
    scores.plot(title="Edges from layer to layer, summed").savefig(args.out / "circuits_layers.png")

    start = clock()
    curve = faithfulness_curve(model, scores, pairs[1], metrics[1], shares=SHARES, n_random=1)
    print(f"held out, {N_HELD_OUT} pairs: {clock() - start:.0f} s")
    print(curve.to_dataframe().round(3).to_string(index=False))
    low, high = curve.interval("cpr")
    print(f"  CPR {curve.cpr():.3f} ({low:.3f} to {high:.3f}), CMD {curve.cmd():.3f}")
    curve.plot("A word in a sentence: held-out speakers").savefig(args.out / "circuits_curve.png")

    start = clock()
    first = found_on[0]
    cross = [(float(scores.values[0, i]), i) for i in scores.graph.of_kind("cross").tolist()]
    strongest = [scores.edges[i] for _, i in sorted(cross)[:5]]
    start_s, end_s = first.window_s
    windows = [(0.0, start_s), (start_s, end_s), (end_s, end_s + 1.0)]
    times = edge_times(model, first.pair, first.metric, strongest, windows)
    print(f"times of the strongest edges of {first.word!r}: {clock() - start:.0f} s")
    print(times.to_dataframe()[["edge", "time", "effect"]].round(3).to_string(index=False))
    times.plot(title=f"By the seconds that are read: {first.word!r}").savefig(
        args.out / "circuits_times.png"
    )

    start = clock()
    for share, circuit in zip(curve.shares, curve.circuits, strict=True):
        if share in (0.05, 0.2, 1.0):
            texts = circuit_transcripts(model, circuit, pairs[1][:1], max_new_tokens=20)
            print(f"  {100 * share:g} %, {len(circuit)} edges, writes {texts[0]!r}")
    print(f"transcripts: {clock() - start:.0f} s")
    clock_s = time.perf_counter() - began
    print(f"in all {clock():.0f} s of processor time, {clock_s:.0f} s by the clock")


if __name__ == "__main__":
    main()
