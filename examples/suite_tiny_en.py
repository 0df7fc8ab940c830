"""Train a suite of sparse autoencoders on real Whisper, and judge it on speakers it never heard.

    make suite-tiny-en
    python examples/suite_tiny_en.py --model tiny.en.pt --speech speech/ --out build/suite_tiny_en

One pass of the model over all clips keeps the activations of every hook. Then, from them: TopK,
BatchTopK, JumpReLU and ReLU autoencoders of the residual stream behind every block and of the
encoder's output, and TopK transcoders of every MLP, of the encoder and of the decoder, three seeds
each. A third of the speakers is held out. `suite_judging.py` says what is found out of each.

SPEECH holds `sentences/` with texts and speakers, from which phones are aligned, and
`untranscribed/`, which is trained on alone; each with a `manifest.csv` (path, speaker, text).
Without --model and --speech they are looked for in $HOOKED_WHISPER_DATA, or in ../shared/data
beside the checkout. What is done is kept in OUT: the same command goes on after Ctrl-C or a kill,
and OUT/results.json always holds what is judged so far. `docs/make_suite_page.py` makes the tables
and pictures of docs/whisper_tiny_en.md from it.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from suite_judging import Judging

from hooked_whisper import HookedWhisper
from hooked_whisper.data import align_phones, write_manifest
from hooked_whisper.errors import HookedWhisperError
from hooked_whisper.sae import (
    BatchTopKConfig,
    JumpReLUConfig,
    ReLUConfig,
    SAEConfig,
    TopKConfig,
    TrainingConfig,
    TranscoderConfig,
    learning_curve,
    train_saes,
)
from hooked_whisper.store import ActivationStore, Epochs, harvest

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("HOOKED_WHISPER_DATA", REPOSITORY.parent / "shared/data"))
ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "relu", "transcoder")
STACKS = ("encoder", "decoder")
OUTPUT = "encoder.ln_final.hook_normalized"
READ_BY_MLP = {"encoder": "ln2.hook_normalized", "decoder": "ln3.hook_normalized"}
NEURONS = "encoder.blocks.*.mlp.hook_post"
K = 32
EVERY = 3
"""Every third speaker with a text is held out."""


@dataclass(frozen=True)
class Group:
    """Autoencoders that learn side by side in one pass over the activations."""

    architecture: str
    stack: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where they are, below OUT/saes."""
        return Path(self.architecture, f"{self.stack}-seed{self.seed}")


def groups(args: argparse.Namespace) -> Iterator[Group]:
    """What is to be trained: TopK with all seeds first, then one seed of everything, then the rest.

    Whenever training is stopped, there is something to judge.
    """
    wanted = [
        Group(architecture, stack, seed)
        for architecture in args.architectures
        for stack in args.stacks
        for seed in range(args.seeds)
    ]

    def turn(group: Group) -> tuple[bool, bool]:
        first = group.architecture == "topk" and group.stack == "encoder"
        return not first, group.seed > 0

    yield from sorted(wanted, key=turn)


# Activations


def labelled(speech: Path, out: Path) -> list[Path]:
    """The manifests to harvest: sentences with their phones, and clips without texts."""
    labels = out / "labels.jsonl"
    if not labels.exists():
        write_manifest(align_phones(speech / "sentences/manifest.csv"), labels)
    more = speech / "untranscribed/manifest.csv"
    return [labels, more] if more.exists() else [labels]


def all_hooks() -> list[str]:
    """Everything that is read, written or compared with."""
    names = [OUTPUT, NEURONS]
    for stack in STACKS:
        for name in ("hook_resid_post", READ_BY_MLP[stack], "hook_mlp_out"):
            names.append(f"{stack}.blocks.*.{name}")
    return names


def activations(args: argparse.Namespace, model: HookedWhisper) -> ActivationStore:
    """The store of all hooks, made or gone on with; the decoder's over what the model writes."""
    recordings: Any = labelled(args.speech, args.out)
    folder = args.out / "activations"
    options: dict[str, Any] = {"text": "transcript", "batch_size": 8, "progress": True}
    return harvest(model, recordings, all_hooks(), folder, **options)


def held_out_speakers(store: ActivationStore) -> list[str]:
    """Every third of the speakers whose sentences have phones, by name."""
    with_phones = [entry.labels for entry in store.recordings() if "phone" in entry.labels]
    return sorted({labels["speaker"] for labels in with_phones})[EVERY - 1 :: EVERY]


def recordings_of(store: ActivationStore, speakers: Sequence[str]) -> list[str]:
    """The names of these speakers' recordings."""
    entries = store.recordings()
    return [entry.id for entry in entries if entry.labels.get("speaker") in speakers]


# Autoencoders


def sites(model: HookedWhisper, group: Group) -> list[tuple[str, str]]:
    """What each autoencoder of a group reads, and writes."""
    blocks = [f"{group.stack}.blocks.{i}" for i in range(len(getattr(model, group.stack).blocks))]
    if group.architecture == "transcoder":
        read = READ_BY_MLP[group.stack]
        return [(f"{block}.{read}", f"{block}.hook_mlp_out") for block in blocks]
    names = [f"{block}.hook_resid_post" for block in blocks]
    names += [OUTPUT] if group.stack == "encoder" else []
    return [(name, name) for name in names]


def chosen_sites(args: argparse.Namespace, model: HookedWhisper, group: Group) -> list[Any]:
    """Those that are wanted."""
    wanted = args.hooks or ["*"]
    return [s for s in sites(model, group) if any(fnmatch(s[0], glob) for glob in wanted)]


