"""`hooked-whisper attention`: a page on which heads are seen and heard at work."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    FILE,
    found_language_option,
    json_option,
    load_model,
    model_options,
    new_path,
    note,
    out_option,
    overwrite_option,
    quiet_option,
    short_name,
    spaced,
)
from hooked_whisper.cli.output import echo_json


@click.command(
    cls=Command,
    examples="""
    hooked-whisper attention
    hooked-whisper attention clip.wav --model tiny.en --out clip.html
    hooked-whisper attention clip.wav --text ' three one four'
    hooked-whisper attention speech.mp3 --model small --language auto --cut --max-mb 4
    """,
)
@click.argument("recording", required=False, type=FILE)
@click.option("--text", help="What is said; else the model writes it down.")
@found_language_option
@click.option("--cut", is_flag=True, help="Take the first 30 s of what is longer.")
@click.option(
    "--max-mb",
    type=click.FloatRange(0, min_open=True),
    default=12.0,
    help="Megabytes for the patterns; fewer make them coarser.",
)
@model_options
@out_option("The HTML file", "MODEL-attention.html")
@overwrite_option
@json_option
@quiet_option
def attention(
    recording: Path | None,
    text: str | None,
    language: str,
    cut: bool,
    max_mb: float,
    source: str,
    device: str | None,
    model_dtype: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a page of all heads' attention on a RECORDING, to look at and to listen to.

    Choose heads from small patterns; point at a token or a time to see where
    it looks, and play the recording from there. One file, no network.
    """
    from hooked_whisper.reports.attention import attention_page

    path = new_path(out, f"{short_name(source)}-attention.html", overwrite=overwrite)
    chosen: Any = recording
    if chosen is None:
        from hooked_whisper import digits

        chosen = digits.recordings()[0]
        note(f"no recording named: taking {chosen.path.name}, which comes with the package.", quiet)
    model = load_model(source, device, model_dtype)
    spoken = None if text is None else spaced(text)
    code = None if language == "auto" else language
    page = attention_page(model, chosen, path, text=spoken, language=code, cut=cut, max_mb=max_mb)
    if as_json:
        echo_json({"page": page.path, "bytes": page.n_bytes, "text": page.text, "bins": page.bins})
    else:
        click.echo(path)
