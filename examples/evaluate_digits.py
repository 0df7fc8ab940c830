"""Judge the digits model on recordings that it was not trained on, and write its model card.

    python examples/evaluate_digits.py --card

Sequences are drawn from the validation split (indices 5 to 9), rendered as audio files, and
decoded freely and greedily by `model.decode`, with timestamps and without; some also run
through `model.transcribe` with its defaults. A sequence is right when its whole text is.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from digits_data import (
    RATE_HZ,
    SAMPLES_PER_POSITION,
    SPEAKERS,
    SPLITS,
    WINDOW_SAMPLES,
    Bank,
    Piece,
    Window,
    draw_window,
    load_bank,
    noise_pool,
)
from digits_windows import render

from hooked_whisper import HookedWhisper

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "hooked_whisper/weights/digits"
BEGIN, END = "<!-- accuracy: written by examples/evaluate_digits.py -->", "<!-- end -->"


@dataclass
class Trial:
    """One audio file, what is said in it, and the groups that it counts in."""

    audio: np.ndarray
    text: str
    groups: list[str]
    heard: dict[str, str]


def audio_file(window: Window) -> np.ndarray:
    """The window's audio as a file: it ends where the clip ends."""
    n_positions = WINDOW_SAMPLES // SAMPLES_PER_POSITION
    return render(window, np.arange(n_positions))[: window.clip[1]]


def draw_plain(rng: np.random.Generator, bank: Bank, n_digits: int) -> Window:
    """Recordings as they are, joined with 0.1 to 0.5 s of digital silence."""
    speaker = SPEAKERS[rng.integers(len(SPEAKERS))]
    chosen = [bank[speaker, int(d)][rng.integers(5)] for d in rng.integers(10, size=n_digits)]
    pauses = (rng.uniform(0.1, 0.5, n_digits) * RATE_HZ).astype(int)
    length = sum(len(r.at_speed[0]) for r in chosen) + int(pauses.sum())
    at, pieces = int(rng.uniform(0, WINDOW_SAMPLES - length)), []
    for recording, pause in zip(chosen, pauses, strict=True):
        pieces.append(Piece(recording, at, recording.at_speed[0]))
        at = pieces[-1].end + int(pause)
    return Window(pieces)