def sae_config(args: argparse.Namespace, architecture: str, d: int, site: tuple[str, str]) -> Any:
    """One autoencoder; the penalties are those that come to about as many latents at once as K."""
    read, written = site
    n = args.latents if read.startswith("encoder") else args.decoder_latents
    sizes: dict[str, Any] = {"d_in": d, "d_sae": n, "hook_name": read}
    sizes["metadata"] = {"model_name": "tiny.en", "dataset": "docs/whisper_tiny_en.md"}
    made: dict[str, SAEConfig] = {
        "topk": TopKConfig(**sizes, k=K),
        "batchtopk": BatchTopKConfig(**sizes, k=K),
        # thresholds begin where a short training can move them to where they belong
        "jumprelu": JumpReLUConfig(
            **sizes, jumprelu_init_threshold=1.0, jumprelu_bandwidth=0.5, l0_coefficient=args.l0
        ),
        "relu": ReLUConfig(**sizes, l1_coefficient=args.l1),
        "transcoder": TranscoderConfig(**sizes, d_out=d, hook_name_out=written, k=K),
    }
    return made[architecture]


def training(args: argparse.Namespace, sae: SAEConfig, **options: Any) -> TrainingConfig:
    """How each is trained: massive activations are left out, as they would be all that counts."""
    fixed: dict[str, Any] = {"batch_size": 1024, "lr": args.lr, "massive_activations": "exclude"}
    fixed |= {"dead_after_vectors": options["n_vectors"] // 8, "log_every": 100}
    return TrainingConfig(sae, **fixed, **options)


def train(args: argparse.Namespace, model: HookedWhisper, source: Epochs, group: Group) -> None:
    """Train a group, or go on with it; one that is done is left as it is."""
    folder = args.out / "saes" / group.folder
    chosen = chosen_sites(args, model, group)
    missing = [s for s in chosen if not (folder / s[0] / "sae_weights.safetensors").exists()]
    begun = [site for site in missing if (folder / site[0]).exists()]
    if not missing:
        return
    wanted = chosen if begun else missing  # what was begun together goes on together
    n_vectors = args.vectors if group.stack == "encoder" else args.decoder_vectors
    cfgs = {
        read: training(
            args,
            sae_config(args, group.architecture, model.cfg.d_model, (read, written)),
            n_vectors=n_vectors,
            seed=group.seed,
            folder=folder / read,
            checkpoint_every=200,
        )
        for read, written in wanted
    }
    print(f"{group.folder}: {len(cfgs)} autoencoders, {n_vectors:,} vectors each", flush=True)
    train_saes(cfgs, source, seed=group.seed, resume=bool(begun))


def curve(args: argparse.Namespace, source: Epochs, d_model: int) -> list[dict[str, Any]]:
    """What more minutes of sound give a TopK autoencoder of the encoder's output."""
    sae = sae_config(args, "topk", d_model, (OUTPUT, OUTPUT))
    found = learning_curve(training(args, sae, n_vectors=args.vectors), source)
    return [dict(point) for point in found.points]


# The command line


def check(args: argparse.Namespace) -> None:
    """End with what is missing where there are no weights or clips."""
    if not args.model.exists():
        sys.exit(
            f"there are no weights in {args.model}. Name OpenAI's tiny.en.pt with --model, or in "
            "HOOKED_WHISPER_DATA the folder that holds whisper/tiny.en.pt."
        )
    if not (args.speech / "sentences/manifest.csv").exists():
        sys.exit(
            f"there is no {args.speech / 'sentences/manifest.csv'}. Name with --speech, or in "
            "HOOKED_WHISPER_DATA as speech/, a folder with sentences/manifest.csv (path, speaker, "
            "text), and untranscribed/manifest.csv (path, speaker) if there are more clips."
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DATA / "whisper/tiny.en.pt")
    parser.add_argument("--speech", type=Path, default=DATA / "speech")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/suite_tiny_en")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=STACKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hooks", nargs="+", help="of those, the ones that are read: globs")
    parser.add_argument("--latents", type=int, default=1536)
    parser.add_argument("--decoder-latents", type=int, default=768)
    parser.add_argument("--vectors", type=int, default=600_000, help="for each autoencoder")
    parser.add_argument("--decoder-vectors", type=int, default=150_000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--l0", type=float, default=0.2, help="JumpReLU's penalty")
    parser.add_argument("--l1", type=float, default=1.5, help="ReLU's penalty")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compared-seeds", type=int, default=1, help="that are asked for phones")
    parser.add_argument("--spliced-each", type=int, default=7, help="sentences of a held-out voice")
    parser.add_argument("--train-only", action="store_true", help="judge later")
    args = parser.parse_args()
    check(args)
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    model = HookedWhisper.from_pretrained(str(args.model))
    store = activations(args, model)
    held_out = held_out_speakers(store)
    source = Epochs(store, recordings_of(store, held_out))
    print(f"{source}\nheld out: {', '.join(held_out)}", flush=True)
    for group in groups(args):
        train(args, model, source, group)
    if not args.train_only:
        judging = Judging(args, model, store, held_out)
        judging.run()
        judging.once(f"curve/{OUTPUT}", lambda: curve(args, source, model.cfg.d_model))
    print(f"{(time.monotonic() - start) / 60:.0f} minutes", flush=True)


if __name__ == "__main__":
    try:
        main()
    except HookedWhisperError as error:
        sys.exit(f"Error: {error}")
