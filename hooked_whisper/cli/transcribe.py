"""`hooked-whisper transcribe`: recordings to text, by openai-whisper's own decoding."""

import sys
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    chosen_recordings,
    file_names,
    found_language_option,
    json_option,
    listed,
    load_model,
    model_options,
    new_path,
    note,
    overwrite_option,
    quiet_option,
    recordings_argument,
    with_bar,
)
from hooked_whisper.cli.output import echo_json

FORMATS = ("text", "srt", "vtt", "tsv", "json")


@click.command(
    cls=Command,
    examples="""
    hooked-whisper transcribe
    hooked-whisper transcribe clip.wav --model tiny.en
    hooked-whisper transcribe clip.wav --model small --language auto --beam-size 5
    hooked-whisper transcribe clip.wav --format srt > clip.srt
    hooked-whisper transcribe recordings/ --format vtt --word-timestamps --out subtitles
    hooked-whisper transcribe --json --quiet
    """,
)
@recordings_argument
@model_options
@found_language_option
@click.option("--task", type=click.Choice(["transcribe", "translate"]), default="transcribe")
@click.option("--beam-size", type=click.IntRange(1), help="Beam search instead of greedy.")
@click.option("--best-of", type=click.IntRange(1), help="Samples to choose from.")
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(0, 1),
    multiple=True,
    help="Repeated: each is tried when the one before fails.  [default: 0, 0.2, ..., 1]",
)
@click.option("--prompt", help="Text that comes before, for its words and style.")
@click.option("--word-timestamps", is_flag=True, help="Time every word, by cross-attention.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text")
@click.option(
    "--out", type=click.Path(path_type=Path), help="A folder that gets a file a recording."
)
@overwrite_option
@json_option
@quiet_option
def transcribe(
    recordings: tuple[Path, ...],
    source: str,
    device: str | None,
    model_dtype: str,
    form: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write down what is said in RECORDINGS: files, folders, CSV or JSONL manifests.

    The text of one recording is printed as it is; several come as a line each,
    with the name before it.
    """
    from tqdm import tqdm

    chosen = listed(chosen_recordings(recordings, quiet))
    if form != "text" and out is None and len(chosen) > 1:
        raise click.UsageError(f"{form} of {len(chosen)} recordings needs --out FOLDER.")
    paths = _paths(chosen, form, out, overwrite=overwrite) if out else [None] * len(chosen)
    model = load_model(source, device, model_dtype)
    wanted = _decoding(model, options)
    documents = []
    for each, path in with_bar(list(zip(chosen, paths, strict=True)), "transcribing", quiet):
        result = model.transcribe(each.audio, **wanted)
        documents.append(_document(each, result))
        if path is not None:
            with path.open("w", encoding="utf-8") as file:
                _write(result, form, file)
        elif not as_json:
            with tqdm.external_write_mode(file=sys.stdout):  # not into the bar's line
                _print(each, result, form, alone=len(chosen) == 1)
    if as_json:
        echo_json({"model": source, "recordings": documents})
    elif out:
        note(f"{len(chosen)} transcripts are in {out}.", quiet)


def _decoding(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """openai-whisper's arguments; what is not given keeps its own default."""
    temperatures, prompt = options.pop("temperatures"), options.pop("prompt")
    wanted = {name: value for name, value in options.items() if value is not None}
    if temperatures:
        wanted["temperature"] = tuple(temperatures)
    if prompt:
        wanted["initial_prompt"] = prompt
    if wanted["language"] == "auto":
        del wanted["language"]
    return wanted


def _paths(chosen: list[Any], form: str, out: Path, *, overwrite: bool) -> list[Path]:
    """The file of each recording, none of which is lost."""
    names = file_names(chosen, "txt" if form == "text" else form)
    paths = [out.expanduser() / name for name in names]
    for path in paths:
        if path.exists():
            new_path(path, "", overwrite=overwrite)
    out.expanduser().mkdir(parents=True, exist_ok=True)
    return paths


def _document(recording: Any, result: dict[str, Any]) -> dict[str, Any]:
    told = {"id": recording.id, "text": result["text"].strip(), "language": result["language"]}
    if recording.text is not None:
        told["reference"] = recording.text.strip()
    return {**told, "segments": result["segments"]}


def _print(recording: Any, result: dict[str, Any], form: str, *, alone: bool) -> None:
    if form != "text":
        _write(result, form, sys.stdout)
        return
    text = result["text"].strip()
    click.echo(text if alone else f"{recording.id}\t{text}")


def _write(result: dict[str, Any], form: str, file: Any) -> None:
    """By openai-whisper's writers."""
    from whisper.utils import get_writer

    writer: Any = get_writer("txt" if form == "text" else form, ".")
    writer.write_result(result, file, {})
    if form == "json":
        file.write("\n")
