"""Make the study that docs/study.md shows: the digits model on 8 shipped recordings and 40 more.

    python docs/make_study.py path/to/fsdd/recordings [--out out/study]

The 40 are sequences of 1 to 5 digits, put together from the validation split (indices 5 to 9) of
the Free Spoken Digit Dataset as the shipped ones were. Writes recordings and manifest into
OUT/recordings, the study into OUT/study, and its pictures and numbers into docs/pictures.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

SHOWN = (
    "residual_histogram",
    "encoder_patterns_2",
    "encoder_offsets",
    "encoder_widths",
    "encoder_entropy",
    "decoder_cross_attention",
    "sae_density",
)
"""Pictures that the page shows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("fsdd", type=Path, help="the folder with 0_george_5.wav and so on")
    parser.add_argument("--out", type=Path, default=Path("out/study"))
    parser.add_argument("--n", type=int, default=40, help="sequences besides the shipped ones")
    args = parser.parse_args()
    manifest = write_recordings(args.fsdd, args.out / "recordings", args.n)

    from hooked_whisper import HookedWhisper
    from hooked_whisper.digits import recordings
    from hooked_whisper.study import study

    model = HookedWhisper.from_pretrained("digits")
    found = study(model, [*recordings(), manifest], args.out / "study", overwrite=True)
    for finding in found.findings:
        print(finding)
    print(f"{found.seconds}\n{found.report}")
    for name in SHOWN:
        source = args.out / "study" / "pictures" / f"{name}.png"
        shutil.copy(source, HERE / "pictures" / f"study_{name}.png")


def write_recordings(fsdd: Path, folder: Path, n: int) -> Path:
    """Sequences as FLAC files, and a manifest with text, speaker and the times of the digits."""
    import soundfile
    from digits_data import RATE_HZ, SPEAKERS, SPLITS, WORDS, load_bank
    from digits_package import lay_out

    folder.mkdir(parents=True, exist_ok=True)
    bank = load_bank(fsdd, SPLITS["validation"], (1.0,))
    rng = np.random.default_rng(6)
    rows: list[dict[str, Any]] = []
    for number in range(n):
        speaker = SPEAKERS[number % len(SPEAKERS)]
        digits = tuple(int(each) for each in rng.integers(0, 10, 1 + number % 5))
        window = lay_out(rng, bank, speaker, digits)
        audio = rng.standard_normal(window.clip[1]).astype(np.float32) * np.float32(5e-4)
        for piece in window.pieces:
            audio[piece.start : piece.end] += piece.samples
        name = f"{number:02d}-{speaker}-{'-'.join(map(str, digits))}.flac"
        soundfile.write(folder / name, audio, RATE_HZ, subtype="PCM_16")
        times = [
            [piece.start / RATE_HZ, piece.end / RATE_HZ, WORDS[piece.recording.digit]]
            for piece in window.pieces
        ]
        rows.append({"path": name, "text": window.text, "speaker": speaker, "digit": times})
    manifest = folder / "manifest.jsonl"
    lines = (json.dumps(row) for row in rows)
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


if __name__ == "__main__":
    main()
