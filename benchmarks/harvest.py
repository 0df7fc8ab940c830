"""Measure harvesting against the bare computation, and against a plain loop on transformers.

python -m benchmarks.harvest                       # writes benchmarks/results/<date>-harvest
python -m benchmarks.harvest --clips 8 --rounds 1 --warm-up 0 --size tiny   # a smoke test
python -m benchmarks.harvest --device cuda --workers 8 --batch-size 32 --label h200-harvest

All read the same files, in batches of the same size, with the same weights:
the bare computation is the mel and the encoder with nothing kept; the plain
loop has a forward hook on each layer of transformers' Whisper, and saves the
same rows in the same dtype with safetensors, one file a batch. It has the
same mels, whose values are those of transformers' own to 1e-7.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

from benchmarks.models import Models
from benchmarks.report import to_markdown, verdict
from benchmarks.run import RESULTS, cpu_model
from benchmarks.tasks import HF_SDPA, OURS, Run, Task
from benchmarks.timing import time_task
from hooked_whisper.speech.mel import to_mel
from hooked_whisper.store import ActivationStore, harvest

HOOKS = "encoder.blocks.*.hook_resid_post"
BARE = "mel and encoder, nothing kept"
MOST_OF_BARE = 1 / 0.95
MOST_OF_LOOP = 1 / 1.3


def make_clips(folder: Path, n: int, shortest_s: float, longest_s: float) -> list[Path]:
    """Clips of noise, as long as recordings of speech are: the lengths spread evenly."""
    rng = np.random.default_rng(0)
    paths = []
    for number, seconds in enumerate(rng.permutation(np.linspace(shortest_s, longest_s, n))):
        paths.append(folder / f"{number:04d}.wav")
        samples = 0.1 * rng.standard_normal(int(16_000 * seconds))
        soundfile.write(paths[-1], samples, 16_000, subtype="PCM_16")
    return paths


def batches(paths: list[Path], size: int) -> list[list[Path]]:
    """The files, `size` at a time."""
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def run_bare(model: Any, paths: list[Path], size: int) -> None:
    """The same mel and encoder, one batch after the other."""
    with torch.inference_mode():
        for batch in batches(paths, size):
            model(model.to_mel([str(path) for path in batch]))


def run_harvest(
    model: Any, paths: list[Path], size: int, folder: Path, n_workers: int | None, **options: Any
) -> ActivationStore:
    """Ours, into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    options |= {"dtype": "fp16", "batch_size": size, "n_workers": n_workers}
    return harvest(model, paths, HOOKS, folder, **options)


