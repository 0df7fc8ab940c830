"""Train the digits model that ships with hooked_whisper: one command, the same from one seed.

    python examples/train_digits.py --seed 0

Three stages: thousands of steps on thinned windows (see `digits_data`), some on windows with
a third of their background, and a last hundred on whole windows. Two worker processes with
one thread each share every batch, because on a busy machine that is far faster than one
process with two threads; the result does not depend on the number of workers. It does depend
on the versions of torch and numpy and on the processor, whose matrix products may sum in
another order. Interrupted runs go on from the last checkpoint with `--resume`.
"""

import argparse
import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from digits_data import N_POSITIONS, SPLITS, Bank, Window, draw_window, load_bank, noise_pool
from digits_model import (
    IGNORE,
    N_PROMPT,
    SECOND_SHARE,
    ThinForward,
    digits_config,
    make_targets,
    vocabulary,
)
from digits_muon import Muon
from digits_package import write_package
from digits_windows import Batch, active_positions, make_batch
from torch import Tensor

from hooked_whisper import HookedWhisper

REPOSITORY = Path(__file__).resolve().parent.parent
N_SHARDS = 2
"""Parts of a batch; each is drawn from its own seed and computed by one worker."""
ROUND = 8
"""Steps whose windows are drawn together, so that each batch holds windows of one length."""


@dataclass(frozen=True)
class Stage:
    """Some steps with windows of one kind; `peak` and `last` are shares of the learning rates."""

    steps: int
    horizon: int
    """Steps in which the rates would reach `last`."""
    shard_size: int
    background: tuple[int, int]
    """Background positions to keep, at least and at most."""
    peak: float
    last: float
    warmup: int
    dropout: float
    alignment: float
    """Weight of the loss that tells the decoder where to look."""
    speakers: tuple[float, ...] | None = None
    """How often each of the speakers is drawn; None is alike."""


HARD_SPEAKERS = (0.12, 0.12, 0.12, 0.36, 0.16, 0.12)
"""Nicolas, whose recordings are the shortest, made nearly all mistakes of the first cycle."""

STAGES = (
    Stage(2500, 3000, 16, (16, 56), 1.0, 0.08, 80, 0.05, 0.0),
    Stage(1404, 1404, 16, (16, 72), 0.6, 0.03, 40, 0.05, 0.3),
    Stage(72, 72, 3, (N_POSITIONS, N_POSITIONS), 0.08, 0.001, 0, 0.0, 0.0),
    Stage(1200, 1200, 16, (16, 72), 0.35, 0.02, 16, 0.05, 0.1, HARD_SPEAKERS),
    Stage(72, 72, 3, (N_POSITIONS, N_POSITIONS), 0.04, 0.001, 0, 0.0, 0.0, HARD_SPEAKERS),
)
ADAM_RATE, MUON_RATE = 3e-3, 0.02


def find_stage(step: int) -> tuple[Stage, int]:
    """The stage of a step, and the step's number inside it."""
    for stage in STAGES:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    raise ValueError("past the last step")


def rate_share(step: int) -> float:
    """How much of the learning rates to use: a linear warm-up, then a cosine."""
    stage, step = find_stage(step)
    if step < stage.warmup:
        return stage.peak * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.horizon - stage.warmup)
    return stage.last + (stage.peak - stage.last) * 0.5 * (1 + float(np.cos(np.pi * done)))


def max_digits(step: int) -> int:
    """Short sequences come first: they are cheap, and enough to learn the words from."""
    return next((n for n, end in ((1, 160), (2, 400), (3, 720)) if step < end), 5)


def draw_round(seed: int, first_step: int, shard: int, bank: Bank, pool: list) -> list:
    """One shard's windows for the steps of a round, by similar length."""
    stage, _ = find_stage(first_step)
    rng = np.random.default_rng([seed, first_step, shard])
    chances = np.array([0.07, 0.15, 0.16, 0.18, 0.21, 0.23])
    chances[max_digits(first_step) + 1 :] = 0
    chances /= chances.sum()
    counts = rng.choice(6, stage.shard_size * ROUND, p=chances)
    speakers = stage.speakers
    windows = [draw_window(rng, bank, pool, int(n), speaker_chances=speakers) for n in counts]
    windows.sort(key=lambda window: int(active_positions(window).sum()))
    size = stage.shard_size
    batches = [windows[n : n + size] for n in range(0, len(windows), size)]
    order = np.random.default_rng([seed, first_step]).permutation(ROUND)
    return [batches[n] for n in order]


