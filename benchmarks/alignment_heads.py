"""Heads that `find_alignment_heads` chooses on some speakers, held against OpenAI's on others.

    python -m benchmarks.alignment_heads FSDD --model tiny.en.pt --out alignment_heads.csv

FSDD   recordings of the Free Spoken Digit Dataset, `{digit}_{speaker}_{index}.wav`

Digits of one speaker are joined with pauses of 50 to 300 ms of faint noise, so that the times of
words are known. Half of the speakers choose, the other half judge, and the other way around. A
model whose release is known has OpenAI's heads to begin with.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hooked_whisper import HookedWhisper, load_audio
from hooked_whisper.data import Recording, find_alignment_heads

RATE_HZ = 16_000
WORDS = "zero one two three four five six seven eight nine".split()


def joined(folder: Path, speaker: str, rng: np.random.Generator, number: int) -> Recording:
    """Five to eight digits of one speaker, with the times of their words."""
    pieces, words = [_pause(rng)], []
    for digit in rng.integers(10, size=rng.integers(5, 9)).tolist():
        files = sorted(folder.glob(f"{digit}_{speaker}_*.wav"))
        samples = load_audio(files[rng.integers(len(files))]).numpy()
        n_before = sum(map(len, pieces))
        start_s, end_s = n_before / RATE_HZ, (n_before + len(samples)) / RATE_HZ
        words.append([start_s, end_s, WORDS[digit]])
        pieces += [samples, _pause(rng)]
    audio = torch.tensor(np.concatenate(pieces), dtype=torch.float32)
    text = " " + " ".join(word for *_, word in words)
    return Recording(f"{speaker}-{number}", (audio, RATE_HZ), {"words": words}, text)


def _pause(rng: np.random.Generator) -> Any:
    return 5e-4 * rng.standard_normal(rng.integers(RATE_HZ // 20, 3 * RATE_HZ // 10))


def auroc(scores: torch.Tensor, wanted: torch.Tensor) -> float:
    """How often a head that is wanted has a higher score than one that is not."""
    yes, no = scores[wanted], scores[~wanted]
    above = (yes[:, None] > no).double() + (yes[:, None] == no).double() / 2
    return float(above.mean())


def main() -> None:
    """Choose and judge; print a line each, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--clips", type=int, default=5, help="Of each speaker.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    speakers = sorted({path.stem.split("_")[1] for path in args.folder.glob("*_*_*.wav")})
    halves = [
        [joined(args.folder, each, rng, n) for each in part for n in range(args.clips)]
        for part in (speakers[::2], speakers[1::2])
    ]
    model = HookedWhisper.from_pretrained(args.model, device="cpu")
    official = model.alignment_heads.to_dense()
    found = [find_alignment_heads(model, half, language="en") for half in halves]
    rows = []
    for number, (chosen, judge) in enumerate(zip(found, found[::-1], strict=True)):
        model.set_alignment_heads(chosen)
        other = halves[1 - number]
        judged = find_alignment_heads(model, other, language="en").model_error_s
        rows.append(
            {
                "model": model.cfg.model_name,
                "chosen_on": " ".join(speakers[number::2]),
                "heads": " ".join(f"{layer}.{head}" for layer, head in chosen.pairs),
                "auroc_of_openais_list": round(auroc(chosen.scores, official), 3),
                "words_judged": judge.n_words,
                "error_of_chosen_ms": round(1000 * judged, 1),
                "error_of_openais_ms": round(1000 * judge.model_error_s, 1),
            }
        )
        print(rows[-1])
    if args.out is not None:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
