"""Every option of every command reaches what the command calls.

Here the package's function is replaced by one that writes down what it is
given; what the functions do is tested where they are. Options that change
what the command itself prints are tested for real.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click
import pytest
from click.testing import Result

from hooked_whisper import HookedWhisper
from hooked_whisper.cli import circuit, main, pairs
from hooked_whisper.digits import FOLDER
from hooked_whisper.patching import MLPLayer
from hooked_whisper.store import harvest

Run = Callable[..., Result]
CLIP = FOLDER / "george-7.flac"
HOOK = "encoder.blocks.0.hook_resid_pre"

CALLED = {
    "transcribe": "hooked_whisper.model.whisper:HookedWhisper.transcribe",
    "patch": "hooked_whisper.patching:patch_sweep",
    "circuit": "hooked_whisper.circuits:find_circuit",
    "attribute": "hooked_whisper.patching:attribution_patch",
    "path": "hooked_whisper.patching:path_patch_heads",
    "ablate": "hooked_whisper.patching:patch_sweep",
    "lens": "hooked_whisper.lenses:logit_lens",
    "attention": "hooked_whisper.reports.attention:attention_page",
    "features": "hooked_whisper.reports.features:feature_page",
    "study": "hooked_whisper.study:study",
    "hallucinations": "hooked_whisper.study:hallucination_study",
    "harvest": "hooked_whisper.store:harvest",
    "sae eval": "hooked_whisper.sae:evaluate_saes",
    "sae train": "hooked_whisper.sae:train_saes",
    "sae suite": "hooked_whisper.sae:train_saes",
    "sae curve": "hooked_whisper.sae:learning_curve",
    "labels": "hooked_whisper.data.labelling:align_words",
    "heads": "hooked_whisper.data.alignment_heads:find_alignment_heads",
    "convert": "hooked_whisper.model.whisper:HookedWhisper.save_pretrained",
}
"""What a command calls, in the end."""

TRAINING = [
    ("--architecture jumprelu", "cfg.sae.architecture", "jumprelu"),
    ("--architecture gated --sparsity 0.5", "cfg.sae.l1_coefficient", 0.5),
    ("--vectors 70", "cfg.n_vectors", 70),
    ("--steps 7", "cfg.n_steps", 7),
    ("--epochs 2.5", "cfg.n_vectors", 175),
    ("--batch-size 16", "cfg.batch_size", 16),
    ("--lr 0.01", "cfg.lr", 0.01),
    ("--lr-warm-up 0.5", "cfg.lr_warm_up", 0.5),
    ("--lr-decay 0.5", "cfg.lr_decay", 0.5),
    ("--sparsity-warm-up 0.5", "cfg.sparsity_warm_up", 0.5),
    ("--dead-after-vectors 9", "cfg.dead_after_vectors", 9),
    ("--clip-grad-norm 2", "cfg.clip_grad_norm", 2.0),
    ("--no-normalize", "cfg.normalize", False),
    ("--seed 5", "cfg.seed", 5),
    ("--autocast bf16", "cfg.autocast", "bf16"),
    ("--train-device meta", "cfg.device", "meta"),
    ("--log-every 3", "cfg.log_every", 3),
    ("--massive-activations clip", "cfg.massive_activations", "clip"),
    ("--max-activation-norm-multiple 5", "cfg.max_activation_norm_multiple", 5.0),
    ("--early-stopping 5", "cfg.early_stopping", 5),
    ("--quiet", "progress", False),
]
"""What is alike in all commands that train."""

KEEPING = [
    ("--seed 5", "seed", 5),
    ("--checkpoint-every 3", "cfg.checkpoint_every", 3),
    ("--tensorboard --out s", "on_log[0].folder", Path("s/tensorboard")),
    ("--wandb speech", "on_log[0].project", "speech"),
    ("--resume", "resume", True),
]
"""And in those whose autoencoders are kept."""

CASES = [
    # Command, options, what it shows in, and how.
    ("transcribe", "--language de", "language", "de"),
    ("transcribe", "--language auto", "language", None),
    ("transcribe", "--task translate", "task", "translate"),
    ("transcribe", "--beam-size 3", "beam_size", 3),
    ("transcribe", "--best-of 3", "best_of", 3),
    ("transcribe", "--temperature 0.5", "temperature", (0.5,)),
    ("transcribe", "--temperature 0 --temperature 1", "temperature", (0.0, 1.0)),
    ("transcribe", "--prompt digits", "initial_prompt", "digits"),
    ("transcribe", "--word-timestamps", "word_timestamps", True),
    ("patch", "--direction noising", "direction", "noising"),
    ("patch", "--per head --hook *.hook_z", "per", "head"),
    ("patch", "--per whole", "per", None),
    ("patch", "--hook encoder.*.attn.hook_z", "per", "head"),
    ("patch", "--hook decoder.*.hook_resid_mid", "per", "pos"),
    ("patch", "--hook encoder.*.hook_resid_mid", "per", "window"),
    ("patch", "--hook encoder.hook_embed", "names_filter", ["encoder.hook_embed"]),
    ("patch", "--window-s 0.25", "window_s", 0.25),
    ("patch", "--all-frames", "all_frames", True),
    ("patch", "--quiet", "progress", False),
    ("circuit", "--direction denoising", "direction", "denoising"),
    ("circuit", "--method exact", "method", "exact"),
    ("circuit", "--steps 3", "n_steps", 3),
    ("circuit", "--out s", "save_to", Path("s/scores.safetensors")),
    ("circuit", "--quiet", "progress", False),
    ("attribute", "--direction noising", "direction", "noising"),
    ("attribute", "--hook encoder.hook_embed", "names_filter", ["encoder.hook_embed"]),
    ("attribute", "--per whole", "per", None),
    ("attribute", "--window-s 0.25", "window_s", 0.25),
    ("attribute", "--all-frames", "all_frames", True),
    ("attribute", "", "n_steps", None),
    ("attribute", "--steps 3 --along sites", "n_steps", 3),
    ("attribute", "--steps 3 --along sites", "along", "sites"),
    ("attribute", "--reach-s 2", "reach_s", 2.0),
    ("attribute", "--quiet", "progress", False),
    ("path", "", "receivers", ["logits"]),
    ("path", "--to decoder.3.mlp", "receivers", [MLPLayer("decoder", 3)]),
    ("path", "--no-mlps", "with_mlps", False),
    ("path", "--direction noising", "direction", "noising"),
    ("path", "--max-rows 3", "max_rows", 3),
    ("path", "--quiet", "progress", False),
    ("ablate", f"{CLIP}", "len(clean)", 1),
    ("ablate", f"{CLIP}", "corrupted", "zero"),
    ("ablate", f"{CLIP} --per whole", "per", None),
    ("ablate", f"{CLIP} --window-s 0.25", "window_s", 0.25),
    ("ablate", f"{CLIP} --all-frames", "all_frames", True),
    ("ablate", f"{CLIP} --hook decoder.hook_embed", "names_filter", ["decoder.hook_embed"]),
    ("ablate", f"{CLIP} --metric word-error-rate", "type(metric[0]).__name__", "WordErrorRate"),
    ("ablate", f"{CLIP} --with mean --quiet", "type(corrupted).__name__", "WhisperCache"),
    ("lens", f"{CLIP} --quiet", "pos", slice(3, None)),
    ("attention", f"{CLIP}", "recording", CLIP),
    ("attention", "--text seven", "text", " seven"),
    ("attention", "--language de", "language", "de"),
    ("attention", "--language auto", "language", None),
    ("attention", "--cut", "cut", True),
    ("attention", "--max-mb 3", "max_mb", 3.0),
    ("attention", "--out page.html", "out", Path("page.html")),
    ("features", f"{CLIP}", "recordings", [CLIP]),
    ("features", "--sae digits", "hook_name", "encoder.blocks.3.hook_resid_post"),
    ("features", "--hook encoder.blocks.1.*", "hook_name", "encoder.blocks.1.hook_resid_post"),
    ("features", "--neurons", "source", None),
    ("features", "--neurons", "hook_name", "encoder.blocks.3.mlp.hook_post"),
    ("features", "--latent 3 --latent 5", "latents", [3, 5]),
    ("features", "--clips 3", "n_clips", 3),
    ("features", "--effects 3", "n_effects", 3),
    ("features", "--effect-clips 3", "n_effect_clips", 3),
    ("features", "--amplify 3", "amplify", 3.0),
    ("features", "--max-mb 3", "max_mb", 3.0),
    ("features", "--all-frames", "all_frames", True),
    ("features", "--no-transcribe", "transcribe", False),
    ("features", "--language de", "language", "de"),
    ("features", "--batch-size 3", "batch_size", 3),
    ("features", "--seed 3", "seed", 3),
    ("features", "--title Digits", "title", "Digits"),
    ("features", "--out page.html", "out", Path("page.html")),
    ("features", "--quiet", "progress", False),
    ("study", f"{CLIP}", "recordings", [CLIP]),
    ("study", "--sae digits", "sae", "digits"),
    ("study", "--hook encoder.hook_embed", "hook_name", "encoder.hook_embed"),
    ("study", "--latents 64", "n_latents", 64),
    ("study", "--k 3", "k", 3),
    ("study", "--vectors 3", "n_vectors", 3),
    ("study", "--no-pages", "pages", False),
    ("study", "--language de", "language", "de"),
    ("study", "--max-new-tokens 3", "max_new_tokens", 3),
    ("study", "--seed 3", "seed", 3),
    ("study", "--out s", "folder", Path("s")),
    ("study", "", "folder", Path("digits-study")),
    ("study", "--overwrite", "overwrite", True),
    ("study", "--quiet", "progress", False),
    ("hallucinations", f"{CLIP}", "sounds[0].id", str(CLIP)),
    ("hallucinations", f"--speech {CLIP}", "speech[0].id", str(CLIP)),
    ("hallucinations", "--generated 2", "generated", 2),
    ("hallucinations", "--sae digits", "sae", "digits"),
    ("hallucinations", f"--hook {HOOK}", "hook_name", HOOK),
    ("hallucinations", "--screened 3", "n_screened", 3),
    ("hallucinations", "--random 1", "n_random", 1),
    ("hallucinations", "--max-rate 0.5", "max_rate", 0.5),
    ("hallucinations", "--max-wer-rise 0.02", "max_wer_rise", 0.02),
    ("hallucinations", "--language de", "language", "de"),
    ("hallucinations", "--max-new-tokens 3", "max_new_tokens", 3),
    ("hallucinations", "--seed 3", "seed", 3),
    ("hallucinations", "--out s", "folder", Path("s")),
    ("hallucinations", "", "folder", Path("digits-hallucinations")),
    ("hallucinations", "--overwrite", "overwrite", True),
    ("hallucinations", "--quiet", "progress", False),
    ("harvest", f"{CLIP}", "recordings", CLIP),
    ("harvest", f"--hook {HOOK} --hook decoder.*", "hooks", [HOOK, "decoder.*"]),
    ("harvest", "", "hooks", "*.hook_resid_post"),
    ("harvest", "", "folder", Path("digits-store")),
    ("harvest", "--out s", "folder", Path("s")),
    ("harvest", "--dtype bf16", "dtype", "bf16"),
    ("harvest", "--all-frames", "frames", "all"),
    ("harvest", "--approximate", "frames", "approximate"),
    ("harvest", "--text transcript", "text", "transcript"),
    ("harvest", "--language de", "language", "de"),
    ("harvest", "--task translate", "task", "translate"),
    ("harvest", "--long skip", "long", "skip"),
    ("harvest", "--batch-size 3", "batch_size", 3),
    ("harvest", "--recordings-per-shard 3", "recordings_per_shard", 3),
    ("harvest", "--workers 0", "n_workers", 0),
    ("harvest", "--text-column said", "text_column", "said"),
    ("harvest", "--audio-column wav", "audio_column", "wav"),
    ("harvest", "--note why", "note", "why"),
    ("harvest", "--strict", "strict", True),
    ("harvest", "--verify", "verify", True),
    ("harvest", "--quiet", "progress", False),
    ("sae eval", "", "list(saes)[0]", "decoder.blocks.0.hook_resid_post"),
    ("sae eval", "--hook encoder.*", "list(saes)[0]", "encoder.blocks.0.hook_resid_post"),
    ("sae eval", "--all-frames", "all_frames", None),
    ("sae eval", "", "all_frames", False),
    ("sae eval", "--no-transcripts", "transcripts", False),
    ("sae eval", "--language de", "language", "de"),
    ("sae eval", "--batch-size 3", "batch_size", 3),
    ("sae eval", "--quiet", "progress", False),
    *[("sae train", *case) for case in (*TRAINING, *KEEPING)],
    ("sae train", "--latents 64", "cfg.sae.d_sae", 64),
    ("sae train", "--k 3", "cfg.sae.k", 3),
    ("sae train", "--out s", "cfg.folder", Path("s")),
    ("sae train", f"--hook {HOOK}", "cfg.sae.hook_name", HOOK),
    *[("sae suite", *case) for case in (*TRAINING, *KEEPING)],
    ("sae suite", "--latents 64", "cfg.sae.d_sae", 64),
    ("sae suite", "--k 3", "cfg.sae.k", 3),
    ("sae suite", "--out s", "cfg.folder", Path("s") / HOOK),
    ("sae suite", f"--hook {HOOK}", "len(cfgs)", 1),
    ("sae suite", "--latents 64 --latents 128 --k 3 --k 4", "len(cfgs)", 4),
    ("sae suite", "--latents 64 --k 3 --k 4", "cfg.folder.parent.name", "k3"),
    ("sae suite", "--latents 64 --latents 65 --k 3 --k 4", "cfg.folder.parent.name", "64-k3"),
    *[("sae curve", *case) for case in TRAINING],
    ("sae curve", "--latents 64", "cfg.sae.d_sae", 64),
    ("sae curve", "--k 3", "cfg.sae.k", 3),
    ("sae curve", f"--hook {HOOK}", "cfg.sae.hook_name", HOOK),
    ("sae curve", "--minutes 1 --minutes 2", "minutes", (1.0, 2.0)),
    ("labels", f"--words {CLIP}", "recordings[0].id", str(CLIP)),
    ("labels", "--words --language de", "language", "de"),
    ("labels", "--words --quiet", "progress", False),
    ("heads", f"{CLIP}", "recordings[0].id", str(CLIP)),
    ("heads", "--language de", "language", "de"),
    ("heads", "--quiet", "progress", False),
    ("convert", "--format huggingface", "format", "huggingface"),
    ("convert", "--format openai", "format", "openai"),
]

PAIR = {
    *("clean", "corrupted", "corrupt", "corrupt_window", "text", "language", "metric"),
    *("corrupt_word", "swap_with", "word", "at_s"),
    *("token", "top", "resume", "out", "overwrite", "as_json"),
}
SEEN = {
    "info": {"hooks", "switched_off", "as_json", "quiet"},
    "transcribe": {"recordings", "form", "out", "overwrite", "as_json", "quiet"},
    "cache": {"all"},
    "patch": PAIR,
    "attribute": PAIR,
    "path": PAIR,
    "ablate": {"language", "top", "resume", "out", "overwrite", "as_json"},
    "lens": {"language", "stack", "no_final_ln", "out", "overwrite", "as_json"},
    "circuit": {
        *("clean", "corrupted", "corrupt", "corrupt_window", "text", "language", "metric"),
        *("corrupt_word", "swap_with", "word", "at_s", "token"),
        *("edges", "choose", "signed", "carried_s", "top", "resume", "overwrite", "as_json"),
    },
    "attention": {"overwrite", "as_json", "quiet"},
    "features": {"overwrite", "as_json"},
    "study": {"as_json"},
    "hallucinations": {"sounds", "as_json"},
    "harvest": {"as_json"},
    "store info": {"folder", "as_json"},
    "store verify": {"folder", "as_json"},
    "sae eval": {"recordings", "sae_source", "as_json"},
    "sae train": {"store", "as_json", "held_out"},
    "sae suite": {"recordings", "store", "as_json", "held_out"},
    "sae curve": {"store", "as_json", "held_out", "out"},
    "labels": {"phones", "alignments", "dictionary", "out", "overwrite", "as_json"},
    "heads": {"form", "out", "overwrite", "as_json"},
    "convert": {"source", "target", "dtype", "as_json"},
}
"""Options whose effect is seen in the command's own tests."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, digits_model: HookedWhisper) -> Path:
    """A store of one recording, 70 rows long, of one hook."""
    folder = tmp_path_factory.mktemp("options") / "store"
    found = harvest(digits_model, CLIP, HOOK, folder, n_workers=0)
    assert found.n_rows(HOOK) == 70
    return folder


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Replaces what a command calls; the dict gets its arguments, and the command ends."""
    found: dict[str, Any] = {}

    def spy_on(command: str) -> dict[str, Any]:
        home, _, name = CALLED[command].partition(":")
        holder = importlib.import_module(home)
        *outer, name = name.split(".")
        for each in outer:
            holder = getattr(holder, each)
        signature = inspect.signature(getattr(holder, name))

        def note(*args: Any, **options: Any) -> None:
            found.update(signature.bind(*args, **options).arguments)
            found.update(found.pop("kwargs", {}))
            raise SystemExit(0)

        monkeypatch.setattr(holder, name, note)
        monkeypatch.setattr(pairs, "make_pairs", lambda *args: [MagicMock()])  # costs some runs
        monkeypatch.setattr(circuit, "make_pairs", lambda *args: [MagicMock()])
        return found

    yield spy_on


CFGS = ("sae train", "sae suite", "sae curve")
"""What trains."""


def command_line(command: str, options: str, store: Path) -> list[str]:
    """The words that call a command with some options, short of what it needs besides."""
    words = [*command.split(), *options.split()]
    if command == "transcribe":
        words.append(str(CLIP))
    if command == "convert":
        words += ["digits", "out.pt"]
    if command in ("sae train", "sae curve"):
        words.append(str(store))
    if command == "sae suite":
        words += ["--store", str(store)]
    if command == "sae curve":
        words += ["--held-out", "0"]  # of one recording
    if command in CFGS and "--hook" not in words:
        words += ["--hook", HOOK]
    if command == "sae train" and "--out" not in words:
        words += ["--out", "sae"]
    return words


def looked_up(found: dict[str, Any], where: str) -> Any:
    """The value that a case is about; None where the command leaves the function's default."""
    if where.isidentifier():
        return found.get(where)
    cfgs = list(found.get("cfgs", {}).values())
    return eval(where, {"cfg": cfgs[0] if cfgs else None, **found})


