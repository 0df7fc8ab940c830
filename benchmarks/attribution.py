"""Measure attribution patching against the exact sweep: how much of its time, how near its numbers.

python -m benchmarks.attribution --tiny-en tiny.en.pt --sentences speech/sentences
python -m benchmarks.attribution --only digits --rounds 1

The exact sweep and the estimate take turns; processor time, one thread, medians of the rounds.
Gradients and what AtP* corrects of them are run once: their correlation and time.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.interventions import Example
from hooked_whisper.metrics import LogitDifference
from hooked_whisper.patching import SweepResult, attribution_patch, patch_sweep
from hooked_whisper.patching.gradients import GradientRuns
from hooked_whisper.patching.grid import make_grid

RESULTS = Path(__file__).parent / "results"
ENCODER = ["encoder.blocks.*.hook_resid_mid", "encoder.blocks.*.hook_resid_post"]
DECODER = ["decoder.blocks.*.hook_resid_*", "decoder.blocks.*.hook_*_out"]
TABLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "encoder stream, windows of 0.3 s": (ENCODER, {"per": "window", "window_s": 0.3}),
    "encoder outputs, windows of 0.3 s": (
        ["encoder.blocks.*.hook_attn_out", "encoder.blocks.*.hook_mlp_out"],
        {"per": "window", "window_s": 0.3},
    ),
    "decoder stream and outputs, positions": (DECODER, {"per": "pos"}),
    "decoder heads": ("decoder.blocks.*.*attn.hook_z", {"per": "head"}),
    "decoder neurons": ("decoder.blocks.*.mlp.hook_post", {"per": "neuron"}),
}
SENTENCES = {
    # The clip, and the seconds that are noise in the corrupted run.
    "arctic-a0007": (1.5, 2.1),
    "ls-3080-5032-0001": (3.0, 3.6),
    "ls-2412-153948-0000": (5.0, 5.6),
}


@dataclass(frozen=True)
class Pair:
    """Two runs on one text and the token that tells them apart."""

    model: HookedWhisper
    name: str
    clean: Example
    corrupted: Example
    metric: LogitDifference


def main() -> None:
    """Run what the command line asks for, and write it down."""
    args = _arguments()
    torch.set_num_threads(1)
    rows = []
    for pair in _pairs(args):
        for table in args.tables:
            rows.append(_measure(pair, table, args))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    path = RESULTS / f"{datetime.date.today()}-attribution-cpu-float32"
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".md").write_text(_page(rows))
    print(_page(rows))


def _pairs(args: argparse.Namespace) -> Iterator[Pair]:
    if args.only in (None, "digits"):
        model = HookedWhisper.from_pretrained("digits")
        said = {each.text: each for each in recordings()}
        names = ["three one four", "eight five two", "nine six eight"]
        for right, wrong in zip(names, names[1:] + names[:1], strict=True):
            clean = Example.from_audio(model, said[right].path, " " + right)
            other = Example(model.to_mel(said[wrong].path), clean.tokens)
            words = [(a, b) for a, b in zip(right.split(), wrong.split(), strict=True)]
            for place, (one, two) in enumerate(words):
                if one != two:
                    ids = [
                        int(model.to_tokens(f" {w}", prepend_sot=False)[0, 0]) for w in (one, two)
                    ]
                    metric = LogitDifference(*ids, pos=3 + place)
                    yield Pair(model, f"{right} | {wrong}, {one}", clean, other, metric)
    if args.tiny_en and args.only in (None, "tiny.en"):
        model = HookedWhisper.from_pretrained(args.tiny_en)
        for name, window in SENTENCES.items():
            clean = Example.from_audio(model, args.sentences / f"{name}.flac")
            yield _contrast(model, name, clean, clean.with_white_noise(model, window))
        names = ["ls-1688-142285-0004", "ls-3331-159605-0001"]
        clean, other = (Example.from_audio(model, args.sentences / f"{n}.flac") for n in names)
        yield _contrast(model, " | ".join(names), clean, other.with_tokens(clean.tokens))


def _contrast(model: HookedWhisper, name: str, clean: Example, corrupted: Example) -> Pair:
    """The pair, with the first token that the corrupted run gets wrong."""
    start = model.to_tokens("").shape[1]
    with torch.no_grad():
        heard = model(corrupted.mel, clean.tokens)[0, start - 1 : -1].argmax(dim=-1)
    wanted = clean.tokens[0, start:]
    place = int((wanted != heard).nonzero()[0])
    metric = LogitDifference(int(wanted[place]), int(heard[place]), pos=start + place - 1)
    return Pair(model, name, clean, corrupted, metric)


def _measure(pair: Pair, table: str, args: argparse.Namespace) -> dict[str, Any]:
    """One table of one pair: exact sweep and estimate in turns, and the other ways once."""
    names, options = TABLES[table]
    given = (pair.model, pair.clean, pair.corrupted, names)
    options = {"metric": pair.metric, "progress": False, **options}
    ways: dict[str, Callable[[], SweepResult]] = {
        "exact": lambda: patch_sweep(*given, **options),
        "estimate": lambda: attribution_patch(*given, **options),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, Tensor] = {}
    for number in range(args.rounds):
        for way in sorted(ways, reverse=bool(number % 2)):
            seconds, result = _timed(ways[way])
            taken[way].append(seconds)
            found[way] = result.effect().flatten()
    medians = {way: statistics.median(each) for way, each in taken.items()}
    runs_s, _ = _timed(lambda: _both_runs(pair))
    row = {
        "pair": pair.name,
        "table": table,
        "places": int((~found["exact"].isnan()).sum()),
        "two runs, s": runs_s,
        **{f"{way}, s": each for way, each in medians.items()},
        "share of time": medians["estimate"] / medians["exact"],
        "Pearson": _pearson(found["estimate"], found["exact"]),
        "largest difference": float((found["estimate"] - found["exact"]).abs().nan_to_num().max()),
    }
    if args.gradients:
        for label, way in _gradients(pair, names, options):
            seconds, values = _timed(way)
            row[label] = [_pearson(values, found["exact"]), seconds]
    return row


def _both_runs(pair: Pair) -> None:
    with torch.no_grad():
        for run in (pair.clean, pair.corrupted):
            pair.model(run.mel, run.tokens)


def _gradients(
    pair: Pair, names: Any, options: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Estimates by gradients alone, and by GradDrop: Kramár et al. 2024, section 3.2."""
    given = (pair.model, pair.clean, pair.corrupted, names)
    for n_steps, along in ((1, "inputs"), (3, "inputs"), (5, "inputs"), (5, "sites")):
        how = {"n_steps": n_steps, "along": along}
        yield (
            "one gradient" if n_steps == 1 else f"{n_steps} steps along {along}",
            lambda how=how: attribution_patch(*given, **options, **how).effect().flatten(),
        )
    yield "one gradient, GradDrop", lambda: _with_drops(pair, names, options)


