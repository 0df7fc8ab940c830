"""Edges patched exactly and estimated, beside the plain loop of one run_with_hooks an edge.

    python -m benchmarks.circuits --label NAME [--weights digits] [--plain 40] [--senders 2]

The plain loop keeps what nodes write in both runs, and puts a head's new queries, keys or values,
or what an MLP or the logits read, in by one hook of a whole run; so many of its edges, drawn at
random, are timed, and their values compared with ours. With --senders so many nodes of each layer
of the encoder are patched and timed, evenly spaced, and the others taken to be alike. Times are
those of one pair of runs: a shipped recording and silence.
"""

import argparse
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.circuits import Edge, EdgeGraph, EdgeScores, Embedding, find_circuit
from hooked_whisper.circuits.exact import edge_runs
from hooked_whisper.circuits.find import cut_text
from hooked_whisper.digits import recordings
from hooked_whisper.interventions import Example
from hooked_whisper.metrics import LogitDifference
from hooked_whisper.patching import Head, HeadInput
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES
from hooked_whisper.patching.paths import block_of, put_at, read_through, written_at

RESULTS = Path(__file__).parent / "results"
ESTIMATES = ("eap", "eap-ig-inputs", "eap-ig-activations")


class PlainLoop:
    """One run with a hook for each edge."""

    def __init__(self, model: HookedWhisper, clean: Example, corrupted: Example) -> None:
        self.model, self.clean = model, clean
        caches = [model.run_with_cache(run.mel, run.tokens)[1] for run in (clean, corrupted)]
        self.ours, self.theirs = caches

    def __call__(self, edge: Edge, metric: LogitDifference) -> float:
        """The metric with one edge patched."""
        change = self.written(self.theirs, edge.sender) - self.written(self.ours, edge.sender)
        name, norm = read_through(self.model, edge.receiver)
        receiver = edge.receiver
        x = norm(self.ours[name] + change)

        def put(value: Tensor, hook: Any) -> Tensor:
            if not isinstance(receiver, HeadInput):
                return x
            head = receiver.head
            attention = getattr(block_of(self.model, head), head.kind)
            weight = getattr(attention, f"W_{receiver.part.upper()}")[head.head]
            bias = getattr(attention, f"b_{receiver.part.upper()}")[head.head]
            value = value.clone()
            value[:, :, head.head] = x @ weight + bias
            return value

        logits = self.model.run_with_hooks(
            self.clean.mel, self.clean.tokens, fwd_hooks=[(put_at(receiver), put)]
        )
        return float(metric(logits))

    def written(self, cache: Any, node: Any) -> Tensor:
        """What a node adds to its stream."""
        if isinstance(node, Embedding):
            return cache[f"{node.stack}.blocks.0.hook_resid_pre"]
        if not isinstance(node, Head):
            return cache[written_at(node)]
        W_O = getattr(block_of(self.model, node), node.kind).W_O[node.head]
        return cache[written_at(node)][:, :, node.head] @ W_O


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, seconds by the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label", required=True)
    parser.add_argument("--weights", default="digits")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", type=int, default=40)
    parser.add_argument("--senders", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model = HookedWhisper.from_pretrained(args.weights, device="cpu")
    said = recordings()[0]
    clean = Example.from_audio(model, said.path, f" {said.text}", language="en")
    corrupted = clean.with_silence()
    pos = clean.n_pos - 2
    wrong = int(model(corrupted.mel, clean.tokens)[0, pos].topk(2).indices[1])
    right = int(clean.tokens[0, pos + 1])
    metric = LogitDifference(right, wrong if wrong != right else 0, pos=pos)
    pair: Any = (clean, corrupted)

    edges = EdgeGraph.of(model.cfg).edges
    values, *taken = exact_values(model, clean, corrupted, metric, args.senders)
    known = (~values.isnan()).nonzero().flatten().tolist()
    rows = [("exact, all edges", *taken, f"{len(known)} edges timed")]
    plain = PlainLoop(model, clean, corrupted)
    drawn = random.Random(0).sample(known, args.plain)
    plain(edges[drawn[0]], metric)
    plain_values, *taken = timed(lambda: [plain(edges[i], metric) for i in drawn])
    scale = len(edges) / len(drawn)
    error = float((torch.tensor(plain_values) - values[drawn]).abs().max())
    note = f"{len(drawn)} edges timed; differs by {error:.1e} at most"
    rows.append(("plain loop, all edges", *(scale * each for each in taken), note))
    for method in ESTIMATES:
        with torch.enable_grad():
            found, *taken = timed(
                lambda method=method: find_circuit(model, pair, metric, method, progress=False)
            )
        rows.append((method, *taken, "r " + ", ".join(_correlations(values, found))))
    lines = [
        f"# Circuits: {model.cfg.model_name}, {len(edges)} edges, cpu, float32",
        "",
        f"{platform.processor() or platform.machine()}, {args.threads} threads, load "
        f"{os.getloadavg()[0]:.1f}, torch {torch.__version__}, {clean.n_pos} tokens. r: Pearson "
        "correlation with exact scores on encoder, cross and decoder edges.",
        "",
        "| | clock, s | processor, s | times exact, clock | times exact, processor | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, clock, processor, note in rows:
        ratios = f"{clock / rows[0][1]:.3g} | {processor / rows[0][2]:.3g}"
        lines.append(f"| {name} | {clock:.1f} | {processor:.1f} | {ratios} | {note} |")
    page = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.label}.md").write_text(page)
    print(page)


def exact_values(
    model: HookedWhisper, clean: Example, corrupted: Example, metric: LogitDifference, senders: int
) -> tuple[Tensor, float, float]:
    """The metric with each edge patched, NaN where none is, and the seconds that all would take."""
    clean, corrupted, read = cut_text(clean, corrupted, metric)

    (runs, differences), *seconds = timed(
        lambda: edge_runs(model, clean, corrupted, read, DEFAULT_MAX_BYTES)
    )
    values = torch.full((len(runs.graph.edges),), torch.nan)
    for site in runs.graph.sites:
        n = len(site.senders)
        some = (
            range(0, n, max(1, n // senders)) if senders and site.stack == "encoder" else range(n)
        )
        todo = torch.zeros(len(values), dtype=torch.bool)
        todo[site.edges].view(n, -1)[list(some)] = True
        found, *taken = timed(lambda todo=todo: list(runs.patched(differences, todo.clone())))
        for numbers, measured in found:
            values[numbers] = measured
        seconds = [a + b * n / len(some) for a, b in zip(seconds, taken, strict=True)]
    return values, seconds[0], seconds[1]


def _correlations(values: Tensor, found: EdgeScores) -> list[str]:
    both = torch.stack([values, found.values[0]])
    some = [found.graph.of_kind(kind) for kind in ("encoder", "cross", "decoder")]
    some = [numbers[~values[numbers].isnan()] for numbers in some]
    return [f"{float(torch.corrcoef(both[:, numbers])[0, 1]):.3f}" for numbers in some]


if __name__ == "__main__":
    main()
