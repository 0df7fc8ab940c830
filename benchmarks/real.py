"""Measure what one does with real Whisper and people's sentences, in processor time.

python -m benchmarks.real --data SHARED/data --sae my-sae            # all, with their own defaults
python -m benchmarks.real --data SHARED/data --sae my-sae --only judging transcribing --clips 8

SHARED/data has whisper/tiny.en.pt and speech/sentences/manifest.csv. One thread; contestants take
turns, who begins moves on every round; ratios are of the same round. Processor time is counted,
that of worker processes too, so that a busy machine can be measured on: on N idle cores nothing
takes less than its N-th part, and what runs in parallel takes about that.
"""

import argparse
import datetime
import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hooked_whisper.study.run as study_run
from benchmarks.harvest import run_bare, run_harvest
from benchmarks.run import RESULTS, cpu_model
from benchmarks.timing import quartiles
from hooked_whisper import HookedWhisper
from hooked_whisper.data import as_recordings
from hooked_whisper.reports import feature_page
from hooked_whisper.sae import evaluate_sae, load_sae
from hooked_whisper.study import study

Ways = dict[str, Callable[[], object]]
BATCH = 8


def processor_s() -> float:
    """Seconds of all cores that this process and those that it waited for have had."""
    return sum(os.times()[:4])


class Real:
    """A model, an autoencoder and recordings, and what is done with them."""

    def __init__(self, data: Path, sae: Path, folder: Path) -> None:
        import whisper

        weights = data / "whisper" / "tiny.en.pt"
        self.model = HookedWhisper.from_pretrained(weights, device="cpu")
        self.openai = whisper.load_model(str(weights), device="cpu")
        self.sae, self.folder = load_sae(sae), folder
        self.recordings = list(as_recordings(data / "speech" / "sentences" / "manifest.csv"))

    def transcribing(self, n: int) -> Ways:
        """Greedy, as openai-whisper does it, one recording after the other."""
        from hooked_whisper.speech import load_audio

        sounds = [load_audio(each.audio).numpy() for each in self.recordings[:n]]
        options: Any = {"temperature": 0.0, "language": "en", "fp16": False}
        return {
            "hooked_whisper": lambda: [self.model.transcribe(each, **options) for each in sounds],
            "openai-whisper": lambda: [self.openai.transcribe(each, **options) for each in sounds],
        }

    def judging(self, n: int) -> Ways:
        """Everything that `sae eval` prints; a loop for both transcripts, and nothing else."""
        some = self.recordings[:n]

        def transcripts() -> None:
            for first in range(0, n, BATCH):
                mel = self.model.to_mel([each.audio for each in some[first : first + BATCH]])
                self.model.generate(mel)
                with self.model.saes([self.sae]):
                    self.model.generate(mel)

        return {
            "sae eval": lambda: evaluate_sae(
                self.sae, self.model, some, all_frames=False, progress=False
            ),
            "both transcripts, each from the sound": transcripts,
        }

    def harvesting(self, n: int) -> Ways:
        """Four hooks stored, against mel and encoder with nothing kept."""
        paths = [Path(each.audio) for each in self.recordings[:n]]
        store = self.folder / "store"
        options: dict[str, Any] = {"frames": "approximate"}
        return {
            "harvest": lambda: run_harvest(self.model, paths, BATCH, store, 0),
            "harvest, approximate": lambda: run_harvest(
                self.model, paths, BATCH, store, 0, **options
            ),
            "mel and encoder, nothing kept": lambda: run_bare(self.model, paths, BATCH),
        }

    def page(self, n: int) -> Ways:
        """A page of all latents."""
        some = self.recordings[:n]
        out = self.folder / "page.html"
        return {
            "feature page": lambda: feature_page(self.model, self.sae, some, out, progress=False)
        }

    def study(self, n: int) -> Ways:
        """The study with an autoencoder given; its parts are printed."""

        def run() -> None:
            study_run.time = _ProcessorClock  # type: ignore[assignment]
            try:
                found = study(
                    self.model,
                    self.recordings[:n],
                    self.folder / "study",
                    sae=self.sae,
                    overwrite=True,
                    progress=False,
                )
            finally:
                study_run.time = time
            self.parts = found.seconds

        return {"study": run}


class _ProcessorClock:
    """In place of the module `time`: parts of a study are timed in processor seconds."""

    monotonic = staticmethod(processor_s)


TASKS = {"transcribing": 8, "judging": 16, "harvesting": 16, "page": 20, "study": 76}
"""With how many recordings each is done."""


def measure(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Each contestant's seconds in every round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(-1 if len(ways) > 1 else 0, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            began = processor_s()
            ways[name]()
            if number >= 0:
                seconds[name].append(processor_s() - began)
    return seconds


def rows_of(seconds: dict[str, list[float]]) -> list[str]:
    """A line of a table for each contestant; ratios are to the last one."""
    base = list(seconds.values())[-1]
    rows = []
    for name, each in seconds.items():
        ratio = quartiles([one / other for one, other in zip(each, base, strict=True)])
        of = quartiles(each)
        rows.append(
            f"| {name} | {of['median']:.2f} | {of['q1']:.2f} to {of['q3']:.2f} | "
            f"{ratio['median']:.3f} | {ratio['q1']:.3f} to {ratio['q3']:.3f} |"
        )
    return rows


def main() -> None:
    """Run what the command line asks for, and write it down."""
    args = _arguments()
    torch.set_num_threads(1)
    lines = [
        f"# Real Whisper, {datetime.date.today()}",
        "",
        f"tiny.en in float32, sentences of 3 to 25 s, {cpu_model()}, one thread, torch "
        f"{torch.__version__}. Processor seconds; medians and quartiles of {args.rounds} rounds in "
        "turn; ratios to the last line of a table.",
    ]
    with tempfile.TemporaryDirectory() as name:
        real = Real(args.data, args.sae, Path(name))
        for task in args.only:
            n = args.clips or TASKS[task]
            before = os.getloadavg()[0]
            rounds = 1 if task in ("page", "study") else args.rounds
            seconds = measure(getattr(real, task)(n), rounds)
            load = f"load {before:.0f} before and {os.getloadavg()[0]:.0f} after"
            latents = f", {real.sae.cfg.d_sae:,} latents" if task not in ("transcribing",) else ""
            lines += ["", f"## {task}: {n} recordings{latents}, {load}", ""]
            lines += ["| who | s | quartiles | ratio | quartiles |", "|---|---|---|---|---|"]
            lines += rows_of(seconds)
            if task == "study":
                parts = ", ".join(f"{part} {each:.0f}" for part, each in real.parts.items())
                lines += ["", f"Its parts, in processor seconds: {parts}."]
            print("\n".join(lines[-8:]), flush=True)
    (RESULTS / f"{args.label}.md").write_text("\n".join(lines) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--clips", type=int, help="recordings of each task")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--label", default=f"{datetime.date.today()}-real-cpu-float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
