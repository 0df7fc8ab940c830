"""Options of training autoencoders, and what `sae train` and `sae suite` do with them."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import click

from hooked_whisper.cli.output import echo_json

ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "standard", "jumprelu", "gated")
"""What can be trained here: all but transcoders, which read one hook and write another."""

_PENALTIES = {
    "standard": "l1_coefficient",
    "gated": "l1_coefficient",
    "jumprelu": "l0_coefficient",
}
"""What --sparsity is called."""

_Function = TypeVar("_Function", bound=Callable[..., Any])
_POSITIVE = click.FloatRange(0, min_open=True)
_SHARE = click.FloatRange(0, 1)


def training_options(function: _Function) -> _Function:
    """How each autoencoder is trained."""
    for option in reversed(
        [
            click.option("--architecture", type=click.Choice(ARCHITECTURES), default="topk"),
            click.option("--sparsity", type=float, help="Weight of the L1 or L0 penalty."),
            click.option("--epochs", type=_POSITIVE, help="How often each vector comes."),
            click.option(
                "--vectors", "n_vectors", type=click.IntRange(1), help="Instead of --epochs."
            ),
            click.option("--steps", "n_steps", type=click.IntRange(1), help="Instead of --epochs."),
            click.option(
                "--batch-size", type=click.IntRange(1), default=4096, help="Over all ranks."
            ),
            click.option("--lr", type=_POSITIVE, default=3e-4, help="Learning rate."),
            click.option("--lr-warm-up", type=_SHARE, default=0.02, help="Share of the steps."),
            click.option("--lr-decay", type=_SHARE, default=0.2, help="Share of the steps."),
            click.option("--sparsity-warm-up", type=_SHARE, default=0.05),
            click.option("--dead-after-vectors", type=click.IntRange(1), default=500_000),
            click.option("--clip-grad-norm", type=_POSITIVE, default=1.0),
            click.option(
                "--normalize/--no-normalize", default=True, help="Scale activations to one length."
            ),
            click.option("--seed", type=click.IntRange(0), default=0),
            click.option("--autocast", type=click.Choice(["bf16"]), help="Losses in bfloat16."),
            click.option("--train-device", help="Where to train, such as cuda:1."),
            click.option(
                "--checkpoint-every",
                type=click.IntRange(1),
                default=1000,
                help="Steps between checkpoints.",
            ),
            click.option(
                "--log-every", type=click.IntRange(1), default=100, help="Steps between log lines."
            ),
            click.option("--tensorboard", is_flag=True, help="Log into OUT/tensorboard too."),
            click.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases too."),
            click.option("--resume", is_flag=True, help="Go on from the checkpoints."),
        ]
    ):
        function = option(function)
    return function


def training_config(
    store: Any,
    hook: str,
    folder: Path,
    *,
    architecture: str,
    d_sae: int | None,
    k: int | None,
    sparsity: float | None,
    epochs: float | None,
    train_device: str | None,
    **options: Any,
) -> Any:
    """How to train the autoencoder of one hook of a store."""
    from hooked_whisper.sae import TrainingConfig

    if sum(each is not None for each in (epochs, options["n_vectors"], options["n_steps"])) > 1:
        raise click.UsageError("give one of --epochs, --vectors and --steps.")
    if options["n_vectors"] is None and options["n_steps"] is None:
        options["n_vectors"] = max(1, round((epochs or 1) * store.n_rows(hook)))
    d_in = prod(store.row_shape(hook))
    sae = _config(architecture, d_in=d_in, d_sae=d_sae, hook=hook, k=k, sparsity=sparsity)
    return TrainingConfig(sae, folder=folder, device=train_device, **options)


def training_logs(folder: Path, tensorboard: bool, wandb: str | None) -> list[Any]:
    """What follows the training beside `log.csv`."""
    from hooked_whisper.sae import TensorBoardLog, WandbLog

    logs: list[Any] = [TensorBoardLog(folder / "tensorboard")] if tensorboard else []
    return [*logs, WandbLog(wandb)] if wandb else logs


def train_from_store(
    store: Any,
    cfgs: Mapping[str, Any],
    *,
    on_log: list[Any],
    resume: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train in one pass over a store, and report each autoencoder."""
    from hooked_whisper.distributed import is_first_rank
    from hooked_whisper.sae import train_saes
    from hooked_whisper.store.dataset import Epochs

    seed = next(iter(cfgs.values())).seed
    with _answering_sigterm():
        trained = train_saes(
            cfgs, Epochs(store), seed=seed, resume=resume, progress=not quiet, on_log=on_log
        )
    if not is_first_rank():
        return
    rows = []
    for name, each in trained.items():
        cfg, last = cfgs[name], each.cfg.metadata["training"]
        row = {"hook": each.cfg.hook_name, "d_sae": each.cfg.d_sae, "folder": cfg.folder}
        row |= {key: last[key] for key in ("n_vectors", "fvu", "l0", "dead")}
        rows.append(row)
        if not as_json:
            fvu = "unknown" if last["fvu"] is None else f"{last['fvu']:.3f}"
            click.echo(
                f"{row['hook']}: {row['d_sae']} latents, {last['n_vectors']:,} vectors, "
                f"FVU {fvu}, L0 {last['l0']:.1f}, {last['dead']:.1%} dead, "
                f"in {cfg.folder}"
            )
    if as_json:
        echo_json({"saes": rows})


def _config(
    architecture: str,
    *,
    d_in: int,
    d_sae: int | None,
    hook: str,
    k: int | None,
    sparsity: float | None,
) -> Any:
    """The configuration of an architecture, with the options that it has."""
    from hooked_whisper.errors import SAEConfigError
    from hooked_whisper.sae.registry import config_from_dict

    values: dict[str, Any] = {"architecture": architecture, "d_in": d_in, "hook_name": hook}
    values["d_sae"] = d_sae or 8 * d_in
    if sparsity is not None:
        if architecture not in _PENALTIES:
            raise SAEConfigError(
                f"{architecture} has no penalty; --sparsity is for {', '.join(_PENALTIES)}."
            )
        values[_PENALTIES[architecture]] = sparsity
    if k is not None:
        if architecture in _PENALTIES:
            raise SAEConfigError(f"{architecture} chooses no k latents; give --sparsity.")
        values["k"] = k
    return config_from_dict(values)


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