def shard_losses(
    forward: ThinForward,
    head: Tensor,
    windows: list[Window],
    batch: Batch,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the transcripts, of the digit at each position, and of where the decoder looks."""
    timestamps = (rng.random(len(windows)) < 0.5).tolist()
    translate = (rng.random(len(windows)) < 0.1).tolist()
    targets = make_targets(windows, timestamps, translate)
    audio = forward.encode(batch.mel, batch.positions, batch.log_weights)
    logits = forward.decode(targets.tokens, audio, batch.log_weights).flatten(0, 1)
    first = F.cross_entropy(logits, targets.first.flatten(), ignore_index=IGNORE)
    second = F.cross_entropy(logits, targets.second.flatten(), ignore_index=IGNORE)
    local = F.cross_entropy((audio @ head.T).flatten(0, 1), batch.position_digits.flatten())
    text = (1 - SECOND_SHARE) * first + SECOND_SHARE * second
    if not forward.keep_pattern:
        return text, local, text.new_zeros(())
    return text, local, alignment_loss(forward.pattern, batch.position_ordinals)


def alignment_loss(pattern: Tensor | None, ordinals: Tensor) -> Tensor:
    """How little of the attention that writes a digit falls on it, as a mean surprise in nats."""
    assert pattern is not None
    n_digits = int(ordinals.max()) + 1
    if n_digits == 0:
        return pattern.new_zeros(())
    spoken = ordinals[:, None] == torch.arange(n_digits)[:, None]
    writing = pattern.mean(1)[:, N_PROMPT - 1 : N_PROMPT - 1 + n_digits]
    looked = (writing * spoken).sum(-1)[spoken.any(-1)]
    return -looked.clamp(min=1e-6).log().mean()


def initialise(parameters: dict[str, torch.nn.Parameter], seed: int) -> None:
    """Set every parameter from the seed: normal weights by fan-in, outputs scaled by depth.

    The encoder's keys begin as its queries. Then a position attends to those that are like it,
    which for sinusoids are its neighbours, and locality need not be found first.

    Source: Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers".
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters.items()):
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln" in name:
                parameter.fill_(1.0)
            else:
                fan_in = parameter[0].numel()
                std = fan_in**-0.5
                if name.endswith(("out.weight", "fc_out.weight")):
                    std /= 8**0.5
                elif "embedding" in name:
                    std = 0.05
                parameter.normal_(0, std, generator=generator)
    for name, parameter in parameters.items():
        if name.startswith("encoder") and name.endswith("key.weight"):
            with torch.no_grad():
                parameter.copy_(parameters[name.replace("key", "query")])


@torch.no_grad()
def evaluate(
    forward: ThinForward, windows: list[Window], n_background: int, size: int
) -> tuple[float, float]:
    """Shares of windows transcribed without an error in free greedy decoding.

    Without timestamps, and with them.
    """
    v, rng = vocabulary(), np.random.default_rng(0)
    windows = sorted(windows, key=lambda window: int(active_positions(window).sum()))
    right = [0, 0]
    for start in range(0, len(windows), size):
        part = windows[start : start + size]
        n_active = max(int(active_positions(window).sum()) for window in part)
        batch = make_batch(part, min(N_POSITIONS, n_active + n_background), rng, augment=False)
        audio = forward.encode(batch.mel, batch.positions, batch.log_weights)
        for timed, last in enumerate((v.no_timestamps, v.first_timestamp)):
            tokens = torch.tensor([[v.sot, v.english, v.transcribe, last]] * len(part))
            for _ in range(9):
                logits = forward.decode(tokens, audio, batch.log_weights)[:, -1]
                tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
            for window, row in zip(part, tokens[:, 4:].tolist(), strict=True):
                said = row[: row.index(v.eot)] if v.eot in row else row
                right[timed] += v.to_string([min(r, v.n_rows) for r in said]) == window.text
    return right[0] / len(windows), right[1] / len(windows)


