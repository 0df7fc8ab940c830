"""`hooked-whisper sae suite`: autoencoders of several hooks, widths and k from one pass."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    FILE,
    chosen_recordings,
    hooks_option,
    json_option,
    load_model,
    model_options,
    note,
    out_option,
    quiet_option,
    recordings_argument,
    short_name,
)
from hooked_whisper.cli.training import (
    train_from_store,
    training_config,
    training_logs,
    training_options,
)

DEFAULT_HOOK = "encoder.blocks.*.hook_resid_post"


@click.command(
    cls=Command,
    examples="""
    hooked-whisper sae suite --steps 200 --batch-size 512
    hooked-whisper sae suite --hook encoder.blocks.2.hook_resid_post --k 8 --k 32 --epochs 50
    hooked-whisper sae suite recordings/ --model tiny --latents 1536 --latents 6144 --epochs 3
    hooked-whisper sae suite --store digits-store --hook '*.hook_resid_post' --epochs 50 --out saes
    """,
)
@recordings_argument
@click.option("--store", type=FILE, help="A store that is there already, instead of RECORDINGS.")
@hooks_option(DEFAULT_HOOK)
@click.option(
    "--latents",
    "widths",
    type=click.IntRange(1),
    multiple=True,
    help="Repeat it.  [default: 8 x the width]",
)
@click.option("--k", "ks", type=click.IntRange(1), multiple=True, help="Repeat it.  [default: 32]")
@training_options
@model_options
@out_option("A folder with a folder for each autoencoder", "MODEL-saes")
@json_option
@quiet_option
def suite(
    recordings: tuple[Path, ...],
    store: Path | None,
    hooks: tuple[str, ...],
    widths: tuple[int, ...],
    ks: tuple[int, ...],
    source: str,
    device: str | None,
    model_dtype: str,
    out: Path | None,
    resume: bool,
    tensorboard: bool,
    wandb: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train autoencoders of every --hook, --latents and --k, in one pass over RECORDINGS.

    The recordings' activations are harvested into OUT/activations first, so
    that the model runs once. Of several widths or k, each pair becomes a suite
    of its own, OUT/768-k32 and so on, that the other commands take by --sae.
    """
    from hooked_whisper.hooks.names import match_names
    from hooked_whisper.store import ActivationStore
    from hooked_whisper.store import harvest as run

    if store is not None and recordings:
        raise click.UsageError("give one of RECORDINGS and --store.")
    folder = out or Path(f"{short_name(source)}-saes")
    wanted = list(hooks) or [DEFAULT_HOOK]
    on_log = training_logs(folder, tensorboard, wandb)
    if store is not None:
        found = ActivationStore(store)
    else:
        chosen = chosen_recordings(recordings, quiet)
        model = load_model(source, device, model_dtype)
        found = run(model, chosen, wanted, folder / "activations", progress=not quiet)
    cfgs = {}
    for name in match_names(wanted, found.hook_names):
        for width in widths or (None,):
            for k in ks or (None,):
                place = Path(_variant(width, k, widths, ks), name)
                own = {"d_sae": width, "k": k, **options}
                cfgs[str(place)] = training_config(found, name, folder / place, **own)
    train_from_store(found, cfgs, on_log=on_log, resume=resume, quiet=quiet, as_json=as_json)
    note(f"hooked-whisper sae eval --sae {next(iter(cfgs.values())).folder.parent}", quiet)


def _variant(width: int | None, k: int | None, widths: tuple[int, ...], ks: tuple[int, ...]) -> str:
    """The folder of one width and k, where there are several."""
    parts = [str(width)] if len(widths) > 1 else []
    parts += [f"k{k}"] if len(ks) > 1 else []
    return "-".join(parts)
