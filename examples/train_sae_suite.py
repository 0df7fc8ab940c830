"""Train the digits model's suite of sparse autoencoders: one for every layer's residual stream.

    python examples/train_sae_suite.py --out build/saes

Windows of spoken digits are drawn from the training split as for the model itself, and one
pass over each gives the activations of all eight sites: the encoder's at frames inside the
audio file, the decoder's at the tokens of several texts (what is said, without and with
timestamps, and other digits, because a text has few tokens). They are kept in one file, whose
name tells everything that made them. Then the autoencoders of each stack learn in one pass
over it, in a process of their own, and are saved in SAELens's format with a table of how
they do on the validation split. Interrupted runs go on with `--resume`; `--package` also
writes, in half precision, what `load_suite("digits")` loads.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_data import (
    N_POSITIONS,
    RATE_HZ,
    SPLITS,
    WORDS,
    Bank,
    Window,
    draw_window,
    load_bank,
    noise_pool,
)
from digits_windows import render
from safetensors.torch import load_file, save_file
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.sae import MemoryActivations, TrainingConfig, train_saes
from hooked_whisper.sae.architectures.batch_topk import BatchTopKConfig
from hooked_whisper.sae.architectures.topk import TopKConfig
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.io.load import SHIPPED, load_suite
from hooked_whisper.speech.mel import Mel

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = {"topk": TopKConfig, "batchtopk": BatchTopKConfig}
STACKS = ("encoder", "decoder")
SHARD = 8
"""Windows that are drawn from one seed; what comes out does not depend on the workers."""


# Activations


class Harvester:
    """One worker's model and recordings."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        self.args = args
        self.model = HookedWhisper.from_pretrained(args.model)
        self.pool = noise_pool(np.random.default_rng([args.data_seed, 1]))
        self.banks: dict[str, Bank] = {}

    def windows(self, split: str, rng: np.random.Generator) -> list[Window]:
        """A shard's windows: as in the model's training, but for windows without speech."""
        if split not in self.banks:
            self.banks[split] = load_bank(self.args.data / "recordings", SPLITS[split])
        return [draw_window(rng, self.banks[split], self.pool) for _ in range(SHARD)]

    def mel(self, windows: list[Window]) -> Mel:
        """Their audio files as the model hears them, padded with silence or zeros."""
        everything = np.arange(N_POSITIONS)
        audio = [(render(w, everything)[: max(w.clip[1], 1600)], RATE_HZ) for w in windows]
        mel = self.model.to_mel(audio)
        for row, window in enumerate(windows):
            if window.zero_mel_after_clip:
                mel.values[row, :, mel.n_frames[row] :] = 0.0
        return mel

    def texts(self, window: Window, rng: np.random.Generator) -> list[Tensor]:
        """Token rows for one window: what is said, twice, and other digits."""
        said = "".join(f" {WORDS[digit]}" for digit in window.digits)
        end_s = min(30.0, np.ceil(window.end_s / 0.2) * 0.2)
        timed = f"<|0.00|>{said}<|{end_s:.2f}|>" if said else "<|0.00|>"
        rows = [self.model.to_tokens(said), self.model.to_tokens(timed, timestamps=True)]
        for _ in range(self.args.other_texts):
            digits = rng.integers(10, size=rng.integers(1, 6))
            rows.append(self.model.to_tokens("".join(f" {WORDS[digit]}" for digit in digits)))
        return rows

    @torch.no_grad()
    def __call__(self, split: str, shard: int) -> dict[str, Tensor]:
        """The activations of a shard's windows, by hook, in float16."""
        rng = np.random.default_rng([self.args.data_seed, 21, list(SPLITS).index(split), shard])
        windows, model = self.windows(split, rng), self.model
        mel, sites = self.mel(windows), site_names(model)
        output = "encoder.ln_final.hook_normalized"
        _, cache = model.run_with_cache(mel, names_filter=[*sites["encoder"], output])
        chosen = [
            torch.from_numpy(rng.permutation(n)[: self.args.frames_per_window])
            for n in mel.n_positions.tolist()
        ]
        found = {
            name: torch.cat([cache[name][row, at] for row, at in enumerate(chosen)])
            for name in sites["encoder"]
        }
        rows = [row for window in windows for row in self.texts(window, rng)]
        lengths = torch.tensor([row.shape[1] for row in rows])
        width = int(lengths.max())
        tokens = torch.cat([torch.nn.functional.pad(r, (0, width - r.shape[1])) for r in rows])
        _, cache = model.run_with_cache(
            None, tokens, encoder_output=cache[output], names_filter=sites["decoder"]
        )
        is_text = torch.arange(width) < lengths[:, None]
        found |= {name: cache[name][is_text] for name in sites["decoder"]}
        return {name: value.half() for name, value in found.items()}


def site_names(model: HookedWhisper) -> dict[str, list[str]]:
    """The residual stream behind every block, by stack."""
    return {stack: model.hook_names(f"{stack}.blocks.*.hook_resid_post") for stack in STACKS}


_harvester: Any = None


def _start(args: argparse.Namespace) -> None:
    global _harvester
    _harvester = Harvester(args)


def _harvest(task: tuple[str, int]) -> dict[str, Tensor]:
    # As numpy's arrays: tensors would be passed on by files that a busy system may run out of.
    return {name: value.numpy() for name, value in _harvester(*task).items()}


