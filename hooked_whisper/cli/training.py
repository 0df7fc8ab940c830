"""`hooked-whisper sae train` and `sae suite`: autoencoders of activations."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt

ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "standard", "jumprelu", "gated")
"""What can be trained here: all but transcoders, which read one hook and write another."""

ENCODER_OUTPUT = "encoder.ln_final.hook_normalized"

_PENALTIES = {
    "standard": "l1_coefficient",
    "gated": "l1_coefficient",
    "jumprelu": "l0_coefficient",
}
"""What --sparsity is called."""

_SHARE = click.FloatRange(0, 1)

TRAINING = (
    opt.option("--architecture", type=click.Choice(ARCHITECTURES), default="topk"),
    opt.option("--sparsity", type=float, help="Weight of the L1 or L0 penalty."),
    opt.option(
        "--epochs",
        type=opt.OVER_0,
        help="How often each vector comes.  [default: 1,000 steps' worth]",
    ),
    opt.option("--vectors", "n_vectors", type=opt.COUNT_FROM_1, help="Instead of --epochs."),
    opt.option("--steps", "n_steps", type=opt.COUNT_FROM_1, help="Instead of --epochs."),
    opt.option("--batch-size", type=opt.COUNT_FROM_1, default=1024, help="Over all ranks."),
    opt.option("--lr", type=opt.OVER_0, default=1e-3, help="Learning rate."),
    opt.option("--lr-warm-up", type=_SHARE, default=0.02, help="Share of the steps."),
    opt.option("--lr-decay", type=_SHARE, default=0.2, help="Share of the steps."),
    opt.option("--sparsity-warm-up", type=_SHARE, default=0.05),
    opt.option("--dead-after-vectors", type=opt.COUNT_FROM_1, default=500_000),
    opt.option("--clip-grad-norm", type=opt.OVER_0, default=1.0),
    opt.option("--normalize/--no-normalize", default=True, help="Scale activations to one length."),
    opt.option(
        "--massive-activations",
        type=click.Choice(["exclude", "clip", "normalize"]),
        help="What becomes of vectors that are many times as long as the others.",
    ),
    opt.option(
        "--max-activation-norm-multiple",
        type=click.FloatRange(1, min_open=True),
        default=3.0,
        help="Over so many times the median length, they are massive.",
    ),
    opt.option(
        "--held-out",
        type=click.FloatRange(0, 1, max_open=True),
        help="Share of the recordings to judge on only.  [default: 0.1, of under ten 0]",
    ),
    opt.option(
        "--early-stopping",
        type=opt.COUNT_FROM_1,
        help="Stop after so many log lines without a better held-out FVU.  [default: 5]",
    ),
    opt.option("--seed", type=opt.COUNT, default=0),
    opt.option("--autocast", type=click.Choice(["bf16"]), help="Losses in bfloat16."),
    opt.option("--train-device", help="Where to train, such as cuda:1."),
    opt.option("--log-every", type=opt.COUNT_FROM_1, default=100, help="Steps between log lines."),
)
"""How each autoencoder is trained."""

KEEPING = (
    opt.option(
        "--checkpoint-every", type=opt.COUNT_FROM_1, default=1000, help="Steps between checkpoints."
    ),
    opt.flag("--tensorboard", help="Log into OUT/tensorboard too."),
    opt.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases too."),
    opt.flag("--resume", help="Go on from the checkpoints."),
)
"""What is written while it is trained."""

MIN_STEPS = 1000
"""Steps that a training has unless it is told how many: few vectors come several times."""

HELD_OUT, EARLY_STOPPING = 0.1, 5
"""Share of recordings that are held out, and how many log lines without progress end a training."""

FEWEST = 10
"""Under so many recordings none are held out unless that is asked for."""

PER_LATENT, SEEN = 10, 100
"""With fewer vectors for each latent, or each seen more often, a training says so."""


@opt.command(
    opt.file_argument("store"),
    opt.option(
        "--hook", "hooks", multiple=True, required=True, help="A hook name or glob; repeat it."
    ),
    opt.option("--out", required=True, type=opt.FILE, help="The folder to write."),
    opt.option("--latents", "d_sae", type=opt.COUNT_FROM_1, help="[default: 8 x the width]"),
    opt.option(
        "--k", type=opt.COUNT_FROM_1, help="Active latents a vector, where they are chosen."
    ),
    *TRAINING,
    *KEEPING,
    model=False,
    examples="""
    hooked-whisper sae train digits-store --hook encoder.blocks.2.hook_resid_post --out sae
    hooked-whisper sae train store --hook '*.hook_resid_post' --latents 3072 --k 32 --out saes
    hooked-whisper sae train store --hook '*.hook_mlp_out' --architecture gated --sparsity 2 --out g
    hooked-whisper sae train store --hook '*.hook_mlp_out' --tensorboard --wandb speech --out saes
    torchrun --nproc-per-node 8 -m hooked_whisper sae train store --hook '*.hook_z' --out saes
    """,
)
def train(args: opt.Options) -> None:
    """Train an autoencoder of each hook of the activation store in STORE.

    One hook's goes into the folder itself; those of several become a suite, a
    folder for each, from one pass over the store, an epoch long unless told
    otherwise. The log of each, log.csv, is beside it. Under torchrun, the processes
    share each batch, and a restarted one goes on from the checkpoint.
    """
    from hooked_whisper.hooks.names import match_names
    from hooked_whisper.store import ActivationStore

    folder: Any = args.out
    store = _epochs(args, ActivationStore(args.store))
    names = match_names(list(args.hooks), store.store.hook_names)
    cfgs = {}
    for name in names:
        own_folder = folder if len(names) == 1 else folder / name
        cfgs[name] = _training_config(args, store, name, own_folder, args.d_sae, args.k)
    _train_from_store(args, store, cfgs, _logs(args, folder))


@opt.command(
    opt.RECORDINGS,
    opt.option(
        "--store", type=opt.FILE, help="A store that is there already, instead of RECORDINGS."
    ),
    opt.hooks_option(f"{opt.ENCODER_STREAM}; of real models {ENCODER_OUTPUT} for the last"),
    opt.option(
        "--latents",
        "widths",
        type=opt.COUNT_FROM_1,
        multiple=True,
        help="Repeat it.  [default: 8 x the width]",
    ),
    opt.option("--k", "ks", type=opt.COUNT_FROM_1, multiple=True, help="Repeat it.  [default: 32]"),
    *TRAINING,
    *KEEPING,
    *opt.MODEL,
    opt.out_option("A folder with a folder for each autoencoder", "MODEL-saes"),
    model=False,
    examples="""
    hooked-whisper sae suite --steps 200 --batch-size 512
    hooked-whisper sae suite --hook encoder.blocks.2.hook_resid_post --k 8 --k 32 --epochs 50
    hooked-whisper sae suite recordings/ --model tiny --latents 1536 --latents 6144 --epochs 3
    hooked-whisper sae suite --store digits-store --hook '*.hook_resid_post' --epochs 50 --out saes
    """,
)
def suite(args: opt.Options) -> None:
    """Train autoencoders of every --hook, --latents and --k, in one pass over RECORDINGS.

    The recordings' activations are harvested into OUT/activations first, so
    that the model runs once. Of several widths or k, each pair becomes a suite
    of its own, OUT/768-k32 and so on, that the other commands take by --sae.
    """
    from hooked_whisper.hooks.names import match_names
    from hooked_whisper.store import ActivationStore, harvest

    if args.store is not None and args.recordings:
        raise click.UsageError("give one of RECORDINGS and --store.")
    folder = args.out_path("saes")
    logs = _logs(args, folder)
    if args.store is not None:
        stored = ActivationStore(args.store)
        made_by, names = stored.identity["model"], stored.hook_names
        hooks = list(args.hooks) or _usual_hooks(made_by["name"], made_by["config"], names)
    else:
        recordings, progress = args.chosen_recordings(), not args.quiet
        model = args.load_model()
        name, sizes = model.cfg.model_name, vars(model.cfg)
        hooks = list(args.hooks) or _usual_hooks(name, sizes, model.hook_names())
        stored = harvest(model, recordings, hooks, folder / "activations", progress=progress)
    store = _epochs(args, stored)
    cfgs = {}
    for name in match_names(hooks, stored.hook_names):
        for width in args.widths or (None,):
            for k in args.ks or (None,):
                place = Path(_variant(width, k, args), name)
                cfgs[str(place)] = _training_config(args, store, name, folder / place, width, k)
    _train_from_store(args, store, cfgs, logs)
    args.note(f"hooked-whisper sae eval --sae {next(iter(cfgs.values())).folder.parent}")


def _usual_hooks(model_name: str, sizes: Mapping[str, Any], names: list[str]) -> list[str]:
    """The stream behind every block of the encoder; of real models its output for the last."""
    streams = [name for name in names if fnmatch(name, opt.ENCODER_STREAM)]
    if model_name == "digits" or ENCODER_OUTPUT not in names:
        return streams or [opt.ENCODER_STREAM]
    last = f"encoder.blocks.{sizes['n_audio_layers'] - 1}.hook_resid_post"
    return [*(name for name in streams if name != last), ENCODER_OUTPUT]


def _epochs(args: opt.Options, store: Any) -> Any:
    """The store as a source of training, some of its recordings held out."""
    from hooked_whisper.store import Epochs

    share = args.held_out
    if share is None:
        share = HELD_OUT if store.n_recordings >= FEWEST else 0.0
    return Epochs(store, share)


@opt.command(
    opt.file_argument("store"),
    opt.option("--hook", "hook", required=True, help="A hook name."),
    opt.option("--minutes", type=opt.OVER_0, multiple=True, help="Of sound; repeat it."),
    opt.option("--latents", "d_sae", type=opt.COUNT_FROM_1, help="[default: 8 x the width]"),
    opt.option(
        "--k", type=opt.COUNT_FROM_1, help="Active latents a vector, where they are chosen."
    ),
    *TRAINING,
    opt.option("--out", default="curve", type=opt.FILE, help="Gets OUT.json and OUT.png."),
    model=False,
    examples="""
    hooked-whisper sae curve store --hook encoder.ln_final.hook_normalized
    hooked-whisper sae curve store --hook encoder.ln_final.hook_normalized --minutes 5 --minutes 40
    """,
)
def curve(args: opt.Options) -> None:
    """Train an autoencoder on more and more of the sound of STORE, to see what more would give.

    Each is judged on the same held-out recordings. Without --minutes, a sixteenth of the
    sound, an eighth, and so on.
    """
    from hooked_whisper.io import write_whole
    from hooked_whisper.sae import learning_curve
    from hooked_whisper.store import ActivationStore, Epochs

    share = HELD_OUT if args.held_out is None else args.held_out
    source = Epochs(ActivationStore(args.store), share)
    cfg = replace(_training_config(args, source, args.hook, None, args.d_sae, args.k), folder=None)
    found = learning_curve(cfg, source, args.minutes or None, progress=not args.quiet)
    out: Any = args.out
    figure = found.plot()
    found.save(out.with_suffix(".json"))
    write_whole(out.with_suffix(".png"), lambda file: figure.savefig(file, format="png"))
    if args.as_json:
        opt.echo_json({"hook": found.hook_name, "points": found.points})
        return
    names = ("minutes", "n_rows", "fvu", "held_out_fvu", "held_out_fvu_without_massive")
    opt.echo_table([{name: point[name] for name in names} for point in found.points])


def _variant(width: int | None, k: int | None, args: opt.Options) -> str:
    """The folder of one width and k, where there are several."""
    parts = [str(width)] if len(args.widths) > 1 else []
    parts += [f"k{k}"] if len(args.ks) > 1 else []
    return "-".join(parts)


def _training_config(
    args: opt.Options, store: Any, hook: str, folder: Path | None, d_sae: int | None, k: int | None
) -> Any:
    """How to train the autoencoder of one hook of a store, with the options that it has."""
    from hooked_whisper.errors import SAEConfigError
    from hooked_whisper.sae import TrainingConfig
    from hooked_whisper.sae.architectures import config_from_dict

    lengths = (args.epochs, args.n_vectors, args.n_steps)
    if sum(length is not None for length in lengths) > 1:
        raise click.UsageError("give one of --epochs, --vectors and --steps.")
    architecture, d_in = args.architecture, prod(store.store.row_shape(hook))
    sae = {"architecture": architecture, "d_in": d_in, "hook_name": hook}
    sae["d_sae"] = d_sae or 8 * d_in
    if args.sparsity is not None:
        if architecture not in _PENALTIES:
            raise SAEConfigError(
                f"{architecture} has no penalty; --sparsity is for {', '.join(_PENALTIES)}."
            )
        sae[_PENALTIES[architecture]] = args.sparsity
    if k is not None:
        if architecture in _PENALTIES:
            raise SAEConfigError(f"{architecture} chooses no k latents; give --sparsity.")
        sae["k"] = k
    names = {option.name for option in (*TRAINING, *KEEPING)}
    given = {name: value for name, value in vars(args).items() if name in names}
    own = {name: value for name, value in given.items() if name in TrainingConfig.__annotations__}
    if args.n_vectors is None and args.n_steps is None:
        n = round((args.epochs or 1) * store.n_rows(hook))
        least = 1 if args.epochs else MIN_STEPS * args.batch_size
        own["n_vectors"] = max(least, n)
    if own["early_stopping"] is None and store.has_held_out:
        own["early_stopping"] = EARLY_STOPPING
    return TrainingConfig(config_from_dict(sae), folder=folder, device=args.train_device, **own)


def _logs(args: opt.Options, folder: Path) -> list[Any]:
    """What follows the training beside `log.csv`."""
    from hooked_whisper.sae import TensorBoardLog, WandbLog

    logs: list[Any] = [TensorBoardLog(folder / "tensorboard")] if args.tensorboard else []
    return [*logs, WandbLog(args.wandb)] if args.wandb else logs


def _train_from_store(
    args: opt.Options, store: Any, cfgs: Mapping[str, Any], logs: list[Any]
) -> None:
    """Train in one pass over a store, and report each autoencoder."""
    from hooked_whisper.distributed import is_first_rank
    from hooked_whisper.sae import train_saes
    from hooked_whisper.sae.evaluation.report import is_far

    for remark in dict.fromkeys(r for cfg in cfgs.values() for r in _remarks(cfg, store)):
        args.note(remark)
    with _answering_sigterm():
        trained = train_saes(
            cfgs,
            store,
            seed=args.seed,
            resume=args.resume,
            progress=not args.quiet,
            on_log=logs,
        )
    if not is_first_rank():
        return
    rows = []
    for name, sae in trained.items():
        cfg, last = cfgs[name], sae.cfg.metadata["training"]
        row = {"hook": sae.cfg.hook_name, "d_sae": sae.cfg.d_sae, "folder": cfg.folder}
        row |= {key: last[key] for key in ("n_vectors", "fvu", "l0", "dead", "never_active")}
        row |= {key: value for key, value in last.items() if key.startswith(("fvu_", "held_out_"))}
        rows.append(row)
        if not args.as_json:
            click.echo(_in_words(row))
        if (k := getattr(cfg.sae, "k", None)) and is_far(last.get("held_out_l0"), k):
            args.note(
                f"{row['hook']}: in use, {last['held_out_l0']:.1f} latents are active at once on "
                f"recordings that are held out, and k is {k}: massive activations take the "
                "choice, or there is too little data. Try --massive-activations exclude."
            )
    if args.as_json:
        opt.echo_json({"saes": rows})


def _in_words(row: Mapping[str, Any]) -> str:
    """What came of one training, in one line."""

    def three(prefix: str) -> str:
        found = (row.get(f"{prefix}{name}") for name in ("fvu", "fvu_without_massive"))
        fvu, without = ("-" if each is None else f"{each:.3f}" for each in found)
        return fvu if without == fvu else f"{fvu} ({without} without massive activations)"

    text = f"{row['hook']}: {row['d_sae']} latents, {row['n_vectors']:,} vectors, FVU {three('')}"
    if "held_out_fvu" in row:
        text += f", held out {three('held_out_')}"
    text += f", L0 {row['l0']:.1f}"
    if "held_out_l0" in row:
        text += f", held out {row['held_out_l0']:.1f}"
    dead = "" if row["dead"] is None else f", {row['dead']:.1%} dead"
    return f"{text}, {row['never_active']:.1%} never active{dead}, in {row['folder']}"


def _remarks(cfg: Any, store: Any) -> list[str]:
    """What is to be known of a training before it begins."""
    n = store.n_rows(cfg.sae.hook_name)
    found, d_sae, times = [], cfg.sae.d_sae, cfg.total_vectors / max(1, n)
    if n < PER_LATENT * d_sae:
        found.append(
            f"{n:,} vectors are few for {d_sae:,} latents: what is learned of them may not hold "
            f"for other speech. Harvest more recordings, or train fewer --latents."
        )
    if times > SEEN:
        found.append(
            f"each of {n:,} vectors is to be seen {times:,.0f} times: it may be learned by heart. "
            "Harvest more recordings, hold some out (--held-out), or train fewer --steps."
        )
    return found


@contextmanager
def _answering_sigterm() -> Iterator[None]:
    """While it lasts, SIGTERM (of torchrun, of a cluster) lets the checkpoint be written."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
