"""Peak memory of each contestant, each in a process of its own that runs the task once."""

import ctypes
import gc
import multiprocessing
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Models
from benchmarks.tasks import make_tasks

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def measure_memory(
    size: str, device: str, dtype: torch.dtype, n_tokens: int, n_new: int, only: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Bytes that each contestant's first run of each task adds to its loaded model.

    On a CPU the highest resident memory; on a GPU the most that PyTorch allocated.
    """
    # Children of a server that has only imported things: fresh, and quickly started.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks._preload"])
    models = Models(size, torch.device("cpu"), dtype)
    found: dict[str, list[dict[str, Any]]] = {}
    for task in make_tasks(models, n_tokens, n_new):
        if only and task.name not in only:
            continue
        rows = []
        for run in task.runs:
            print(f"\rmemory of {task.name}: {run.label}" + " " * 30, end="", file=sys.stderr)
            arguments = (size, device, dtype, n_tokens, n_new, task.name, run.label)
            with context.Pool(1) as pool:
                rows.append({"label": run.label, "bytes": pool.apply(_peak, arguments)})
        base = next(row["bytes"] for row in rows if row["label"] == task.base)
        for row in rows:
            row["ratio"] = row["bytes"] / base
        found[task.name] = rows
    print(file=sys.stderr)
    return found


@torch.no_grad()
def _peak(
    size: str,
    device: str,
    dtype: torch.dtype,
    n_tokens: int,
    n_new: int,
    task_name: str,
    label: str,
) -> int:
    """What one run adds to the memory in use just before it."""
    models = Models(size, torch.device(device), dtype)
    tasks = {task.name: task for task in make_tasks(models, n_tokens, n_new)}
    run = next(run for run in tasks[task_name].runs if run.label == label)
    model = models[run.model]
    return added_by(models, lambda: run.call(model))


def added_by(models: Models, call: Callable[[], object]) -> int:
    """Bytes that a call adds to the memory in use just before it."""
    models.forget_weights()
    gc.collect()
    if models.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what loading used is given back
    _CLEAR.write_text("5")  # the highest resident memory is counted anew from here
    before = _resident("VmHWM")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])