def run_loop(model: Any, paths: list[Path], size: int, folder: Path, n_mels: int) -> None:
    """What one writes in a notebook."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    encoder, kept = model.model.encoder, {}

    def keep(number: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            kept[f"layer{number}"] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(encoder.layers)]
    first = next(model.parameters())
    with torch.inference_mode():
        for number, batch in enumerate(batches(paths, size)):
            mel = to_mel([str(path) for path in batch], n_mels=n_mels, n_frames=3000)
            encoder(mel.values.to(first.device, first.dtype))
            counts = mel.n_positions.tolist()
            rows = {
                name: torch.cat([each[:count] for each, count in zip(value, counts, strict=True)])
                .half()
                .cpu()
                for name, value in kept.items()
            }
            save_file(rows, folder / f"{number:04d}.safetensors")
    for handle in handles:
        handle.remove()


def check_same(store: ActivationStore, loop: Path) -> float:
    """The greatest difference between what ours and the loop stored."""
    from safetensors.torch import load_file

    found = [load_file(path) for path in sorted(loop.glob("*.safetensors"))]
    greatest = 0.0
    for number, name in enumerate(store.hook_names):
        theirs = torch.cat([each[f"layer{number}"] for each in found]).float()
        ours = store.rows(name, slice(None), dtype=torch.float32)[name]
        if ours.shape != theirs.shape:
            raise RuntimeError(f"{name}: {tuple(ours.shape)} here, {tuple(theirs.shape)} there.")
        greatest = max(greatest, float((ours - theirs).abs().max()))
    if greatest > 0.02:
        raise RuntimeError(f"what was stored differs by {greatest}.")
    return greatest


def main() -> None:
    """Run what the command line asks for, and write it down."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    models = Models(args.size, torch.device(args.device), torch.float32)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        paths = make_clips(folder / "clips", args.clips, args.shortest_s, args.longest_s)
        result = _measure(args, models, paths, folder)
    RESULTS.mkdir(exist_ok=True)
    page = to_markdown(result)
    (RESULTS / f"{args.label}.md").write_text(page)
    (RESULTS / f"{args.label}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(page)


def _measure(
    args: argparse.Namespace, models: Models, paths: list[Path], folder: Path
) -> dict[str, Any]:
    size, ours, loop = args.batch_size, folder / "ours", folder / "loop"
    runs = [
        Run(OURS, "hooked", lambda model: run_harvest(model, paths, size, ours, args.workers)),
        Run(BARE, "hooked", lambda model: run_bare(model, paths, size)),
        Run(
            HF_SDPA + " with hooks",
            "hf_sdpa",
            lambda model: run_loop(model, paths, size, loop, models.cfg.n_mels),
        ),
    ]
    load = f"{os.getloadavg()[0]:.1f}"
    for run in runs:
        run.call(models[run.model])
    store = ActivationStore(ours)
    difference, n_bytes = check_same(store, loop), sum(s["bytes"] for s in store.manifest["shards"])
    title = f"{args.clips} clips, {len(store.hook_names)} sites, fp16, {n_bytes / 2**20:.0f} MiB"
    task = Task("harvest", title, runs, base=BARE, target=MOST_OF_BARE)
    timings = time_task(task, models, args.rounds, args.warm_up)
    to_loop = sorted(a / b for a, b in zip(timings[0].seconds, timings[2].seconds, strict=True))
    loop_ratio = to_loop[len(to_loop) // 2]
    summaries = [timing.summary() for timing in timings]
    ratio = summaries[0]["ratio"]["median"]
    clips_per_s = args.clips / summaries[0]["seconds"]["median"]
    return {
        "title": f"Harvesting, Whisper {args.size} size, {args.device}, model in float32",
        "conditions": {
            "date": datetime.date.today().isoformat(),
            "CPU": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "batch": size,
            "worker processes": "default" if args.workers is None else args.workers,
            "clips": f"{args.clips}, {args.shortest_s:g} to {args.longest_s:g} s long",
            "rounds": f"{args.rounds}, after {args.warm_up} to warm up",
            "other processes' load before timing": load,
        },
        "versions": {name: version(name) for name in ("torch", "openai-whisper", "transformers")}
        | {"python": platform.python_version()},
        "tasks": [
            {
                "name": task.name,
                "title": f"{title}, to the bare computation",
                "base": task.base,
                "target": round(MOST_OF_BARE, 3),
                "verdict": verdict(ratio, MOST_OF_BARE),
                "timings": summaries,
                "agreement": f"Ours stores {clips_per_s:.2f} clips/s, {1 / ratio:.3f} of the bare "
                f"computation's, and {1 / loop_ratio:.3f} times the plain loop's (to be at least "
                f"1.3: {verdict(loop_ratio, MOST_OF_LOOP)}). Greatest difference of a stored value "
                f"from the loop's: {difference:.1e}.",
                "memory": None,
                "profile": None,
            }
        ],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.harvest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="tiny", help="the release whose sizes to take")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--shortest-s", type=float, default=2.0)
    parser.add_argument("--longest-s", type=float, default=30.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, help="the default is the package's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that do not count")
    parser.add_argument("--threads", type=int, help="of PyTorch; its default unless given")
    parser.add_argument("--folder", help="where to write; the default is the temporary folder")
    parser.add_argument("--label", help="the results' file name; no machine's name, please")
    args = parser.parse_args()
    args.label = args.label or f"{datetime.date.today()}-harvest-{args.device}"
    return args


if __name__ == "__main__":
    main()
