"""`hooked-whisper sae train` and `sae suite`: autoencoders of activations."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt

ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "standard", "jumprelu", "gated")
"""What can be trained here: all but transcoders, which read one hook and write another."""

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
    opt.option("--epochs", type=opt.OVER_0, help="How often each vector comes."),
    opt.option("--vectors", "n_vectors", type=opt.COUNT_FROM_1, help="Instead of --epochs."),
    opt.option("--steps", "n_steps", type=opt.COUNT_FROM_1, help="Instead of --epochs."),
    opt.option("--batch-size", type=opt.COUNT_FROM_1, default=4096, help="Over all ranks."),
    opt.option("--lr", type=opt.OVER_0, default=3e-4, help="Learning rate."),
    opt.option("--lr-warm-up", type=_SHARE, default=0.02, help="Share of the steps."),
    opt.option("--lr-decay", type=_SHARE, default=0.2, help="Share of the steps."),
    opt.option("--sparsity-warm-up", type=_SHARE, default=0.05),
    opt.option("--dead-after-vectors", type=opt.COUNT_FROM_1, default=500_000),
    opt.option("--clip-grad-norm", type=opt.OVER_0, default=1.0),
    opt.option("--normalize/--no-normalize", default=True, help="Scale activations to one length."),
    opt.option("--seed", type=opt.COUNT, default=0),
    opt.option("--autocast", type=click.Choice(["bf16"]), help="Losses in bfloat16."),
    opt.option("--train-device", help="Where to train, such as cuda:1."),
    opt.option(
        "--checkpoint-every", type=opt.COUNT_FROM_1, default=1000, help="Steps between checkpoints."
    ),
    opt.option("--log-every", type=opt.COUNT_FROM_1, default=100, help="Steps between log lines."),
    opt.flag("--tensorboard", help="Log into OUT/tensorboard too."),
    opt.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases too."),
    opt.flag("--resume", help="Go on from the checkpoints."),
)
"""How each autoencoder is trained."""


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
    store = ActivationStore(args.store)
    names = match_names(list(args.hooks), store.hook_names)
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
    opt.hooks_option(opt.ENCODER_STREAM),
    opt.option(
        "--latents",
        "widths",
        type=opt.COUNT_FROM_1,
        multiple=True,
        help="Repeat it.  [default: 8 x the width]",
    ),
    opt.option("--k", "ks", type=opt.COUNT_FROM_1, multiple=True, help="Repeat it.  [default: 32]"),
    *TRAINING,
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
    hooks = list(args.hooks) or [opt.ENCODER_STREAM]
    logs = _logs(args, folder)
    if args.store is not None:
        store = ActivationStore(args.store)
    else:
        recordings, progress = args.chosen_recordings(), not args.quiet
        model = args.load_model()
        store = harvest(model, recordings, hooks, folder / "activations", progress=progress)
    cfgs = {}
    for name in match_names(hooks, store.hook_names):
        for width in args.widths or (None,):
            for k in args.ks or (None,):
                place = Path(_variant(width, k, args), name)
                cfgs[str(place)] = _training_config(args, store, name, folder / place, width, k)
    _train_from_store(args, store, cfgs, logs)
    args.note(f"hooked-whisper sae eval --sae {next(iter(cfgs.values())).folder.parent}")


def _variant(width: int | None, k: int | None, args: opt.Options) -> str:
    """The folder of one width and k, where there are several."""
    parts = [str(width)] if len(args.widths) > 1 else []
    parts += [f"k{k}"] if len(args.ks) > 1 else []
    return "-".join(parts)


def _training_config(
    args: opt.Options, store: Any, hook: str, folder: Path, d_sae: int | None, k: int | None
) -> Any:
    """How to train the autoencoder of one hook of a store, with the options that it has."""
    from hooked_whisper.errors import SAEConfigError
    from hooked_whisper.sae import TrainingConfig
    from hooked_whisper.sae.architectures import config_from_dict

    lengths = (args.epochs, args.n_vectors, args.n_steps)
    if sum(length is not None for length in lengths) > 1:
        raise click.UsageError("give one of --epochs, --vectors and --steps.")
    architecture, d_in = args.architecture, prod(store.row_shape(hook))
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
    given = {option.name: getattr(args, option.name or "") for option in TRAINING}
    own = {name: value for name, value in given.items() if name in TrainingConfig.__annotations__}
    if args.n_vectors is None and args.n_steps is None:
        own["n_vectors"] = max(1, round((args.epochs or 1) * store.n_rows(hook)))
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
    from hooked_whisper.store.dataset import Epochs

    with _answering_sigterm():
        trained = train_saes(
            cfgs,
            Epochs(store),
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
        row |= {key: last[key] for key in ("n_vectors", "fvu", "l0", "dead")}
        rows.append(row)
        if not args.as_json:
            fvu = "unknown" if last["fvu"] is None else f"{last['fvu']:.3f}"
            click.echo(
                f"{row['hook']}: {row['d_sae']} latents, {last['n_vectors']:,} vectors, "
                f"FVU {fvu}, L0 {last['l0']:.1f}, {last['dead']:.1%} dead, "
                f"in {cfg.folder}"
            )
    if args.as_json:
        opt.echo_json({"saes": rows})


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