@pytest.mark.parametrize(
    ("command", "options", "where", "value"),
    CASES,
    ids=[f"{case[0]} {case[1].replace(str(FOLDER), '')}: {case[2]}" for case in CASES],
)
def test_an_option_reaches_the_package(
    run: Run, given: Any, store: Path, command: str, options: str, where: str, value: Any
) -> None:
    found = given(command)
    done = run(*command_line(command, options, store))
    assert done.exit_code == 0 and found, done.output
    assert looked_up(found, where) == value


def commands(group: Any = main, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(commands())
MODEL_OPTIONS = {"source", "device", "model_dtype", "alignment_heads"}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_left_out_here(name: str) -> None:
    command = COMMANDS[name]
    opts = {opt: param.name for param in command.params for opt in param.opts}
    opts |= {opt: param.name for param in command.params for opt in param.secondary_opts}
    words = [word for case in CASES if case[0] == name for word in case[1].split()]
    tested = {opts[word] for word in words if word in opts} | SEEN[name] | MODEL_OPTIONS
    if str(CLIP) in words:
        tested |= {"recordings", "recording"}
    named = {param.name for param in command.params} - {"debug", "help"}
    assert SEEN[name] == {"all"} or named <= tested


WITH_MODEL = [
    name
    for name, each in COMMANDS.items()
    if "model_dtype" in {param.name for param in each.params}
]
"""What takes `--model`; of `labels`, only the words do."""


def least(name: str) -> list[str]:
    """The words that make a command load a model."""
    return [*name.split(), *(["--words"] if name == "labels" else [])]


@pytest.mark.parametrize("name", WITH_MODEL)
def test_the_model_is_the_one_that_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked: list[Any] = []
    heads: list[Any] = []

    def load(source: Any, **options: Any) -> None:
        asked.append((source, str(options["device"]), str(options["dtype"])))
        heads.append(options["alignment_heads"])
        raise SystemExit(0)

    monkeypatch.setattr(HookedWhisper, "from_pretrained", load)
    chosen = ["--model", "folder/tiny.pt", "--device", "meta", "--model-dtype", "bf16"]
    needs_one = name in ("features", "sae eval")  # digits comes with autoencoders, others do not
    own = ["--sae", "digits"] if needs_one else []
    times_words = "alignment_heads" in {param.name for param in COMMANDS[name].params}
    own += ["--alignment-heads", "tiny.en"] if times_words else []
    assert run(*least(name), *chosen, *own).exit_code == 0
    assert run(*least(name)).exit_code == 0
    assert asked[0] == ("folder/tiny.pt", "meta", "torch.bfloat16")
    assert asked[1] == ("digits", "None", "torch.float32")
    assert heads == ["tiny.en" if times_words else None, None]


@pytest.mark.parametrize("name", WITH_MODEL)
def test_what_is_taken_by_default_is_said_unless_quiet(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def load(source: Any, **options: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(HookedWhisper, "from_pretrained", load)
    said = run(*least(name))
    assert "no --model named: taking digits" in said.stderr and said.stdout == ""
    if name not in ("info", "patch", "attribute", "path", "circuit"):
        first = said.stderr.splitlines()[0]
        assert "no recording" in first and "with the package" in first
    assert "taking digits" not in run(*name.split(), "--model", "digits").stderr
    assert run(*least(name), "--quiet").stderr == ""
