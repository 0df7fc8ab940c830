"""`hooked-whisper harvest`: from recordings to an activation store."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    DTYPES,
    RESIDUAL_STREAM,
    chosen_recordings,
    hooks_option,
    json_option,
    language_option,
    load_model,
    model_options,
    note,
    out_option,
    quiet_option,
    recordings_argument,
    short_name,
)
from hooked_whisper.cli.output import echo_json
from hooked_whisper.cli.store import summary


@click.command(
    cls=Command,
    examples="""
    hooked-whisper harvest
    hooked-whisper harvest recordings/ --model tiny --hook 'encoder.blocks.*.hook_resid_post'
    hooked-whisper harvest list.csv --text-column sentence --hook 'decoder.*.hook_resid_post'
    hooked-whisper harvest list.csv --model small --out store --workers 8 --batch-size 32
    torchrun --nproc-per-node 8 -m hooked_whisper harvest list.csv --model small --out store
    """,
)
@recordings_argument
@hooks_option(RESIDUAL_STREAM)
@out_option("The folder of the store", "MODEL-store")
@click.option("--dtype", type=DTYPES, default="fp16", help="What is stored.")
@click.option("--all-frames", is_flag=True, help="Store the padding of the window too.")
@click.option(
    "--text",
    type=click.Choice(["label", "transcript"]),
    default="label",
    help="Where the decoder's tokens come from.",
)
@language_option
@click.option("--task", type=click.Choice(["transcribe", "translate"]), default="transcribe")
@click.option(
    "--long",
    type=click.Choice(["split", "cut", "skip"]),
    default="split",
    help="What to do with recordings that are longer than the window.",
)
@click.option("--batch-size", type=click.IntRange(1), default=16, help="Windows side by side.")
@click.option(
    "--recordings-per-shard", type=click.IntRange(1), help="[default: what fills 256 MiB]"
)
@click.option(
    "--workers",
    "n_workers",
    type=click.IntRange(0),
    help="Processes that read audio.  [default: by processors]",
)
@click.option("--text-column", default="text", help="Where a manifest keeps what is said.")
@click.option(
    "--audio-column", help="Where a manifest keeps the paths.  [default: path, audio, ...]"
)
@model_options
@click.option("--note", "remark", default="", help="Put into the manifest.", show_default=False)
@click.option("--strict", is_flag=True, help="Stop at a recording that cannot be used.")
@click.option("--verify", is_flag=True, help="Check all checksums; make damaged shards again.")
@json_option
@quiet_option
def harvest(
    recordings: tuple[Path, ...],
    hooks: tuple[str, ...],
    out: Path | None,
    all_frames: bool,
    source: str,
    device: str | None,
    model_dtype: str,
    remark: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Store a model's activations on RECORDINGS: files, folders, CSV or JSONL manifests.

    The same command goes on after an interruption. Under torchrun, the
    processes share the work.
    """
    from hooked_whisper.distributed import is_first_rank, torchrun_group
    from hooked_whisper.store import harvest as run

    given: Any = recordings[0] if len(recordings) == 1 else list(recordings)
    with torchrun_group() as own_device:
        if not recordings:
            given = chosen_recordings((), quiet or not is_first_rank())
        store = run(
            load_model(source, device or own_device, model_dtype),
            given,
            list(hooks) or RESIDUAL_STREAM,
            out or Path(f"{short_name(source)}-store"),
            frames="all" if all_frames else "speech",
            note=remark,
            progress=not quiet,
            **options,
        )
        if not is_first_rank():
            return
    for each in store.skipped:
        note(f"skipped {each['id']}: {each['reason']}", False)
    if as_json:
        echo_json(summary(store))
    else:
        click.echo(store)
