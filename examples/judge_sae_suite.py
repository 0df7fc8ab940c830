"""Judge a suite of autoencoders of the digits model on sequences that nothing was trained on.

    python examples/judge_sae_suite.py digits [--other build/saes_seed1] [--out out/judged]

The suite is the one that ships, or a folder with one folder for each autoencoder, as `sae.save`
writes it, each with the hook that it belongs to. Sequences are drawn as in `evaluate_digits.py`
from the validation split. Writes `judged.json` and `judged.md`: what each autoencoder gives
back and what it does to speech, layer by layer; for every digit the latent that tells it best;
and, with the suite of another seed, whether the same directions were found again. The best
latents are chosen on recordings of the training split and judged on those of the validation
split: the greatest of thousands of AUROCs would flatter itself.
"""

import argparse
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_data import RATE_HZ, SPLITS, WORDS, Bank, Window, draw_window, load_bank, noise_pool
from evaluate_digits import REPOSITORY, audio_file, draw_plain

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.selectivity import Selectivity
from hooked_whisper.digits import SpokenWord
from hooked_whisper.sae import (
    SAEEvaluation,
    decoder_stability,
    evaluate_saes,
    latents_by_speech,
    load_suite,
)
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.evaluation.speech_labels import Level

LEVELS: tuple[Level, ...] = ("frame", "word")
Told = dict[str, dict[Level, Selectivity]]
"""How well latents tell labels, by hook and by level."""


@dataclass(frozen=True)
class Sequence:
    """Somebody saying digits, as an audio file."""

    audio: tuple[np.ndarray, int]
    text: str
    speaker: str
    words: tuple[SpokenWord, ...]


def sequence_of(window: Window) -> Sequence:
    """The window's audio, up to where its clip ends, with the times of its words."""
    words = tuple(
        SpokenWord(WORDS[piece.recording.digit], piece.start / RATE_HZ, piece.end / RATE_HZ)
        for piece in window.pieces
    )
    return Sequence(
        (audio_file(window), RATE_HZ), window.text, window.pieces[0].recording.speaker, words
    )


