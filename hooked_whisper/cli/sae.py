"""`hooked-whisper sae`: sparse autoencoders of a store's activations."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import click

_STORE = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1)

ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "standard", "jumprelu", "gated")
"""What can be trained here: all but transcoders, which read one hook and write another."""

_PENALTIES = {
    "standard": "l1_coefficient",
    "gated": "l1_coefficient",
    "jumprelu": "l0_coefficient",
}
"""What --sparsity is called."""


@click.group()
def sae() -> None:
    """Train sparse autoencoders."""


@sae.command()
@click.argument("store", type=_STORE)
@click.option(
    "--hook", "hooks", multiple=True, required=True, help="A hook name or glob; repeat it."
)
@click.option("--out", "folder", required=True, type=_FILE, help="The folder to write.")
@click.option("--architecture", type=click.Choice(ARCHITECTURES), default="topk")
@click.option("--latents", "d_sae", type=click.IntRange(1), help="How many. Default: 8 x width.")
@click.option("--k", type=click.IntRange(1), help="Active latents a vector, where they are chosen.")
@click.option("--sparsity", type=float, help="Weight of the L1 or L0 penalty, where there is one.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="Default: 1.")
@click.option("--vectors", "n_vectors", type=click.IntRange(1), help="Instead of --epochs.")
@click.option("--steps", "n_steps", type=click.IntRange(1), help="Instead of --epochs.")
@click.option("--batch-size", type=click.IntRange(1), default=4096, help="Over all ranks.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=3e-4)
@click.option("--lr-warm-up", type=_SHARE, default=0.02)
@click.option("--lr-decay", type=_SHARE, default=0.2)
@click.option("--sparsity-warm-up", type=_SHARE, default=0.05)
@click.option("--dead-after-vectors", type=click.IntRange(1), default=500_000)
@click.option("--clip-grad-norm", type=click.FloatRange(0, min_open=True), default=1.0)
@click.option("--normalize/--no-normalize", default=True, help="Scale activations to one length.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--autocast", type=click.Choice(["bf16"]), help="Compute losses in bfloat16.")
@click.option("--device", help="Where to train, such as cuda:1.")
@click.option(
    "--checkpoint-every", type=click.IntRange(1), default=1000, help="Steps between checkpoints."
)
@click.option("--log-every", type=click.IntRange(1), default=100)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the folder.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def train(
    store: Path,
    hooks: tuple[str, ...],
    folder: Path,
    architecture: str,
    d_sae: int | None,
    k: int | None,
    sparsity: float | None,
    epochs: float | None,
    resume: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train an autoencoder of each hook of the activation store in STORE.

    One hook's goes into the folder itself; those of several become a suite, a
    folder for each, from one pass over the store. Under torchrun, the
    processes share each batch, and a restarted one goes on from the checkpoint.
    """
    from hooked_whisper.errors import InputError
    from hooked_whisper.harvest import ActivationStore
    from hooked_whisper.hooks.names import match_names
    from hooked_whisper.ranks import is_first_rank
    from hooked_whisper.sae import TrainingConfig, train_saes

    found = ActivationStore(store)
    names = match_names(list(hooks), found.hook_names)
    if sum(each is not None for each in (epochs, options["n_vectors"], options["n_steps"])) > 1:
        raise InputError("give one of --epochs, --vectors and --steps.")
    cfgs = {}
    for name in names:
        own = dict(options)
        if own["n_vectors"] is None and own["n_steps"] is None:
            own["n_vectors"] = max(1, round((epochs or 1) * found.n_rows(name)))
        d_in = prod(found.row_shape(name))
        cfgs[name] = TrainingConfig(
            _config(architecture, d_in=d_in, d_sae=d_sae, hook=name, k=k, sparsity=sparsity),
            folder=folder if len(names) == 1 else folder / name,
            **own,
        )
    with _answering_sigterm():
        trained = train_saes(
            cfgs, _Epochs(found), seed=options["seed"], resume=resume, progress=not quiet
        )
    if is_first_rank():
        for name, each in trained.items():
            last = each.cfg.metadata["training"]
            click.echo(
                f"{name}: {last['n_vectors']:,} vectors, FVU {last['fvu']:.3f}, "
                f"L0 {last['l0']:.1f}, {last['dead']:.1%} dead, in {cfgs[name].folder}"
            )


class _Epochs:
    """A store as a source without end, heads side by side."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def stream(
        self,
        hook_names: Any,
        batch_size: int,
        *,
        seed: int = 0,
        skip: int = 0,
        turn: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[str, Any]]:
        """The store's rows, epoch after epoch."""
        options = {"seed": seed, "n_epochs": None, "skip": skip, "turn": turn}
        with closing(self._store.stream(hook_names, batch_size, **options)) as batches:
            for batch in batches:
                yield {name: rows.flatten(1) for name, rows in batch.items()}


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
