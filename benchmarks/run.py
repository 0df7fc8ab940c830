"""Measure this package against openai-whisper and transformers, in one process.

python -m benchmarks.run                       # writes benchmarks/results/<date>-cpu-float32
python -m benchmarks.run --only forward --rounds 5 --no-memory
python -m benchmarks.run --device cuda --dtype float16 --label h200-float16
"""

import argparse
import datetime
import json
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import measure_memory
from benchmarks.models import Models
from benchmarks.profiles import compare_profiles
from benchmarks.report import to_markdown, verdict
from benchmarks.tasks import Task, make_tasks
from benchmarks.timing import CLOCKS, time_task

RESULTS = Path(__file__).parent / "results"
TASKS = ("forward", "residuals", "everything", "generation", "decoding")


def main() -> None:
    """Run what the command line asks for, and write it down."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    models = Models(args.size, device, dtype)
    tasks = [
        task
        for task in make_tasks(models, args.tokens, args.new_tokens)
        if not args.only or task.name in args.only
    ]
    memory = {}
    if not args.no_memory:
        memory = measure_memory(
            args.size, args.device, dtype, args.tokens, args.new_tokens, args.only
        )
    load = f"{os.getloadavg()[0]:.1f}"
    result = {
        "title": f"Whisper {args.size} size, {args.device}, {args.dtype}",
        "conditions": describe_conditions(args, models, load),
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "tasks": [_measure(task, models, args, memory.get(task.name)) for task in tasks],
    }
    RESULTS.mkdir(exist_ok=True)
    page = to_markdown(result)
    (RESULTS / f"{args.label}.md").write_text(page)
    (RESULTS / f"{args.label}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(page)


def _measure(task: Task, models: Models, args: argparse.Namespace, memory: Any) -> dict[str, Any]:
    agreement = _agreement(task, models)
    how = (task, models, args.rounds, args.warm_up, args.clock)
    timings = [each.summary() for each in time_task(*how)]
    ratio = timings[0]["ratio"]["median"]
    missed = task.target is not None and ratio > task.target
    return {
        "name": task.name,
        "title": task.title,
        "base": task.base,
        "target": task.target,
        "verdict": verdict(ratio, task.target) if task.target is not None else None,
        "timings": timings,
        "agreement": agreement,
        "memory": memory,
        "profile": compare_profiles(task, models) if missed or args.profile else None,
    }


@torch.no_grad()
def _agreement(task: Task, models: Models) -> str:
    """How far the contestants' results are from the base's: they must do the same work."""
    results = {run.label: _output(run.call(models[run.model])) for run in task.runs}
    base = results[task.base]
    if isinstance(base, Tensor):
        parts = [
            f"{label} {(result.float() - base.float()).abs().max().item():.1e}"
            for label, result in results.items()
            if label != task.base
        ]
        return f"Greatest difference of a logit from {task.base}: " + ", ".join(parts) + "."
    lengths = {len(result) for result in results.values()}
    if len(lengths) > 1:
        raise RuntimeError(f"the contestants of {task.name} decode {sorted(lengths)} tokens.")
    same = [label for label, result in results.items() if result == base]
    return f"All decode {lengths.pop()} tokens. The same ones: {', '.join(same)}."


def _output(result: Any) -> Any:
    """The logits among what a contestant returned, or its tokens."""
    if isinstance(result, Tensor | list):
        return result
    return result.logits if hasattr(result, "logits") else result[0]


_CLOCK_MEANING = {"wall": "wall", "cpu": "processor time of the process"}
_PACKAGES = ("torch", "openai-whisper", "transformers", "transformer-lens")


def describe_conditions(args: argparse.Namespace, models: Models, load: str) -> dict[str, Any]:
    """What a result was measured on, and how."""
    gpu = {"GPU": torch.cuda.get_device_name()} if models.device.type == "cuda" else {}
    return {
        "date": datetime.date.today().isoformat(),
        "CPU": cpu_model(),
        "cores": os.cpu_count(),
        "clock": _CLOCK_MEANING[args.clock],
        **gpu,
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "batch": 1,
        "weights": f"random, seed {models.seed}, the same for all",
        "rounds": f"{args.rounds}, after {args.warm_up} to warm up",
        "other processes' load before timing": load,
    }


def cpu_model() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--size", default="tiny", help="the release whose sizes to take")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=[], help="some tasks only")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a forward pass")
    parser.add_argument("--new-tokens", type=int, default=60, help="tokens to decode")
    parser.add_argument(
        "--clock", default="wall", choices=CLOCKS, help="cpu, with --threads 1, on a busy machine"
    )
    parser.add_argument("--threads", type=int, help="of PyTorch; its default unless given")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--profile", action="store_true", help="also of tasks that met the target")
    parser.add_argument("--label", help="the results' file name; no machine's name, please")
    args = parser.parse_args()
    args.label = args.label or f"{datetime.date.today()}-{args.device}-{args.dtype}"
    if not re.fullmatch(r"[\w.-]+", args.label):
        parser.error(f"--label {args.label!r}: letters, digits, dots and dashes, please.")
    return args


if __name__ == "__main__":
    sys.exit(main())