class Trainer:
    """One worker's copy of the weights, the optimizer and the data."""

    def __init__(self, args: argparse.Namespace, rank: int) -> None:
        self.args, self.rank = args, rank
        parameters, positions = build_model(args.seed)
        n_rows = len(vocabulary().digits) + 1
        self.head = torch.nn.Parameter(torch.zeros(n_rows, positions.shape[1]))
        self.parameters = parameters | {"position_head": self.head}
        self.forward = ThinForward(parameters, positions, 4, 6)
        values = list(self.parameters.values())
        self.gradient = torch.zeros(sum(p.numel() for p in values))
        at = 0
        for p in values:
            p.grad = self.gradient[at : at + p.numel()].view_as(p)
            at += p.numel()
        blocks = [p for name, p in self.parameters.items() if ".blocks." in name and p.ndim == 2]
        self.muon = Muon(blocks, args.workers, rank)
        rest = [p for p in values if not any(p is matrix for matrix in blocks)]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.step = 0
        recordings = args.data / "recordings"
        self.bank = load_bank(recordings, SPLITS["train"])
        self.pool = noise_pool(np.random.default_rng([args.seed, 1]))
        if rank == 0:
            bank = load_bank(recordings, SPLITS["validation"], (1.0,))
            rng = np.random.default_rng([args.seed, 2])
            self.validation = [draw_window(rng, bank, self.pool, n % 6, False) for n in range(144)]
        self.rounds: dict[int, list] = {}

    def shard_step(self, shard: int) -> tuple[float, float]:
        """Add one shard's gradient."""
        within = self.step % ROUND
        if within == 0 or shard not in self.rounds:
            first_step = self.step - within
            self.rounds[shard] = draw_round(self.args.seed, first_step, shard, self.bank, self.pool)
        windows = self.rounds[shard][within]
        stage, _ = find_stage(self.step)
        shared = np.random.default_rng([self.args.seed, self.step, 99])
        background = int(shared.integers(stage.background[0], stage.background[1] + 1))
        rng = np.random.default_rng([self.args.seed, self.step, shard, 7])
        torch.manual_seed(int(rng.integers(2**31)))
        n_active = max(int(active_positions(window).sum()) for window in windows)
        batch = make_batch(windows, min(N_POSITIONS, n_active + background), rng)
        self.forward.dropout = stage.dropout
        self.forward.keep_pattern = stage.alignment > 0
        text, local, aligned = shard_losses(self.forward, self.head, windows, batch, rng)
        share = 1.0 - 0.9 * min(1.0, self.step / STAGES[0].horizon)
        ((text + share * local + stage.alignment * aligned) / N_SHARDS).backward()
        self.forward.dropout, self.forward.keep_pattern = 0.0, False
        return text.item(), local.item()

    def train_step(self) -> tuple[float, float]:
        """One step of all workers; the losses of this worker's last shard."""
        self.gradient.zero_()
        for shard in range(self.rank, N_SHARDS, self.args.workers):
            losses = self.shard_step(shard)
        if self.args.workers > 1:
            dist.all_reduce(self.gradient)
        self.gradient *= (1.0 / self.gradient.norm()).clamp(max=1.0)
        share = rate_share(self.step)
        self.adam.param_groups[0]["lr"] = ADAM_RATE * share
        self.adam.step()
        self.muon.step(MUON_RATE * share)
        self.step += 1
        return losses

    def save(self) -> None:
        """Write a checkpoint aside, then put it in place."""
        path = self.args.work / "checkpoint.pt"
        state = {
            "weights": {name: p.detach() for name, p in self.parameters.items()},
            "adam": self.adam.state_dict(),
            "muon": self.muon.momenta,
            "step": self.step,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self) -> None:
        """Go on from the last checkpoint."""
        state = torch.load(self.args.work / "checkpoint.pt", weights_only=True)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(state["weights"][name])
        self.adam.load_state_dict(state["adam"])
        self.muon.momenta = state["muon"]
        self.step = state["step"]


def build_model(seed: int) -> tuple[dict[str, torch.nn.Parameter], Tensor]:
    """A HookedWhisper's parameters by name, set from the seed, and its audio positions."""
    model = HookedWhisper(digits_config(vocabulary().n_rows))
    parameters = dict(model.named_parameters())
    initialise(parameters, seed)
    return parameters, model.encoder.positional_embedding


def work(rank: int, args: argparse.Namespace) -> None:
    """What one worker process does."""
    keep_freed_memory()
    torch.set_num_threads(1)
    if args.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{args.work}/meet", rank=rank, world_size=args.workers
        )
    trainer = Trainer(args, rank)
    if args.resume:
        trainer.load()
    total = min(args.stop or 10**9, sum(stage.steps for stage in STAGES))
    started, first, losses = time.time(), trainer.step, np.zeros(2)
    while trainer.step < total:
        losses += (np.array(trainer.train_step()) - losses) * 0.02
        done = trainer.step
        if rank:
            continue
        if done % 50 == 0 or done == total:
            show_progress(done, total, losses, (time.time() - started) / (done - first))
        if done % 500 == 0 or done == total:
            trainer.save()
            thin = evaluate(trainer.forward, trainer.validation, 64, 24)
            whole = evaluate(trainer.forward, trainer.validation[::4], N_POSITIONS, 4)
            print(f"\nstep {done}: right {thin} of thinned windows, {whole} of whole ones")
    if args.workers > 1:
        dist.barrier()
    if rank == 0 and trainer.step == sum(stage.steps for stage in STAGES):
        weights = {name: p for name, p in trainer.parameters.items() if name != "position_head"}
        training = {"seed": args.seed, "steps": trainer.step, "torch": torch.__version__}
        write_package(args.out, weights, args.data, args.seed, training)
        print(f"wrote {args.out}; now run examples/evaluate_digits.py for the model card")


def show_progress(done: int, total: int, losses: np.ndarray, step_s: float) -> None:
    """One line that says how far, how well and how long yet."""
    bar = "#" * (30 * done // total)
    left_min = (total - done) * step_s / 60
    print(
        f"\r[{bar:<30}] {done}/{total}  loss {losses[0]:.4f}  position loss {losses[1]:.4f}  "
        f"{step_s:.2f} s/step  {left_min:.0f} min left ",
        end="",
        flush=True,
    )


def keep_freed_memory() -> None:
    """Let the C library reuse large blocks: fresh pages for each would cost a third of the time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, 2**31 - 1)
    except (OSError, AttributeError):
        pass  # another C library: only slower


def main() -> None:
    """Train, and write the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared/data/fsdd")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "hooked_whisper/weights/digits")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build/digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(N_SHARDS, os.cpu_count() or 1))
    parser.add_argument("--stop", type=int, default=0, help="stop after this many steps")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "meet").unlink(missing_ok=True)
    if args.workers == 1:
        work(0, args)
    else:
        torch.multiprocessing.spawn(work, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