def draw_trials(seed: int, n_each: int, data: Path, indices: Iterable[int]) -> list[Trial]:
    """`n_each` varied and half as many plain sequences of each length, and windows of no speech."""
    rng = np.random.default_rng([seed, 5])
    bank = load_bank(data / "recordings", indices, (1.0,))
    pool = noise_pool(np.random.default_rng([seed, 6]), 24)
    trials = []
    for n_digits in range(6):
        for number in range(n_each + n_each // 2 * (n_digits > 0)):
            if number < n_each:
                window = draw_window(rng, bank, pool, n_digits, augment=False)
            else:
                window = draw_plain(rng, bank, n_digits)
            trials.append(
                Trial(audio_file(window), window.text, groups(window, number < n_each), {})
            )
    return trials


def groups(window: Window, varied: bool) -> list[str]:
    """The rows of the table that a window counts in."""
    if not window.pieces:
        return ["no speech: noise" if window.noise else "no speech: silence"]
    first_s = window.pieces[0].start / RATE_HZ
    noise = "no noise"
    if window.noise is not None:
        rms = np.sqrt(np.mean(np.concatenate([p.samples for p in window.pieces]) ** 2))
        ratio_db = 20 * np.log10(rms / window.noise[1])
        noise = next(f"noise, under {n} dB" for n in (10, 20, 30, 100) if ratio_db < n)
        noise = noise.replace("under 100", "30 or more")
    n_digits = len(window.pieces)
    return [
        "all sequences",
        f"{n_digits} digit{'s' * (n_digits > 1)}",
        f"speaker {window.pieces[0].recording.speaker}",
        f"begins at {first_s // 5 * 5:.0f} to {first_s // 5 * 5 + 5:.0f} s",
        "varied: pauses to 5 s, loudness, noise" if varied else "plain: joined as recorded",
        noise,
    ]


@torch.no_grad()
def judge(model: HookedWhisper, trials: list[Trial], n_transcribed: int) -> None:
    """Decode every trial in each way; transcribe some of them."""
    from whisper.decoding import DecodingOptions

    every = max(1, len(trials) // n_transcribed)
    for start in range(0, len(trials), 4):
        part = trials[start : start + 4]
        mel = model.to_mel([(trial.audio, RATE_HZ) for trial in part])
        audio = model.encoder(mel.values)
        for name, without in (("without timestamps", True), ("with timestamps", False)):
            options = DecodingOptions(language="en", without_timestamps=without, fp16=False)
            for trial, result in zip(part, model.decode(audio, options), strict=True):
                trial.heard[name] = result.text
        for number, trial in enumerate(part, start):
            if number % every == 0 or not trial.text:
                trial.heard["transcribe"] = model.transcribe(trial.audio)["text"].strip()
        print(f"\r{start + len(part)}/{len(trials)}", end="", flush=True)
    print()


def accuracies(trials: list[Trial]) -> dict[str, dict[str, tuple[int, int]]]:
    """Right and all sequences by group and way of decoding."""
    table: dict = defaultdict(lambda: defaultdict(lambda: (0, 0)))
    for trial in trials:
        for group in trial.groups:
            for way, text in trial.heard.items():
                right, total = table[group][way]
                table[group][way] = (right + (text == trial.text), total + 1)
    return table


def as_markdown(table: dict) -> str:
    """The accuracies as a table, in per cent, with the number of sequences."""
    ways = ("without timestamps", "with timestamps", "transcribe")
    lines = [f"| sequences | {' | '.join(ways)} |", "| --- | --- | --- | --- |"]
    order = ("all", *"12345", "speaker", "begins", "plain", "varied", "no noise", "noise", "no sp")

    def place(group: str) -> tuple:
        kind = next(n for n, start in enumerate(order) if group.startswith(start))
        return kind, [int(word) if word.isdigit() else 0 for word in group.split()], group

    for group in sorted(table, key=place):
        cells = []
        for way in ways:
            right, total = table[group][way]
            cells.append(f"{100 * right / total:.1f} ({right} of {total})" if total else "–")
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines)


def word_timing_error_s(model: HookedWhisper, folder: Path) -> float:
    """Median distance of the shipped recordings' word starts from what word timing says."""
    errors = []
    for entry in json.loads((folder / "index.json").read_text())["recordings"]:
        result = model.transcribe(str(folder / entry["file"]), word_timestamps=True)
        words = [word for segment in result["segments"] for word in segment["words"]]
        for said, word in zip(entry["words"], words, strict=False):
            errors.append(abs(word["start"] - said["start_s"]))
    return float(np.median(errors))


def main() -> None:
    """Print the table; with --card, also write it into the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared/data/fsdd")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--indices", type=int, nargs=2, default=(5, 10), metavar=("FROM", "TO"))
    parser.add_argument("--n", type=int, default=120, help="varied sequences of each length")
    parser.add_argument("--transcribe", type=int, default=150, help="sequences to transcribe too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--card", action="store_true", help="write the table into the model card")
    parser.add_argument("--errors", type=Path, help="write the mistakes here")
    args = parser.parse_args()
    assert SPLITS["validation"] == range(5, 10)
    model = HookedWhisper.from_pretrained(args.model, device="cpu")
    trials = draw_trials(args.seed, args.n, args.data, range(*args.indices))
    judge(model, trials, args.transcribe)
    text = as_markdown(accuracies(trials))
    if args.model == "digits":
        timing_s = word_timing_error_s(model, PACKAGE / "recordings")
        text += f"\n\nWord starts on the shipped recordings: median error {timing_s:.2f} s."
    print(text)
    if args.errors:
        wrong = [(t.text, t.heard, t.groups) for t in trials if set(t.heard.values()) != {t.text}]
        args.errors.write_text("\n".join(map(str, wrong)))
    if args.card:
        card = PACKAGE / "MODEL_CARD.md"
        before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        card.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
