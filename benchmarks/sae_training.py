"""Measure training steps of sparse autoencoders against sae-lens's own trainer.

python -m benchmarks.sae_training --sae-lens .venv-tl3   # writes benchmarks/results/<date>-sae-...
python -m benchmarks.sae_training --sae-lens .venv-tl3 --only topk --rounds 3
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.run import cpu_model
from benchmarks.sae_data import Activations
from benchmarks.timing import MOST_STOLEN, quartiles, stolen_s
from hooked_whisper.sae.architectures import config_from_dict
from hooked_whisper.sae.base import SAEConfig
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = ("topk", "batchtopk", "standard")
TARGET = 1.5
"""How many times sae-lens's steps a second are wanted."""

HELD_OUT = (1_000_000, 1_000_001)
"""Numbers of the batches that nobody trains on."""


def main() -> None:
    """Run what the command line asks for, and write it down."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    load = f"{os.getloadavg()[0]:.1f}"
    results = [_measure(architecture, args) for architecture in args.only]
    result = {
        "title": "Training steps of sparse autoencoders, CPU, float32",
        "conditions": {
            "date": datetime.date.today().isoformat(),
            "CPU": cpu_model(),
            "cores": os.cpu_count(),
            "threads": f"{args.threads} for each",
            "d_in, latents, k, batch": f"{args.d_in}, {args.d_sae}, {args.k}, {args.batch_size}",
            "L1 coefficient of ReLU": args.l1,
            "learning rate": f"{args.lr}, constant",
            "data": "benchmarks/sae_data.py, seed 0, the same for both",
            "rounds": f"{args.rounds} of {args.steps} steps each, after one to warm up",
            "other processes' load before timing": load,
        },
        "versions": {
            "torch": version("torch"),
            "sae-lens": results[0]["sae_lens"],
            "python": platform.python_version(),
        },
        "architectures": results,
    }
    RESULTS.mkdir(exist_ok=True)
    page = _to_markdown(result)
    (RESULTS / f"{args.label}.md").write_text(page)
    (RESULTS / f"{args.label}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(page)


class _Peer:
    """sae-lens's trainer in a process of its own."""

    def __init__(self, args: argparse.Namespace) -> None:
        root = Path(__file__).parents[1]
        path = os.pathsep.join([str(args.sae_lens.resolve()), str(root)])
        self.process = subprocess.Popen(
            [args.python, "-m", "benchmarks.sae_lens_peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(args.threads)},
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Its answer to an order."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("sae-lens's process ended; its own message stands above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class _Ours:
    """This package's trainer."""

    def __init__(self, cfg: SAEConfig, args: argparse.Namespace) -> None:
        self.data, self.batch_size, self.number = Activations(args.d_in), args.batch_size, 0
        self.trainer = Trainer(
            TrainingConfig(
                sae=cfg,
                n_steps=args.n_steps,
                batch_size=args.batch_size,
                lr=args.lr,
                lr_warm_up=0,
                lr_decay=0,
                sparsity_warm_up=0,
                dead_after_vectors=1000 * args.batch_size,  # sae-lens's window
                normalize=False,
                seed=0,
            )
        )

    def steps(self, n: int) -> list[float]:
        """Some training steps, each timed without the making of its batch."""
        seconds = []
        for _ in range(n):
            batch = self.data.batch(self.number, self.batch_size)
            start = time.perf_counter()
            self.trainer.batches.add(self.number, batch)
            self.trainer.do_step()
            seconds.append(time.perf_counter() - start)
            self.number += 1
        return seconds

    @torch.no_grad()
    def judge(self) -> dict[str, Any]:
        """How well batches that nobody trains on are reconstructed, and with how many latents."""
        x = torch.cat([self.data.batch(number, self.batch_size) for number in HELD_OUT])
        losses = [self.trainer.sae.losses(part) for part in x.split(self.batch_size)]
        error = (torch.cat([each.recons for each in losses]) - x).square().sum()
        spread = (x - x.mean(dim=0)).square().sum()
        l0 = statistics.mean(float(each.l0) for each in losses)
        return {"fvu": float(error / spread), "l0": l0}


def _measure(architecture: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both trainers' steps in turns, and what they come to."""
    sizes = {"architecture": architecture, "d_in": args.d_in, "d_sae": args.d_sae}
    own = {"l1_coefficient": args.l1} if architecture == "standard" else {"k": args.k}
    peer = _Peer(args)
    try:
        begun = peer.ask(
            begin={
                **sizes,
                **own,
                "batch_size": args.batch_size,
                "lr": args.lr,
                "n_steps": args.n_steps,
                "seed": 0,
                "threads": args.threads,
                "sparse": args.sparse_peer,
            }
        )
        ours = _Ours(config_from_dict({**sizes, **own}), args)
        rounds = []
        for number in range(-1, args.rounds):
            round_ = _round(ours, peer, args.steps, ours_first=number % 2 == 0)
            if number >= 0:
                rounds.append(round_)
            _show_progress(architecture, number, args.rounds, round_)
        judged = {"ours": ours.judge(), "sae-lens": peer.ask(judge=list(HELD_OUT))}
    finally:
        peer.close()
    return {
        "name": architecture,
        "sae_lens": begun["version"],
        "n_vectors": args.n_steps * args.batch_size,
        "judged": judged,
        "rounds": rounds,
        **_summary(rounds),
    }


def _round(ours: _Ours, peer: _Peer, n_steps: int, ours_first: bool) -> dict[str, Any]:
    """Seconds of each one's steps, and the share of processor time that the host took."""
    seconds: dict[str, list[float]] = {}
    before, start = stolen_s(), time.perf_counter()
    for who in ("ours", "sae-lens") if ours_first else ("sae-lens", "ours"):
        if who == "ours":
            seconds[who] = ours.steps(n_steps)
        else:
            seconds[who] = peer.ask(steps=n_steps)["seconds"]
    elapsed = (time.perf_counter() - start) * (os.cpu_count() or 1)
    return {"seconds": seconds, "stolen": (stolen_s() - before) / elapsed}


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps a second and their ratio; rounds that the host disturbed do not count."""
    quiet = [each for each in rounds if each["stolen"] <= MOST_STOLEN] or rounds
    rates = {
        who: [len(each["seconds"][who]) / sum(each["seconds"][who]) for each in quiet]
        for who in ("ours", "sae-lens")
    }
    ratios = [a / b for a, b in zip(rates["ours"], rates["sae-lens"], strict=True)]
    return {
        "n_counted": len(quiet),
        "steps_per_s": {who: quartiles(values) for who, values in rates.items()},
        "ratio": quartiles(ratios),
    }


def _to_markdown(result: dict[str, Any]) -> str:
    facts = {**result["conditions"], **result["versions"]}
    lines = [f"# {result['title']}", "", "| what | value |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += [
        "",
        f"Steps a second of whole training steps, without the making of the data; {TARGET} times "
        "sae-lens's are wanted, at equal or lower FVU. Medians of the rounds, and quartiles.",
        "",
        "| architecture | ours | sae-lens | times | | FVU ours | sae-lens | L0 ours | sae-lens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in result["architectures"]:
        ours, theirs = (_spread(each["steps_per_s"][who]) for who in ("ours", "sae-lens"))
        a, b = each["judged"]["ours"], each["judged"]["sae-lens"]
        met = each["ratio"]["median"] >= TARGET and a["fvu"] <= b["fvu"]
        lines.append(
            f"| {each['name']} | {ours} | {theirs} | {_spread(each['ratio'])} "
            f"| {'met' if met else 'missed'} | {a['fvu']:.4f} | {b['fvu']:.4f} "
            f"| {a['l0']:.1f} | {b['l0']:.1f} |"
        )
    lines += ["", _NOTES]
    return "\n".join(lines) + "\n"


_NOTES = """FVU and L0 are of two batches that neither was trained on, after the same number of
vectors. Both begin as their packages have it: this one with decoder rows of length 1, which it
keeps there, and the decoder's bias at the first batch's geometric median; sae-lens with rows of
length 0.1, free, and a bias of 0. Rounds of which the host took more than 3 % of the processor
time away are not counted."""


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['q1']:.2f} to {values['q3']:.2f})"


def _show_progress(name: str, number: int, n_rounds: int, round_: dict[str, Any]) -> None:
    a, b = (sum(round_["seconds"][who]) for who in ("ours", "sae-lens"))
    what = "warm-up" if number < 0 else f"{number + 1}/{n_rounds}"
    stolen = f"{round_['stolen']:.0%} stolen"
    print(f"{name}: {what}, {a:.2f} s and {b:.2f} s, {stolen}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sae_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sae-lens", type=Path, required=True, help="the folder that sae-lens is installed in"
    )
    parser.add_argument("--python", default=sys.executable, help="what runs it")
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=5, help="training steps in a round")
    parser.add_argument("--d-in", type=int, default=384)
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--l1", type=float, default=1.0, help="ReLU's L1 coefficient")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--sparse-peer", action="store_true", help="sae-lens's TopK with use_sparse_activations"
    )
    parser.add_argument("--label", help="the results' file name; no machine's name, please")
    args = parser.parse_args()
    args.n_steps = (args.rounds + 1) * args.steps
    args.label = args.label or f"{datetime.date.today()}-sae-training-cpu-float32"
    if not re.fullmatch(r"[\w.-]+", args.label):
        parser.error(f"--label {args.label!r}: letters, digits, dots and dashes, please.")
    return args


if __name__ == "__main__":
    sys.exit(main())
