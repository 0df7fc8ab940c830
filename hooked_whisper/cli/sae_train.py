"""`hooked-whisper sae train`: autoencoders of a store's activations."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import FILE, json_option, quiet_option
from hooked_whisper.cli.training import (
    train_from_store,
    training_config,
    training_logs,
    training_options,
)


@click.command(
    cls=Command,
    examples="""
    hooked-whisper sae train digits-store --hook encoder.blocks.2.hook_resid_post --out sae
    hooked-whisper sae train store --hook '*.hook_resid_post' --latents 3072 --k 32 --out saes
    hooked-whisper sae train store --hook '*.hook_mlp_out' --architecture gated --sparsity 2 --out g
    hooked-whisper sae train store --hook '*.hook_mlp_out' --tensorboard --wandb speech --out saes
    torchrun --nproc-per-node 8 -m hooked_whisper sae train store --hook '*.hook_z' --out saes
    """,
)
@click.argument("store", type=FILE)
@click.option(
    "--hook", "hooks", multiple=True, required=True, help="A hook name or glob; repeat it."
)
@click.option("--out", "folder", required=True, type=FILE, help="The folder to write.")
@click.option("--latents", "d_sae", type=click.IntRange(1), help="[default: 8 x the width]")
@click.option("--k", type=click.IntRange(1), help="Active latents a vector, where they are chosen.")
@training_options
@json_option
@quiet_option
def train(
    store: Path,
    hooks: tuple[str, ...],
    folder: Path,
    resume: bool,
    tensorboard: bool,
    wandb: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train an autoencoder of each hook of the activation store in STORE.

    One hook's goes into the folder itself; those of several become a suite, a
    folder for each, from one pass over the store, an epoch long unless told
    otherwise. The log of each, log.csv, is beside it. Under torchrun, the processes
    share each batch, and a restarted one goes on from the checkpoint.
    """
    from hooked_whisper.hooks.names import match_names
    from hooked_whisper.store import ActivationStore

    found = ActivationStore(store)
    names = match_names(list(hooks), found.hook_names)
    cfgs = {
        name: training_config(found, name, folder if len(names) == 1 else folder / name, **options)
        for name in names
    }
    on_log = training_logs(folder, tensorboard, wandb)
    train_from_store(found, cfgs, on_log=on_log, resume=resume, quiet=quiet, as_json=as_json)
