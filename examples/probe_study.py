"""What each layer of the digits model's encoder knows of the digit, and of who says it.

    python examples/probe_study.py DATA [--takes 5 6 7 8 9] [--out out]

DATA is the folder of the Free Spoken Digit Dataset's recordings, `{digit}_{speaker}_{take}.wav`.
Takes 5 to 9 of every digit and speaker are harvested once, and probed: the digit split by
speaker, so that a probe is judged on voices that it has never heard, and the speaker split by
recording. Written to the output folder: the store, two tables and two pictures.
"""

import argparse
import csv
from pathlib import Path

from hooked_whisper import HookedWhisper
from hooked_whisper.store import harvest, probe

HOOKS = [
    "encoder.hook_mel",  # the probes' baseline
    "encoder.hook_embed",
    "encoder.blocks.*.hook_resid_post",
    "encoder.ln_final.hook_normalized",
]


def write_manifest(data: Path, takes: list[int], path: Path) -> None:
    """The recordings of some takes, with what their names say, as CSV."""
    files = [file for file in sorted(data.glob("*.wav")) if int(file.stem.split("_")[2]) in takes]
    with path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["path", "digit", "speaker"])
        for file in files:
            writer.writerow([file.resolve(), *file.stem.split("_")[:2]])


def main() -> None:
    """Harvest, probe, and write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = "folder of the Free Spoken Digit Dataset's recordings; they do not ship with the package"
    parser.add_argument("data", type=Path, help=data)
    parser.add_argument("--takes", type=int, nargs="+", default=[5, 6, 7, 8, 9])
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    if not any(args.data.glob("*.wav")):
        parser.error(f"{args.data} holds no .wav; it has to be the {data}.")
    out = args.out / "probes"
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(args.data, args.takes, out / "recordings.csv")
    model = HookedWhisper.from_pretrained("digits")
    store = harvest(model, out / "recordings.csv", HOOKS, out / "store", progress=True)
    for label, split_by in (("digit", "speaker"), ("speaker", None)):
        found = probe(store, "encoder.*", label, split_by=split_by)
        print(found.table().round(3).to_string(index=False), "\n")
        found.table().to_csv(out / f"{label}.csv", index=False)
        found.plot().savefig(out / f"{label}.png")


if __name__ == "__main__":
    main()