def _with_drops(pair: Pair, names: Any, options: dict[str, Any]) -> Tensor:
    """The mean of estimates, in each of which one layer passes no gradient on but by the stream."""
    model, runs = pair.model, [(pair.corrupted, pair.clean)]
    where = options.get("per"), options.get("parts"), options.get("window_s", 1.0)
    grid = make_grid(model, runs, names, *where, False)
    hooks = sorted({name for _, name, _ in grid.cells()})
    stack = hooks[0].split(".")[0]
    of_pair = GradientRuns(model, 0, *runs[0], hooks, pair.metric)
    total = torch.zeros(len(grid.sites), len(grid.layers), len(grid.parts))
    n_layers = model.cfg.n_layers(stack)
    for layer in range(n_layers):
        drop = (f"{stack}.blocks.{layer}.hook_*_out", lambda value, hook: value.detach())
        with model.hooks(fwd_hooks=[drop]):
            gradients = of_pair.gradients(hooks, [], 0.0)
        cells = grid.cells()
        values = of_pair.estimates([cell[1:] for cell in cells], gradients)
        for (place, _, _), value in zip(cells, values, strict=True):
            total[place] += value / n_layers
    return total.flatten()


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


def _pearson(one: Tensor, other: Tensor) -> float:
    there = ~other.isnan()
    return float(torch.corrcoef(torch.stack([one[there], other[there]]))[0, 1])


def _page(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"# Attribution patching against exact sweeps, CPU, float32\n\n{__doc__}"]
    lines += ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name, "")) for name in names) + " |")
    versions = f"torch {torch.__version__}, one thread, of two shared with other work."
    return "\n".join(
        [*lines, "", "Behind a way's correlation is its time in seconds.", versions, ""]
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]:.2f} ({value[1]:.1f} s)"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "and")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny-en", type=Path, help="the checkpoint of tiny.en")
    parser.add_argument("--sentences", type=Path, help="the folder of the sentences' clips")
    parser.add_argument("--only", choices=["digits", "tiny.en"])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gradients", action="store_true", help="the other ways too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