def harvest(args: argparse.Namespace, split: str, n_windows: int) -> Path:
    """The file of a split's activations, made where it is missing."""
    made_by = {name: str(getattr(args, name)) for name in ("model", "frames_per_window")}
    made_by |= {"seed": str(args.data_seed), "other_texts": str(args.other_texts)}
    made_by |= {"split": split, "windows": str(n_windows)}
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
    path = args.work / f"activations-{split}-{n_windows}-{digest}.safetensors"
    if path.exists():
        return path
    shards = -(-n_windows // SHARD)
    parts: list[dict[str, np.ndarray]] = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.workers, _start, (args,)) as pool:
        for part in pool.imap(_harvest, [(split, shard) for shard in range(shards)]):
            parts.append(part)
            print(f"\r{split}: {len(parts) * SHARD}/{n_windows} windows", end="", flush=True)
    print()
    joined = {name: torch.from_numpy(np.concatenate([p[name] for p in parts])) for name in parts[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(joined, path.with_suffix(".part"), metadata=made_by)
    os.replace(path.with_suffix(".part"), path)
    return path


# Autoencoders


def configs(args: argparse.Namespace, sites: list[str], width: int) -> dict[str, TrainingConfig]:
    """How each site's autoencoder is trained."""
    make = CONFIGS[args.architecture]
    found = {}
    for name in sites:
        metadata = {
            "model_name": args.model,
            "dataset": "Free Spoken Digit Dataset, training split",
        }
        sae = make(d_in=width, d_sae=args.latents, hook_name=name, k=args.k, metadata=metadata)
        found[name] = TrainingConfig(
            sae,
            n_vectors=args.vectors,
            batch_size=args.batch_size,
            lr=args.lr,
            dead_after_vectors=args.dead_after,
            seed=args.seed,
            folder=args.out / name,
            checkpoint_every=200,
            log_every=200,
        )
    return found


def train(args: argparse.Namespace, stack: str, train_path: Path, check_path: Path) -> list[str]:
    """Train the autoencoders of one stack; a line of the table for each."""
    torch.set_num_threads(max(1, args.threads // len(STACKS)))
    tensors = {name: x for name, x in load_file(train_path).items() if name.startswith(stack)}
    fresh = load_file(check_path)
    width = next(iter(tensors.values())).shape[1]

    def report(line: dict[str, Any]) -> None:
        numbers = " ".join(f"{key} {line[key]:.4g}" for key in ("fvu", "l0", "never_active"))
        print(f"{line['sae']} step {line['step']}: {numbers}", flush=True)

    saes = train_saes(
        configs(args, sorted(tensors), width),
        MemoryActivations(tensors),
        seed=args.seed,
        resume=args.resume,
        progress=False,
        on_log=report,
    )
    return [judge(name, sae, tensors[name], fresh[name].float()) for name, sae in saes.items()]


@torch.no_grad()
def judge(name: str, sae: SAE, trained: Tensor, fresh: Tensor) -> str:
    """A line of the table: never active on what it learned from; how it does on other vectors."""
    used = sae.inference()
    active = [(used.encode(part.float()) > 0).any(dim=0) for part in trained.split(8192)]
    dead = 1 - torch.stack(active).any(dim=0).float().mean()
    latents = torch.cat([used.encode(part) for part in fresh.split(8192)])
    recons = torch.cat([used.decode(part) for part in latents.split(8192)])
    fvu = (recons - fresh).square().sum() / (fresh - fresh.mean(dim=0)).square().sum()
    l0 = (latents > 0).sum(dim=1).float().mean()
    unused = 1 - (latents > 0).any(dim=0).float().mean()
    sizes = f"{len(trained):>9,} {dead:>7.1%} {len(fresh):>8,}"
    return f"{name:<34} {sizes} {fvu:>8.4f} {l0:>6.1f} {unused:>8.1%}"


def _train(task: tuple[argparse.Namespace, str, Path, Path]) -> list[str]:
    return train(*task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared/data/fsdd")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/saes")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build/sae_activations")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--architecture", choices=CONFIGS, default="topk")
    parser.add_argument("--latents", type=int, default=768)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--windows", type=int, default=1600, help="30 s windows to learn from")
    parser.add_argument("--check-windows", type=int, default=64, help="and to judge with")
    parser.add_argument("--frames-per-window", type=int, default=600)
    parser.add_argument("--other-texts", type=int, default=3, help="wrong texts for each window")
    parser.add_argument("--vectors", type=int, default=2_000_000, help="to train each one on")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--dead-after", type=int, default=400_000, help="vectors")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order")
    parser.add_argument("--data-seed", type=int, default=0, help="of the recordings")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--package", action="store_true", help="also write what the package ships")
    args = parser.parse_args()
    paths = harvest(args, "train", args.windows), harvest(args, "validation", args.check_windows)
    if args.resume:
        for stack_sites in site_names(HookedWhisper.from_pretrained(args.model)).values():
            for name in stack_sites:
                (args.out / name).mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(min(args.workers, len(STACKS))) as pool:
        tables = pool.map(_train, [(args, stack, *paths) for stack in STACKS], chunksize=1)
    sizes = f"{'trained':>9} {'dead':>7} {'judged':>8}"
    head = f"{'site':<34} {sizes} {'FVU':>8} {'L0':>6} {'unused':>8}"
    lines = [head, *(line for table in tables for line in table)]
    (args.out / "table.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    if args.package:
        for name, sae in load_suite(args.out).items():
            sae.half().save(SHIPPED["digits"] / name)


if __name__ == "__main__":
    main()
