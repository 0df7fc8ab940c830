"""What the autoencoders of `suite_tiny_en.py` are worth, on speakers that nothing was chosen on.

Each piece is kept as a file of OUT/judged as soon as it is known, and done once; OUT/results.json
is all of them. By the same rules for all:

- what is given back, on all vectors of the held-out speakers;
- phones: a feature is chosen for each phone on the frames of other speakers, by AUROC for the
  AUROC and by F1 for F1 and precision, and judged on those of the held-out ones. Features are
  the latents of an autoencoder, those of an untrained one, dimensions and principal components of
  the same activations, and the MLP's neurons of the same block, the last three with both signs;
- sparse probes: the same with a logistic regression on the k features that differ most;
- speakers: of those with several sentences, chosen on every other sentence, judged on the rest;
- seeds: cosines of matched decoder rows;
- spliced in alone: cross-entropy recovered, and word error rates of free transcripts.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis import sparse_probe
from hooked_whisper.analysis.selectivity import ActiveLatents, Labels
from hooked_whisper.data import as_recordings
from hooked_whisper.io import write_json
from hooked_whisper.sae import (
    SAEEvaluation,
    TopKConfig,
    decoder_stability,
    evaluate_saes,
    judge_reconstruction,
    load_sae,
    make_sae,
    readout,
)
from hooked_whisper.sae.evaluation.report import evaluation_table
from hooked_whisper.store import ActivationStore

KS = (1, 2, 4, 8, 16, 32)
FEWEST_SENTENCES = 4
"""A speaker is told from others if there are so many of the same voice."""


@dataclass(frozen=True)
class Side:
    """Rows of some recordings of a store, every n-th, and their labels."""

    store: ActivationStore
    names: frozenset[str]
    every: int = 1

    @cached_property
    def entries(self) -> list[Any]:
        """The recordings."""
        return [entry for entry in self.store.recordings() if entry.id in self.names]

    def rows(self, hook: str) -> Tensor:
        """Which rows of a hook."""
        ranges = [self.store.rows_of(entry.index, hook) for entry in self.entries]
        return torch.cat([torch.arange(each.start, each.stop, self.every) for each in ranges])

    def vectors(self, hook: str) -> Tensor:
        """Their activations."""
        return self.store.rows(hook, self.rows(hook), dtype=torch.float32)[hook]

    def labels(self, label: str, hook: str) -> list[Any]:
        """What is said in each, or who speaks."""
        return self.store.labels(label, hook, self.rows(hook))


Features = Callable[[Sequence[Side]], list[Tensor]]
"""What gives the features of both sides: of what chooses and of what judges."""


@dataclass
class Judging:
    """The suite, the store, and who was held out."""

    args: argparse.Namespace
    model: HookedWhisper
    store: ActivationStore
    held_out: Sequence[str]

    def __post_init__(self) -> None:
        self.folder = self.args.out / "judged"
        with_phones = [e for e in self.store.recordings() if "phone" in e.labels]
        by_side: dict[bool, set[str]] = {True: set(), False: set()}
        for entry in with_phones:
            by_side[entry.labels["speaker"] in self.held_out].add(entry.id)
        self.judged_on = Side(self.store, frozenset(by_side[True]))
        self.phones = [Side(self.store, frozenset(by_side[s]), 2) for s in (False, True)]
        halves: list[set[str]] = [set(), set()]
        speakers = sorted({entry.labels["speaker"] for entry in with_phones})
        for speaker in speakers:
            own = [entry.id for entry in with_phones if entry.labels["speaker"] == speaker]
            if len(own) >= FEWEST_SENTENCES:
                halves[0] |= set(own[::2])
                halves[1] |= set(own[1::2])
        self.speakers = [Side(self.store, frozenset(half), 4) for half in halves]

    # What is kept

    def path(self, name: str) -> Path:
        """Where something is kept."""
        return self.folder / f"{name}.json"

    def once(self, name: str, find: Callable[[], Any]) -> None:
        """Find something out and keep it, unless it is there."""
        path = self.path(name)
        if path.exists():
            return
        print(name, flush=True)
        found = find()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        self.write_results()

    def write_results(self) -> None:
        """Everything that is known so far, in one file."""
        found = {
            str(path.relative_to(self.folder))[: -len(".json")]: json.loads(path.read_text())
            for path in sorted(self.folder.rglob("*.json"))
        }
        about = {"held_out": list(self.held_out), "n_recordings": self.store.n_recordings}
        about |= {"minutes_held_out": sum(e.seconds for e in self.judged_on.entries) / 60}
        about |= {"torch": torch.__version__, "machine": platform.machine()}
        write_json(self.args.out / "results.json", {"about": about, "found": found})

    # The suite

    def suites(self) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
        """What is trained: architecture, stack, seed, autoencoders by what they read."""
        for architecture in self.args.architectures:
            for folder in sorted((self.args.out / "saes" / architecture).glob("*-seed*")):
                stack, _, seed = folder.name.partition("-seed")
                done = sorted(each.parent for each in folder.glob("*/sae_weights.safetensors"))
                if done and stack in self.args.stacks:
                    suite = {each.name: load_sae(each) for each in done}
                    yield architecture, stack, int(seed), suite

    def run(self) -> None:
        """Everything that can be judged and is not yet."""
        for architecture, stack, seed, suite in self.suites():
            for hook, sae in suite.items():
                place = f"{architecture}/{seed}/{hook}"
                self.once(f"given back/{place}", partial(self.given_back, sae, hook))
                if stack == "encoder" and seed < self.args.compared_seeds:
                    self.compare(place, hook, self.encoding(sae, hook))
        for hook in self.compared_hooks():
            for name, features in self.baselines(hook).items():
                self.compare(f"{name}/0/{hook}", hook, features)
        self.stability()
        for architecture, _, seed, suite in self.suites():
            if seed == 0:
                self.splice(architecture, suite)
        self.write_results()

    def compared_hooks(self) -> list[str]:
        """Hooks of the encoder of which there are TopK autoencoders."""
        found = [suite for a, stack, _, suite in self.suites() if (a, stack) == ("topk", "encoder")]
        return sorted(set().union(*found)) if found else []

    # What is found out

    def given_back(self, sae: Any, hook: str) -> dict[str, Any]:
        """Fractions of variance unexplained, L0 and what is never active, on held-out speakers."""
        x: Any = self.judged_on.vectors(hook)
        written = getattr(sae.cfg, "hook_name_out", None) or hook
        pair = x if written == hook else (x, self.judged_on.vectors(written))
        numbers = judge_reconstruction(sae, [pair]).to_dict()
        kept = {key: v for key, v in numbers.items() if isinstance(v, int | float)}
        training = sae.cfg.metadata["training"]
        return kept | {"d_sae": sae.cfg.d_sae, "n_trained_on": training["n_vectors"]}

    def baselines(self, hook: str) -> dict[str, Features]:
        """What latents are compared with."""
        last = len(self.model.encoder.blocks) - 1
        block = hook.split(".")[2] if ".blocks." in hook else last
        neurons = f"encoder.blocks.{block}.mlp.hook_post"

        def components(sides: Sequence[Side]) -> list[Tensor]:
            x, y = (side.vectors(hook) for side in sides)
            mean = x.mean(dim=0)
            axes = torch.linalg.svd((x - mean).double(), full_matrices=False).Vh.float()
            return [(each - mean) @ axes.T for each in (x, y)]

        def untrained(sides: Sequence[Side]) -> list[Tensor]:
            x, y = (side.vectors(hook) for side in sides)
            cfg = TopKConfig(d_in=x.shape[1], d_sae=self.args.latents, k=32)
            sae = make_sae(cfg, torch.Generator().manual_seed(0))
            sae.b_dec.data.copy_(x.mean(dim=0))
            return [latents_of(sae, each) for each in (x, y)]

        return {
            "dimensions": lambda sides: [side.vectors(hook) for side in sides],
            "components": components,
            "neurons": lambda sides: [side.vectors(neurons) for side in sides],
            "untrained": untrained,
        }

    def encoding(self, sae: Any, hook: str) -> Features:
        """The latents of an autoencoder."""
        return lambda sides: [latents_of(sae, side.vectors(hook)) for side in sides]

    def compare(self, place: str, hook: str, features: Features) -> None:
        """Phones and speakers by single features and by sparse probes."""
        for label, sides in (("phone", self.phones), ("speaker", self.speakers)):

            def find(label: str = label, sides: Sequence[Side] = sides) -> dict[str, Any]:
                labels = [Labels.of(label, side.labels(label, hook)) for side in sides]
                x, y = features(sides)
                return tell(x, labels[0], y, labels[1])

            self.once(f"{label}s/{place}", find)

    def splice(self, architecture: str, suite: Mapping[str, Any]) -> None:
        """Cross-entropy recovered and word error rates, each autoencoder spliced in alone."""
        names = {hook: f"spliced/{architecture}/{hook}" for hook in suite}
        missing = {h: sae for h, sae in suite.items() if not self.path(names[h]).exists()}
        if not missing:
            return
        per_speaker: dict[Any, list[Any]] = {}
        for each in as_recordings(self.args.out / "labels.jsonl"):
            own = per_speaker.setdefault(each.speaker, [])
            if each.speaker in self.held_out and len(own) < self.args.spliced_each:
                own.append(each)
        chosen = [each for own in per_speaker.values() for each in own]
        print(f"splicing {architecture} into {', '.join(missing)}", flush=True)
        going_on = self.path(f"spliced/{architecture}").with_suffix(".safetensors")
        going_on.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"all_frames": False, "normalize": "english", "batch_size": 4}
        found = evaluate_saes(missing, self.model, chosen, save_to=going_on, **options)
        for hook, evaluation in found.items():
            self.once(names[hook], lambda e=evaluation: numbers_of(e) | {"n": len(chosen)})
        going_on.unlink(missing_ok=True)

    def stability(self) -> None:
        """Cosines of matched decoder rows of every two seeds."""
        found: dict[tuple[str, str], dict[int, Any]] = {}
        for architecture, _, seed, suite in self.suites():
            for hook, sae in suite.items():
                found.setdefault((architecture, hook), {})[seed] = sae
        for (architecture, hook), by_seed in found.items():
            for a in by_seed:
                for b in by_seed:
                    if a < b:
                        self.once(
                            f"seeds/{architecture}/{a}-{b}/{hook}",
                            lambda a=by_seed[a], b=by_seed[b]: decoder_stability(a, b).to_dict(),
                        )


def numbers_of(evaluation: SAEEvaluation) -> dict[str, Any]:
    """What a table shows of a judgement."""
    (row,) = json.loads(evaluation_table([evaluation]).to_json(orient="records"))
    return {key: value for key, value in row.items() if not isinstance(value, str)}


@torch.no_grad()
def latents_of(sae: Any, x: Tensor) -> Tensor:
    """What an autoencoder makes of vectors."""
    return torch.cat([sae.encode(part) for part in x.split(2048)])


def tell(x: Tensor, labels: Labels, y: Tensor, judged: Labels) -> dict[str, Any]:
    """How well single features, and sparse probes, tell a label."""
    signed = bool((x < 0).any())
    sides = [ActiveLatents.of(torch.cat([v, -v], dim=1) if signed else v) for v in (x, y)]
    by_auroc, by_f1 = (
        readout(sides[0], labels, sides[1], judged, choose=how) for how in ("auroc", "f1")
    )
    probes = sparse_probe(x, labels, y, judged, KS)
    return {
        "n_features": x.shape[1],
        "n": [len(x), len(y)],
        "n_values": len(by_f1.values),
        "auroc": by_auroc.mean_auroc,
        "f1": by_f1.mean_f1,
        "precision_at_half": float(by_f1.precision_at_recall.mean()),
        "accuracy": by_f1.accuracy,
        "probes": probes.to_dataframe().to_dict("records"),
        "by_value": json.loads(by_f1.to_dataframe().to_json(orient="records")),
        "auroc_by_value": dict(zip(by_auroc.values, by_auroc.auroc.tolist(), strict=True)),
    }
