"""`hooked-whisper study`: the published study of Whisper-Tiny, on any model and recordings."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    chosen_recordings,
    json_option,
    language_option,
    load_model,
    model_options,
    note,
    out_option,
    overwrite_option,
    quiet_option,
    recordings_argument,
    short_name,
)
from hooked_whisper.cli.output import echo_json


@click.command(
    cls=Command,
    examples="""
    hooked-whisper study
    hooked-whisper study --sae digits --no-pages --json
    hooked-whisper study recordings/ --model tiny --latents 3072 --vectors 2000000 --out tiny
    hooked-whisper study list.csv --model tiny --sae tiny-saes --hook encoder.blocks.3.hook_mlp_out
    """,
)
@recordings_argument
@click.option(
    "--sae", help="An autoencoder, a suite, or digits for the shipped one; else one is trained."
)
@click.option(
    "--hook", "hook_name", help="What it reads.  [default: behind the encoder's last layer]"
)
@click.option("--latents", "n_latents", type=click.IntRange(1), help="[default: 8 x the width]")
@click.option("--k", type=click.IntRange(1), default=32, help="Active latents a vector.")
@click.option(
    "--vectors", "n_vectors", type=click.IntRange(1), default=500_000, help="To train on."
)
@click.option("--pages/--no-pages", default=True, help="Write pages of features and attention.")
@language_option
@click.option("--max-new-tokens", type=click.IntRange(1), help="Of a window's transcript.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the training.")
@model_options
@out_option("The folder of the report", "MODEL-study")
@overwrite_option
@json_option
@quiet_option
def study(
    recordings: tuple[Path, ...],
    source: str,
    device: str | None,
    model_dtype: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Study a Whisper on RECORDINGS: transcripts, residual stream, attention, an autoencoder.

    The folder gets report.html with pictures, tables and findings, report.json
    with the numbers, and the pages that they link to. The same command goes on
    after an interruption.
    """
    from hooked_whisper.study import study as run

    chosen = chosen_recordings(recordings, quiet)
    model = load_model(source, device, model_dtype)
    folder = out or Path(f"{short_name(source)}-study")
    found = run(model, chosen, folder, progress=not quiet, **options)
    if as_json:
        echo_json(found.to_dict())
        return
    for finding in found.findings:
        click.echo(finding)
    note(f"the report is {found.report}, its numbers are in {found.numbers}.", quiet)