def draw_sequences(seed: int, n_each: int, bank: Bank) -> list[Sequence]:
    """Sequences of 1 to 5 digits: `n_each` varied ones of each length, and half as many plain."""
    rng = np.random.default_rng([seed, 7])
    pool = noise_pool(np.random.default_rng([seed, 8]), 24)
    windows = []
    for n_digits in range(1, 6):
        windows += [draw_window(rng, bank, pool, n_digits, augment=False) for _ in range(n_each)]
        windows += [draw_plain(rng, bank, n_digits) for _ in range(n_each // 2)]
    return [sequence_of(window) for window in windows]


def in_order(suite: Mapping[str, SAE]) -> dict[str, SAE]:
    """A suite's autoencoders, encoder first, layer by layer."""
    return dict(sorted(suite.items(), key=lambda item: _place(item[0])))


def _place(name: str) -> tuple[Any, ...]:
    parts = name.split(".")
    return parts[0] != "encoder", [int(part) for part in parts if part.isdigit()], name


def suite_table(found: Mapping[str, SAEEvaluation], all_frames: bool) -> str:
    """The numbers per layer as Markdown, over speech (the text's tokens in the decoder) or all."""
    head = (
        "hook", "FVU", "explained variance", "L0", "dead %", "always on %", "CE recovered %",
        "KL recovered %", "sequences right %", "of the model", "WER %", "of the model",
    )  # fmt: skip
    rows = []
    for name, each in found.items():
        if all_frames and "all" not in each.extents:
            continue
        one = each.all_frames if all_frames else each.speech
        recons, recovered, scores = one.reconstruction, one.recovered, one.transcripts
        assert scores is not None
        rows.append(
            [
                f"`{name}`",
                f"{recons.fvu:.4f}",
                f"{recons.explained_variance:.4f}",
                f"{recons.l0:.1f}",
                *(f"{100 * share:.1f}" for share in (recons.dead_share, recons.always_on_share)),
                *(f"{100 * s:.2f}" for s in (recovered.ce_recovered, recovered.kl_recovered)),
                *(
                    "–" if share is None else f"{100 * share:.1f}"
                    for share in (
                        scores.sequence_accuracy,
                        scores.sequence_accuracy_model,
                        scores.wer,
                        scores.wer_model,
                    )
                ),
            ]
        )
    return markdown(head, rows)


def markdown(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tell(suite: Mapping[str, SAE], model: HookedWhisper, sequences: list[Sequence]) -> Told:
    """How well each latent of each autoencoder in the encoder tells each label, by level."""
    told = {}
    for name, sae in suite.items():
        if name.startswith("encoder"):
            latents = latents_by_speech(sae, model, sequences, name)
            told[name] = {level: latents.selectivity(level) for level in LEVELS}
    return told


def best_latents(choosing: Told, judging: Told, level: Level) -> list[dict[str, Any]]:
    """For each value of each label the best latent of any layer when choosing, and of each layer.

    The numbers are those of judging.
    """
    rows = []
    for hook_name, levels in choosing.items():
        for label in levels[level].labels.values():
            judged = judging[hook_name][level]
            for value, latent, score in label.best():
                if value in judged[label.name].values:
                    row = {"label": label.name, "value": value, "hook": hook_name}
                    row |= {"latent": latent, "auroc_when_chosen": score}
                    rows.append(row | numbers_of(judged, label.name, value, latent))
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        key = row["label"], row["value"]
        best[key] = max(best.get(key, 0.0), row["auroc_when_chosen"])
    for row in rows:
        row["best_of_all_layers"] = row["auroc_when_chosen"] == best[row["label"], row["value"]]
    order = {word: str(i) for i, word in enumerate(WORDS)}
    return sorted(rows, key=lambda row: (row["label"], order.get(row["value"], row["value"])))


def numbers_of(told: Selectivity, label: str, value: str, latent: int) -> dict[str, Any]:
    """What one latent tells of one value."""
    found = told[label]
    place = found.values.index(value)
    return {
        "auroc": float(found.auroc[latent, place]),
        "information_bits": float(found.information[latent, place]),
        "density": float(told.density[latent]),
        "n": int(found.n[place]),
    }


def latents_table(rows: list[dict[str, Any]]) -> str:
    """The best latents as Markdown."""
    head = (
        "label", "value", "hook", "latent", "AUROC", "when chosen", "information (bits)",
        "active on %", "n",
    )  # fmt: skip
    cells = [
        [
            row["label"],
            row["value"],
            f"`{row['hook']}`",
            str(row["latent"]),
            f"{row['auroc']:.4f}",
            f"{row['auroc_when_chosen']:.4f}",
            f"{row['information_bits']:.3f}",
            f"{100 * row['density']:.1f}",
            str(row["n"]),
        ]
        for row in rows
        if row["best_of_all_layers"]
    ]
    return markdown(head, cells)


def stability_of(
    suite: Mapping[str, SAE], other: Mapping[str, SAE], found: Mapping[str, SAEEvaluation]
) -> dict[str, dict[str, float]]:
    """How well the directions of each autoencoder are found again; dead latents are left out."""
    return {
        name: decoder_stability(
            sae, other[name], found[name].speech.reconstruction.density > 0
        ).to_dict()
        for name, sae in suite.items()
        if name in other
    }


def stability_table(stable: Mapping[str, Mapping[str, float]]) -> str:
    """The stability as Markdown."""
    head = ("hook", "cosine of partners", "of the nearest", "over 0.7 %", "over 0.9 %")
    keys = ("share_above_0.7", "share_above_0.9")
    return markdown(
        head,
        [
            [
                f"`{name}`",
                f"{each['mean_matched']:.3f}",
                f"{each['mean_nearest']:.3f}",
                *(f"{100 * each[key]:.1f}" for key in keys),
            ]
            for name, each in stable.items()
        ],
    )


def as_values(evaluation: SAEEvaluation) -> dict[str, Any]:
    """An evaluation for JSON; the density of single latents stays out, its histogram is in."""
    values = evaluation.to_dict()
    for extent in evaluation.extents:
        values[extent]["reconstruction"].pop("density")
    return values


def main() -> None:
    """Judge, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", help='"digits", or a folder with one folder for each autoencoder')
    parser.add_argument("--other", type=Path, help="the suite of another seed")
    parser.add_argument("--out", type=Path, default=Path("out/judged"))
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared/data/fsdd")
    parser.add_argument("--n", type=int, default=40, help="varied sequences of each length")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="speech only, no transcripts of all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    suite = in_order(load_suite(args.suite))
    other = load_suite(args.other) if args.other else {}
    model = HookedWhisper.from_pretrained(args.model, device="cpu")
    bank = load_bank(args.data / "recordings", SPLITS["validation"], (1.0,))
    sequences = draw_sequences(args.seed, args.n, bank)
    print(f"{len(suite)} autoencoders, {len(sequences)} sequences", flush=True)

    found = evaluate_saes(
        suite,
        model,
        sequences,
        all_frames=False if args.quick else None,
        max_new_tokens=16,
        batch_size=args.batch_size,
    )
    stable = stability_of(suite, other, found)
    train = load_bank(args.data / "recordings", SPLITS["train"], (1.0,))
    choosing = tell(suite, model, draw_sequences(args.seed + 1, args.n, train))
    judging = tell(suite, model, sequences)
    best = {level: best_latents(choosing, judging, level) for level in LEVELS} if judging else {}

    values = {
        "model": args.model,
        "sequences": len(sequences),
        "seed": args.seed,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "autoencoders": {name: as_values(each) for name, each in found.items()},
        "best_latents": best,
        "stability": stable,
    }
    (args.out / "judged.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    parts = [
        f"{len(sequences)} sequences of the validation split, each autoencoder spliced in alone.",
        "Frames of speech in the encoder, tokens of the text in the decoder:",
        suite_table(found, all_frames=False),
    ]
    if not args.quick:
        parts += ["All frames of the 30 s window:", suite_table(found, all_frames=True)]
    for level, rows in best.items():
        parts += [f"The latent that tells each value best, by {level}:", latents_table(rows)]
    if stable:
        parts += ["Found again with another seed:", stability_table(stable)]
    text = "\n\n".join(parts) + "\n"
    (args.out / "judged.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
