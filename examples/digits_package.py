"""Write what ships: the digits model's weights and a few recordings of the validation split."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from digits_data import (
    RATE_HZ,
    SPLITS,
    WORDS,
    Bank,
    Piece,
    Window,
    draw_window,
    load_bank,
    noise_pool,
)
from digits_model import digits_config, vocabulary
from digits_windows import make_batch
from torch import Tensor

OMITTED = "encoder.positional_embedding"
EMBEDDING = "decoder.token_embedding.weight"

# The first two keep the same times, so that a digit of one can be patched into the other.
SEQUENCES = (
    ("jackson", (3, 1, 4)),
    ("jackson", (8, 5, 2)),
    ("george", (7,)),
    ("lucas", (2, 0)),
    ("nicolas", (9, 6, 8)),
    ("theo", (1, 9, 4, 5)),
    ("yweweler", (6, 0, 3, 7, 2)),
    ("george", (5, 5, 8, 1, 0)),
)


def write_package(
    folder: Path, weights: Mapping[str, Tensor], data: Path, seed: int, sidecar: dict
) -> None:
    """Write weights, config and recordings; the card is written by `evaluate_digits.py`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, weights)
    write_config(folder, None, sidecar)
    bank = load_bank(data / "recordings", SPLITS["validation"], (1.0,))
    write_recordings(folder / "recordings", bank, seed)
    write_config(folder, alignment_heads(folder, bank, seed), sidecar)


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Half-precision tensors, and of the vocabulary only the rows that are used."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().half().contiguous() for name, value in weights.items()}
    tensors.pop(OMITTED, None)
    tensors["decoder.token_embedding.rows"] = tensors.pop(EMBEDDING)
    ids = torch.tensor(vocabulary().token_ids, dtype=torch.int32)
    tensors["decoder.token_embedding.row_ids"] = ids
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_config(folder: Path, heads: list[list[int]] | None, training: dict) -> None:
    """`config.json` of this package's own format."""
    values = {
        "format": "hooked_whisper",
        "version": 1,
        "config": digits_config().to_dict(),
        "alignment_heads": heads,
        "omitted": [OMITTED],
        "training": training,
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def lay_out(rng: np.random.Generator, bank: Bank, speaker: str, digits: tuple[int, ...]) -> Window:
    """A recording of a sequence: a digit begins every 0.9 s, after half a second."""
    pieces = []
    for number, digit in enumerate(digits):
        recordings = [r for r in bank[speaker, digit] if len(r.at_speed[0]) < 0.75 * RATE_HZ]
        recording = recordings[rng.integers(len(recordings))]
        start = int((0.5 + 0.9 * number) * RATE_HZ)
        pieces.append(Piece(recording, start, recording.at_speed[0]))
    peak = max(float(np.abs(piece.samples).max()) for piece in pieces)
    for piece in pieces:
        piece.samples = piece.samples * np.float32(0.5 / peak)
    return Window(pieces, None, (0, int((0.5 + 0.9 * len(digits)) * RATE_HZ)))


def write_recordings(folder: Path, bank: Bank, seed: int) -> None:
    """Sequences as FLAC files, and an index that says what is spoken when."""
    import soundfile

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([seed, 3])
    index = []
    for speaker, digits in SEQUENCES:
        window = lay_out(rng, bank, speaker, digits)
        n_samples = window.clip[1]
        audio = rng.standard_normal(n_samples).astype(np.float32) * np.float32(5e-4)
        for piece in window.pieces:
            audio[piece.start : piece.end] += piece.samples
        name = f"{speaker}-{'-'.join(map(str, digits))}.flac"
        soundfile.write(folder / name, audio, RATE_HZ, subtype="PCM_16")
        words = [
            {
                "digit": piece.recording.digit,
                "word": WORDS[piece.recording.digit],
                "start_s": round(piece.start / RATE_HZ, 4),
                "end_s": round(piece.end / RATE_HZ, 4),
                "source": piece.recording.file_name,
            }
            for piece in window.pieces
        ]
        entry = {"file": name, "text": window.text, "digits": list(digits), "speaker": speaker}
        index.append(entry | {"duration_s": n_samples / RATE_HZ, "words": words})
    text = json.dumps({"rate_hz": RATE_HZ, "recordings": index}, indent=1)
    (folder / "index.json").write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def alignment_heads(folder: Path, bank: Bank, seed: int, n_heads: int = 4) -> list[list[int]]:
    """The cross-attention heads that look most at the digit that they are about to write."""
    from hooked_whisper import HookedWhisper

    model = HookedWhisper.from_pretrained(folder, device="cpu")
    rng = np.random.default_rng([seed, 4])
    pool = noise_pool(rng, 4)
    share = torch.zeros(model.cfg.n_text_layers, model.cfg.n_text_heads)
    for _ in range(24):
        window = draw_window(rng, bank, pool, int(rng.integers(2, 6)), augment=False)
        mel = make_batch([window], model.cfg.n_audio_ctx, rng, augment=False).mel
        tokens = model.to_tokens(" " + window.text)
        _, cache = model.run_with_cache(
            mel, tokens, names_filter="decoder.*.cross_attn.hook_pattern"
        )
        n_prompt = tokens.shape[1] - len(window.pieces)
        for layer in range(model.cfg.n_text_layers):
            pattern = cache["decoder", layer, "pattern", "cross_attn"][0]
            for number, piece in enumerate(window.pieces):
                first, last = piece.start // 320, piece.end // 320 + 1
                looked = pattern[:, n_prompt - 1 + number, first:last].sum(-1)
                share[layer] += looked / len(window.pieces) / 24
    best = share.flatten().argsort(descending=True)[:n_heads].tolist()
    for head in best:
        layer, number = divmod(head, model.cfg.n_text_heads)
        print(f"alignment head {layer}.{number}: {share[layer, number]:.2f} on the digit")
    return sorted([*divmod(head, model.cfg.n_text_heads)] for head in best)
