"""`hooked-whisper harvest`: from recordings to an activation store."""

from pathlib import Path
from typing import Any

import click

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("recordings", nargs=-1, required=True, type=_FILE)
@click.option(
    "--model", "source", required=True, help="A release, digits, a checkpoint or a hub id."
)
@click.option(
    "--hook", "hooks", multiple=True, required=True, help="A hook name or glob; repeat it."
)
@click.option("--out", "folder", required=True, type=_FILE, help="The folder of the store.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp16")
@click.option("--all-frames", is_flag=True, help="Store the padding of the window too.")
@click.option(
    "--text",
    type=click.Choice(["label", "transcript"]),
    default="label",
    help="Where the decoder's tokens come from.",
)
@click.option("--language", default="en")
@click.option("--task", type=click.Choice(["transcribe", "translate"]), default="transcribe")
@click.option(
    "--long",
    type=click.Choice(["split", "cut", "skip"]),
    default="split",
    help="What to do with recordings that are longer than the window.",
)
@click.option("--batch-size", type=click.IntRange(1), default=16)
@click.option("--recordings-per-shard", type=click.IntRange(1))
@click.option("--workers", "n_workers", type=click.IntRange(0), help="Processes that read audio.")
@click.option("--text-column", default="text", help="Where a manifest keeps what is said.")
@click.option("--audio-column", help="Where a manifest keeps the paths.")
@click.option("--device", help="Where the model runs, such as cuda:1.")
@click.option("--model-dtype", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32")
@click.option("--note", default="", help="Put into the manifest.")
@click.option("--strict", is_flag=True, help="Stop at a recording that cannot be used.")
@click.option("--verify", is_flag=True, help="Check all checksums; make damaged shards again.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def harvest(
    recordings: tuple[Path, ...],
    source: str,
    hooks: tuple[str, ...],
    folder: Path,
    all_frames: bool,
    device: str | None,
    model_dtype: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Store a model's activations on RECORDINGS: files, folders, CSV or JSONL manifests.

    The same command goes on after an interruption. Under torchrun, the
    processes share the work.
    """
    from hooked_whisper.harvest import harvest as run
    from hooked_whisper.harvest.identity import as_dtype
    from hooked_whisper.model.whisper import HookedWhisper
    from hooked_whisper.ranks import is_first_rank, torchrun_group

    with torchrun_group() as own_device:
        model = HookedWhisper.from_pretrained(
            source, device=device or own_device, dtype=as_dtype(model_dtype)
        )
        store = run(
            model,
            recordings[0] if len(recordings) == 1 else list(recordings),
            list(hooks),
            folder,
            frames="all" if all_frames else "speech",
            progress=not quiet,
            **options,
        )
        if not is_first_rank():
            return
    click.echo(store)
    for each in store.skipped:
        click.echo(f"skipped {each['id']}: {each['reason']}", err=True)
