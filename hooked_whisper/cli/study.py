"""`hooked-whisper study`: the published study of Whisper-Tiny, on any model and recordings."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    chosen_recordings,
    json_option,
    load_model,
    model_options,
    new_path,
    note,
    out_option,
    overwrite_option,
    quiet_option,
    recordings_argument,
    short_name,
)


@click.command(
    cls=Command,
    examples="""
    hooked-whisper study
    hooked-whisper study recordings/ --model tiny --out tiny-study
    hooked-whisper study --json --quiet
    """,
)
@recordings_argument
@click.option("--sae", "sae_source", help="An autoencoder of the encoder; else one is trained.")
@model_options
@out_option("The folder of the report", "MODEL-study")
@overwrite_option
@json_option
@quiet_option
def study(
    recordings: tuple[Path, ...],
    sae_source: str | None,
    source: str,
    device: str | None,
    model_dtype: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Study a Whisper on RECORDINGS: transcripts, residual stream, attention, an autoencoder.

    The folder gets report.html with pictures, tables and findings, report.json
    with the numbers, and the pages that they link to.
    """
    from hooked_whisper.study import study as run

    folder = new_path(out, f"{short_name(source)}-study", overwrite=overwrite)
    chosen = chosen_recordings(recordings, quiet)
    model = load_model(source, device, model_dtype)
    sae: Any = sae_source
    run(model, chosen, folder, sae=sae, progress=not quiet)
    if as_json:
        click.echo((folder / "report.json").read_text(encoding="utf-8"), nl=False)
        return
    click.echo(folder / "report.html")
    note(f"the numbers are in {folder / 'report.json'}.", quiet)
