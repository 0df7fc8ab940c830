"""Interleaved timing: the contestants take turns, so that a busy machine slows all alike.

On a virtual machine the host may take the processors away in the middle of a
run, and tells so in `/proc/stat`. A run that lost time in this way is repeated.
"""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Models
from benchmarks.tasks import Run, Task


@dataclass(frozen=True)
class Timing:
    """One contestant's times in a task.

    Args:
        label: The contestant.
        seconds: Of each round.
        ratios: Of each round, to the base's time in the same round.
    """

    label: str
    seconds: list[float]
    ratios: list[float]

    def summary(self) -> dict[str, Any]:
        """Medians and quartiles, ready for JSON."""
        return {
            "label": self.label,
            "seconds": quartiles(self.seconds),
            "ratio": quartiles(self.ratios),
            "all_seconds": self.seconds,
        }


MOST_STOLEN = 0.03
"""The share of the machine's processor time that the host may take during a run that counts."""

_TRIES = 20
_STAT = Path("/proc/stat")

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def time_task(
    task: Task, models: Models, rounds: int, warm_up: int, clock: str = "wall"
) -> list[Timing]:
    """Every contestant once a round; who begins moves on by one each round.

    Args:
        task: What to time.
        models: Who runs it.
        rounds: Rounds that count.
        warm_up: Rounds before them.
        clock: `"wall"`, or `"cpu"`: the process's own processor time, for a
            machine too busy to tell anything else, with one thread.
    """
    seconds: dict[str, list[float]] = {run.label: [] for run in task.runs}
    for number in range(-warm_up, rounds):
        first = number % len(task.runs)
        for run in task.runs[first:] + task.runs[:first]:
            taken = _time_undisturbed(run, models, CLOCKS[clock])
            if number >= 0:
                seconds[run.label].append(taken)
        _show_progress(task, number, rounds, warm_up)
    base = seconds[task.base]
    return [
        Timing(label, taken, [each / other for each, other in zip(taken, base, strict=True)])
        for label, taken in seconds.items()
    ]


def _time_undisturbed(run: Run, models: Models, clock: Callable[[], float]) -> float:
    """Seconds of the first run that the host left alone, else of the least disturbed one."""
    tries = []
    for _ in range(_TRIES):
        before, start = stolen_s(), time.perf_counter()
        taken = _time(run, models, clock)
        share = (stolen_s() - before) / (time.perf_counter() - start) / (os.cpu_count() or 1)
        tries.append((share, taken))
        if share <= MOST_STOLEN:
            break
    return min(tries)[1]


def stolen_s() -> float:
    """Processor seconds, of all cores, that the host has given to others; 0 where it does not tell.

    Source: `proc_stat(5)`: the eighth number of the line `cpu`, in clock ticks.
    """
    if not _STAT.exists():
        return 0.0
    ticks = _STAT.read_text().split("\n", 1)[0].split()[1:]
    return int(ticks[7]) / os.sysconf("SC_CLK_TCK") if len(ticks) > 7 else 0.0


@torch.no_grad()
def _time(run: Run, models: Models, clock: Callable[[], float]) -> float:
    model = models[run.model]
    gc.collect()
    gc.disable()
    try:
        _wait(models.device)
        start = clock()
        result = run.call(model)
        _wait(models.device)
        return clock() - start
    finally:
        # What was made is freed outside the timing, for everybody alike.
        result = None  # noqa: F841
        gc.enable()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quartiles(values: list[float]) -> dict[str, float]:
    """The median and the quartiles."""
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0]}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def _show_progress(task: Task, number: int, rounds: int, warm_up: int) -> None:
    what = f"warm-up {number + warm_up + 1}/{warm_up}" if number < 0 else f"{number + 1}/{rounds}"
    end = "\n" if number == rounds - 1 else ""
    print(f"\r{task.name}: {what}      ", end=end, file=sys.stderr, flush=True)
