"""Where the time of a task goes, by PyTorch operator, in this package and in its base."""

from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import Models
from benchmarks.tasks import Run, Task

_RUNS = 3


def compare_profiles(task: Task, models: Models, n_rows: int = 12) -> list[dict[str, Any]]:
    """Milliseconds a run spends in each operator itself, greatest difference first.

    Time outside operators is Python's, and is not here.
    """
    ours = _by_operator(task.runs[0], models)
    base = _by_operator(next(run for run in task.runs if run.label == task.base), models)
    rows = [
        {"operator": name, "ours_ms": ours[name], "base_ms": base[name]} for name in ours | base
    ]
    rows.sort(key=lambda row: -abs(row["ours_ms"] - row["base_ms"]))
    return rows[:n_rows]


@torch.no_grad()
def _by_operator(run: Run, models: Models) -> Counter[str]:
    model = models[run.model]
    run.call(model)
    activities = [ProfilerActivity.CPU]
    on_gpu = models.device.type == "cuda"
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as prof:
        for _ in range(_RUNS):
            run.call(model)
        if on_gpu:
            torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in prof.key_averages():
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[event.key] = time_us / 1000 / _RUNS
    return spent
