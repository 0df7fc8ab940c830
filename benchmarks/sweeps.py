"""Measure sweeps of activation patching against plain loops, and against the floor.

python -m benchmarks.sweeps                    # writes benchmarks/results/<date>-sweeps-cpu-float32
python -m benchmarks.sweeps --only decoder --metric last --rounds 2 --no-memory
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import multiprocessing
import os
import platform
import random
import re
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.floor import Floor, Speed, make_speeds, seconds
from benchmarks.memory import added_by
from benchmarks.run import describe_conditions
from benchmarks.sweep_peers import Peer, SweepModels, make_peers
from benchmarks.sweep_report import to_markdown
from benchmarks.sweep_tasks import (
    WINDOW,
    Inputs,
    Judge,
    Place,
    Sweep,
    make_judges,
    make_sweep_inputs,
    make_sweeps,
)
from benchmarks.tasks import Run, Task
from benchmarks.timing import CLOCKS, Timing, time_task
from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import resolve_positions
from hooked_whisper.patching.sweep import DEFAULT_MAX_BYTES, patch_sweep
from hooked_whisper.speech.mel import Mel

RESULTS = Path(__file__).parent / "results"
OURS = "hooked_whisper, patch_sweep"
SWEEPS = ("decoder", "heads", "encoder")
TOLERANCE = 1e-4
N_TARGETED = 3
"""Contestants that the target is about: the first ones."""
REPEATS = 5
"""Calls in one measurement of a speed."""

_PACKAGES = ("torch", "transformers", "nnsight", "transformer-lens")


def main() -> None:
    """Run what the command line asks for, and write it down."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    models = SweepModels(args.size, torch.device(args.device), getattr(torch, args.dtype))
    inputs = make_sweep_inputs(models, args.tokens)
    load = f"{os.getloadavg()[0]:.1f}"
    result = {
        "title": f"Sweeps at Whisper {args.size}'s size, {args.device}, {args.dtype}",
        "conditions": describe_conditions(args, models, load)
        | {"tokens": args.tokens, "bound on memory": f"{args.max_mib} MiB"},
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "sweeps": [
            _measure(sweep, judge, models, inputs, args)
            for sweep in make_sweeps(models.cfg, args.tokens)
            for judge in make_judges(inputs.tokens)
            if sweep.name in args.only and judge.name in args.metric
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    page = to_markdown(result)
    (RESULTS / f"{args.label}.md").write_text(page)
    (RESULTS / f"{args.label}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(page)


def run_ours(
    model: Any, sweep: Sweep, judge: Judge, inputs: Inputs, max_bytes: int
) -> tuple[float, dict[Place, float]]:
    """This package's sweep: the metric without a patch, and with each place patched."""
    n_frames = torch.tensor([inputs.clean.shape[2]])
    result = patch_sweep(
        model,
        Example(Mel(inputs.clean, n_frames), inputs.tokens),
        Example(Mel(inputs.corrupted, n_frames), inputs.tokens),
        sweep.hooks,
        metric=judge.metric,
        per=sweep.per,
        window_s=WINDOW * FRAMES_PER_POSITION / FRAMES_PER_SECOND,
        max_bytes=max_bytes,
        progress=False,
    )
    values = {
        name: result.values[0, row, column].tolist()
        for row, names in enumerate(result.names)
        for column, name in enumerate(names)
        if name is not None
    }
    return result.corrupted.item(), {
        place: values[place.name][place.index] for place in sweep.places
    }


def _measure(
    sweep: Sweep, judge: Judge, models: SweepModels, inputs: Inputs, args: argparse.Namespace
) -> dict[str, Any]:
    """One sweep with one metric."""
    max_bytes = args.max_mib * 2**20
    agreement = _agreement(sweep, judge, models, inputs, max_bytes, args.check)
    contest = _Contest(sweep, judge, models, inputs, max_bytes, args.patches)
    print(f"{sweep.name}, {judge.name}:", file=sys.stderr)
    timings = time_task(contest.task, models, args.rounds, args.warm_up, args.clock)
    return {
        "name": f"{sweep.name}-{judge.name}",
        "title": f"{sweep.title}; {judge.title}",
        "n_patches": len(sweep.places),
        "n_timed": args.patches,
        "target": sweep.target,
        "agreement": agreement,
        **contest.summary({timing.label: timing.seconds for timing in timings}),
        "memory": None if args.no_memory else _memory(sweep, judge, args),
    }


class _Contest:
    """The contestants of a sweep as runs to be timed, and what their times say.

    Those that run the model for each patch do a random part of the patches a
    round, another one each time, and their preparation as a run of its own.
    """

    def __init__(
        self,
        sweep: Sweep,
        judge: Judge,
        models: SweepModels,
        inputs: Inputs,
        max_bytes: int,
        n_timed: int,
    ) -> None:
        self.sweep, self.n_timed = sweep, n_timed
        self.peers, self.speeds = make_peers(sweep.name), make_speeds(models)
        read = resolve_positions(judge.metric, inputs.tokens.shape[1])
        self.floors = {
            strict: Floor(models.cfg, inputs.tokens.shape[1], read, strict).sweep(sweep.places)
            for strict in (False, True)
        }
        runs = [Run(OURS, "hooked", lambda m: run_ours(m, sweep, judge, inputs, max_bytes))]
        for peer in self.peers:
            runs += self._runs(peer, judge, models, inputs)
        for speed in self.speeds:
            runs.append(Run(speed.name, "hooked", partial(_repeat, speed)))
        self.task = Task(sweep.name, sweep.title, runs, base=OURS)

    def _runs(self, peer: Peer, judge: Judge, models: SweepModels, inputs: Inputs) -> list[Run]:
        places = list(self.sweep.places)
        random.Random(0).shuffle(places)
        endless = itertools.cycle(places)
        prepared = peer.prepare(models[peer.model], inputs, places)

        def patch(model: Any) -> Any:
            some = list(itertools.islice(endless, self.n_timed))
            return peer.run(model, prepared, some, judge.metric)

        def prepare(model: Any) -> Any:
            return peer.prepare(model, inputs, places)

        return [
            Run(peer.label, peer.model, patch),
            Run(_preparing(peer), peer.model, prepare),
        ]

    def summary(self, taken: dict[str, list[float]]) -> dict[str, Any]:
        """Whole sweeps' seconds and ratios to ours, round by round; and the floors."""
        n, ours = len(self.sweep.places), taken[OURS]
        wholes = {OURS: ours}
        for peer in self.peers:
            each = [seconds_ / self.n_timed for seconds_ in taken[peer.label]]
            once = taken[_preparing(peer)]
            wholes[peer.label] = [a + n * b for a, b in zip(once, each, strict=True)]
        speeds = [
            {speed.name: taken[speed.name][i] / speed.amount / REPEATS for speed in self.speeds}
            for i in range(len(ours))
        ]
        timings = [_timing(label, whole, ours) for label, whole in wholes.items()]
        floors = []
        for strict, work in self.floors.items():
            for elementwise in (False, True):
                label = "floor" + ", strict" * strict + ", with elementwise work" * elementwise
                floor_s = [seconds(work, speed, elementwise) for speed in speeds]
                # The other way round: how many times the floor ours is.
                ratios = [a / b for a, b in zip(ours, floor_s, strict=True)]
                floors.append(Timing(label, floor_s, ratios).summary())
        least = min(each["ratio"]["median"] for each in timings[1 : 1 + N_TARGETED])
        return {
            "timings": timings,
            "floors": floors,
            "work": [
                {
                    "name": speed.name,
                    "floor": self.floors[False][speed.name],
                    "strict": self.floors[True][speed.name],
                    "unit_s": _timing("", [each[speed.name] for each in speeds])["seconds"],
                }
                for speed in self.speeds
            ],
            "times_faster": least,
        }


def _timing(label: str, seconds_: list[float], ours: list[float] | None = None) -> dict[str, Any]:
    """A summary whose ratio says how many times faster ours is."""
    ratios = [a / b for a, b in zip(seconds_, ours or seconds_, strict=True)]
    return Timing(label, seconds_, ratios).summary()


def _repeat(speed: Speed, model: Any) -> None:
    for _ in range(REPEATS):
        speed.call()


def _preparing(peer: Peer) -> str:
    return f"{peer.label}: preparation"


@torch.no_grad()
def _agreement(
    sweep: Sweep, judge: Judge, models: SweepModels, inputs: Inputs, max_bytes: int, n_check: int
) -> dict[str, Any]:
    """How far each contestant's numbers are from those of the plain loop, on some patches.

    Raises:
        RuntimeError: Further than the tolerance, or a patch that could not tell.
    """
    base, ours = run_ours(models.hooked, sweep, judge, inputs, max_bytes)
    places = random.Random(1).sample(sweep.places, min(n_check, len(sweep.places)))
    values = {OURS: torch.tensor([ours[place] for place in places])}
    for peer in make_peers(sweep.name):
        model = models[peer.model]
        prepared = peer.prepare(model, inputs, sweep.places)
        values[peer.label] = torch.tensor(peer.run(model, prepared, places, judge.metric))
    expected = values[make_peers(sweep.name)[0].label]
    differences = {label: (each - expected).abs().max().item() for label, each in values.items()}
    effects = torch.tensor([abs(value - base) for value in ours.values()])
    agreement = {
        "n_checked": len(places),
        "differences": differences,
        "n_effects": int((effects > TOLERANCE).sum()),
        "greatest_effect": effects.max().item(),
    }
    if max(differences.values()) > TOLERANCE:
        raise RuntimeError(f"the contestants of {sweep.name} do not agree: {agreement}.")
    return agreement


# Memory


def _memory(sweep: Sweep, judge: Judge, args: argparse.Namespace) -> dict[str, Any]:
    """Bytes that our sweep adds to the loaded model, and a plain run for comparison."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks._preload"])
    found = {"bound": args.max_mib * 2**20}
    for what in ("sweep", "run"):
        print(f"memory of a {what} of {sweep.name}", file=sys.stderr)
        with context.Pool(1) as pool:
            found[what] = pool.apply(_peak, (what, sweep.name, judge.name, args))
    return found


@torch.no_grad()
def _peak(what: str, sweep_name: str, judge_name: str, args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    models = SweepModels(args.size, torch.device(args.device), getattr(torch, args.dtype))
    inputs = make_sweep_inputs(models, args.tokens)
    sweep = next(s for s in make_sweeps(models.cfg, args.tokens) if s.name == sweep_name)
    judge = next(j for j in make_judges(inputs.tokens) if j.name == judge_name)
    model = models.hooked
    if what == "run":
        return added_by(models, lambda: model(inputs.corrupted, inputs.tokens))
    max_bytes = args.max_mib * 2**20
    return added_by(models, lambda: run_ours(model, sweep, judge, inputs, max_bytes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweeps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="cpu")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    add("--size", default="tiny", help="the release whose sizes to take")
    add("--rounds", type=int, default=7)
    add("--warm-up", type=int, default=1, help="rounds that do not count")
    add("--only", nargs="+", choices=SWEEPS, default=SWEEPS, help="some sweeps only")
    add("--metric", nargs="+", choices=["last", "text"], default=["last", "text"])
    add("--tokens", type=int, default=32)
    add("--patches", type=int, default=6, help="a slow contestant's in a round, then scaled up")
    add("--check", type=int, default=8, help="patches whose numbers are compared")
    add("--max-mib", type=int, default=DEFAULT_MAX_BYTES // 2**20, help="bound on our memory")
    add("--clock", default="wall", choices=CLOCKS, help="cpu, with --threads 1, on a busy machine")
    add("--threads", type=int, help="of PyTorch; its default unless given")
    add("--no-memory", action="store_true")
    add("--label", help="the results' file name; no machine's name, please")
    args = parser.parse_args()
    if importlib.util.find_spec("nnsight") is None:
        parser.error("nnsight is missing: pip install -c constraints.txt -e '.[bench]'")
    args.label = args.label or f"{datetime.date.today()}-sweeps-{args.device}-{args.dtype}"
    if not re.fullmatch(r"[\w.-]+", args.label):
        parser.error(f"--label {args.label!r}: letters, digits, dots and dashes, please.")
    return args


if __name__ == "__main__":
    sys.exit(main())
