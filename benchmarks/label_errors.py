"""How far the times of `align_words` and `align_phones` are from alignments that are given.

    python -m benchmarks.label_errors SPEECH --model tiny.en.pt --out label_errors.csv

SPEECH/synthetic   manifest.csv (file, transcript) and a csv a clip (start, end, label, tier) by a
                   synthesiser that knows its times; phones in IPA
SPEECH/aligned     manifest.csv (csv, audio, transcript, method) and the published csv files

Words and phones are paired by the order that costs the fewest edits; what has no partner is counted
and left out. Alignments that PocketSphinx itself made are left out.
"""

import argparse
import csv
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hooked_whisper import HookedWhisper
from hooked_whisper.data import Recording, align_phones, align_words
from hooked_whisper.speech.alignment_files import read_alignment
from hooked_whisper.speech.phones import MANNER, plain_phone

IPA = dict(
    pair.split(":")
    for pair in (
        "aʊ:AW ɚ:ER t:T iː:IY n:N ɪ:IH d:D ə:AH ð:DH s:S b:B ɹ:R k:K eɪ:EY m:M v:V l:L f:F ɛ:EH "
        "h:HH ʌ:AH z:Z w:W p:P ɐ:AH oʊ:OW ɔː:AO æ:AE tʃ:CH dʒ:JH ɑː:AA aɪ:AY ɒ:AA ɡ:G əʊ:OW ʃ:SH "
        "r:R oː:AO i:IY e:EH ᵻ:IH ɜː:ER ɜ:ER ɾ:T ɑːɹ:AA uː:UW o:OW eː:EY eə:EH ŋ:NG θ:TH ʊ:UH j:Y "
        "ɔːɹ:AO ɔɪ:OY œ:AA"
    ).split()
)
"""espeak-ng's phones, and those of a published alignment, as the nearest of the dictionary's."""
REDUCED = {"AX": "AH", "IX": "IH", "EL": "L", "DX": "T", "EN": "N", "AXR": "ER", "UX": "UW"}

Rows = Sequence[Sequence[Any]]


def same_word(value: str) -> str:
    """A word as both sides write it."""
    return value.lower().strip(".,?!;:")


def same_phone(value: str) -> str:
    """A phone as both sides write it."""
    phone = plain_phone(IPA.get(value, value))
    return REDUCED.get(phone, phone)


def price(a: str, b: str) -> float:
    """What it costs to take one phone for another: less for two vowels or two consonants."""
    if a == b:
        return 0.0
    alike = a in MANNER and b in MANNER and (MANNER[a] == "vowel") == (MANNER[b] == "vowel")
    return 0.5 if alike else 2.0


def pairs(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """The places that belong together, by the fewest edits (Needleman and Wunsch 1970)."""
    cost = np.zeros((len(a) + 1, len(b) + 1))
    cost[:, 0], cost[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            both = cost[i - 1, j - 1] + price(a[i - 1], b[j - 1])
            cost[i, j] = min(both, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    i, j, found = len(a), len(b), []
    while i and j:
        if cost[i, j] == cost[i - 1, j - 1] + price(a[i - 1], b[j - 1]):
            i, j = i - 1, j - 1
            found.append((i, j))
        elif cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def errors(true: Rows, found: Rows, same: Callable[[str], str]) -> list[tuple[float, float]]:
    """Seconds by which starts and ends are late."""
    places = pairs([same(each[2]) for each in true], [same(each[2]) for each in found])
    return [(found[j][0] - true[i][0], found[j][1] - true[i][1]) for i, j in places]


def references(speech: Path) -> dict[str, list[tuple[Recording, dict[str, Any]]]]:
    """Recordings by where their times are from, each with these."""
    found: dict[str, list[tuple[Recording, dict[str, Any]]]] = defaultdict(list)
    with (speech / "synthetic" / "manifest.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            path = speech / "synthetic" / row["file"]
            tiers = read_alignment(path.with_suffix(".csv"))[path.stem]
            recording = Recording(path.name, str(path), {}, row["transcript"])
            found["espeak-ng, exact"].append((recording, tiers))
    with (speech / "aligned" / "manifest.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["csv"].startswith("published") or "pocketsphinx" in row["method"]:
                continue
            path = speech / "aligned" / row["audio"]
            tiers = read_alignment(speech / "aligned" / row["csv"])[Path(row["csv"]).stem]
            recording = Recording(path.name, str(path), {}, row["transcript"])
            found[f"{row['source'].split(',')[0]}, published"].append((recording, tiers))
    return found


def main() -> None:
    """Print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = HookedWhisper.from_pretrained(options.model, device="cpu")
    warnings.simplefilter("ignore")
    makers = {
        "align_words": lambda some: align_words(model, some, progress=False),
        "align_phones": lambda some: align_phones(some, progress=False),
    }
    rows = []
    for source, known in references(options.speech).items():
        for maker, label in makers.items():
            labelled = label([recording for recording, _ in known])
            for tier, same in (("word", same_word), ("phone", same_phone)):
                late, n_true = [], 0
                for made, (_, tiers) in zip(labelled, known, strict=True):
                    if tier in tiers and tier in made.labels:
                        late += errors(tiers[tier], made.labels[tier], same)
                        n_true += len(tiers[tier])
                for boundary, number in (("start", 0), ("end", 1)):
                    if late:
                        ms = 1000 * np.array([each[number] for each in late])
                        rows.append(
                            {
                                "times from": source,
                                "by": maker,
                                "tier": tier,
                                "boundary": boundary,
                                "n": len(ms),
                                "without partner": n_true - len(ms),
                                "median error (ms)": round(float(np.median(abs(ms)))),
                                "90 % (ms)": round(float(np.quantile(abs(ms), 0.9))),
                                "median lateness (ms)": round(float(np.median(ms))),
                            }
                        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if options.out:
        table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
