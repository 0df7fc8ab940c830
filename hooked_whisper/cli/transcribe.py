"""`hooked-whisper transcribe`: recordings to text, by openai-whisper's own decoding."""

import io
import sys
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt

FORMATS = ("text", "srt", "vtt", "tsv", "json")


@opt.command(
    opt.RECORDINGS,
    *opt.MODEL,
    opt.LANGUAGE,
    opt.TASK,
    opt.option("--beam-size", type=opt.COUNT_FROM_1, help="Beam search instead of greedy."),
    opt.option("--best-of", type=opt.COUNT_FROM_1, help="Samples to choose from."),
    opt.option(
        "--temperature",
        "temperatures",
        type=click.FloatRange(0, 1),
        multiple=True,
        help="Repeated: each is tried when the one before fails.  [default: 0, 0.2, ..., 1]",
    ),
    opt.option("--prompt", help="Text that comes before, for its words and style."),
    opt.flag("--word-timestamps", help="Time every word, by cross-attention."),
    opt.HEADS,
    opt.option("--format", "form", type=click.Choice(FORMATS), default="text"),
    opt.option("--out", type=opt.FILE, help="A folder that gets a file a recording."),
    opt.OVERWRITE,
    model=False,
    examples="""
    hooked-whisper transcribe
    hooked-whisper transcribe clip.wav --model tiny.en
    hooked-whisper transcribe clip.wav --model small --language de --beam-size 5
    hooked-whisper transcribe clip.wav --format srt > clip.srt
    hooked-whisper transcribe clip.wav --word-timestamps --alignment-heads heads.json --format srt
    hooked-whisper transcribe recordings/ --format vtt --word-timestamps --out subtitles
    hooked-whisper transcribe --json --quiet
    """,
)
def transcribe(args: opt.Options) -> None:
    """Write down what is said in RECORDINGS: files, folders, CSV or JSONL manifests.

    The text of one recording is printed as it is; several come as a line each,
    with the name before it.
    """
    from tqdm import tqdm

    recordings, form = args.listed_recordings(), args.form
    if form != "text" and args.out is None and len(recordings) > 1:
        raise click.UsageError(f"{form} of {len(recordings)} recordings needs --out FOLDER.")
    paths = _paths(recordings, args) if args.out else [None] * len(recordings)
    model = args.load_model()
    decoding = _decoding(args)
    documents = []
    for recording, path in args.with_bar(zip(recordings, paths, strict=True), "transcribing"):
        told = {"language": recording.language or args.language}
        result = model.transcribe(recording.audio, **decoding, **told)
        documents.append(_document(recording, result))
        if path is not None:
            text = io.StringIO()
            _write(result, form, text)
            _save(path, text.getvalue())
        elif not args.as_json:
            with tqdm.external_write_mode(file=sys.stdout):  # not into the bar's line
                _print(recording, result, form, alone=len(recordings) == 1)
    if args.as_json:
        opt.echo_json({"model": args.source, "recordings": documents})
    elif args.out:
        args.note(f"{len(recordings)} transcripts are in {args.out}.")


def _decoding(args: opt.Options) -> dict[str, Any]:
    """openai-whisper's arguments; what is not given keeps its own default."""
    given = args.besides("temperatures", "prompt", "form", "language")
    wanted = {name: value for name, value in given.items() if value is not None}
    if args.temperatures:
        wanted["temperature"] = tuple(args.temperatures)
    if args.prompt:
        wanted["initial_prompt"] = args.prompt
    return wanted


def _paths(recordings: list[Any], args: opt.Options) -> list[Path]:
    """The file of each recording, none of which is lost."""
    assert args.out is not None
    from hooked_whisper.io import make_folder

    folder = args.out.expanduser()
    names = opt.file_names(recordings, "txt" if args.form == "text" else args.form)
    paths = [folder / name for name in names]
    for path in paths:
        if path.exists():
            opt.new_path(path, overwrite=args.overwrite)
    make_folder(folder)
    return paths


def _document(recording: Any, result: dict[str, Any]) -> dict[str, Any]:
    found = {"id": recording.id, "text": result["text"].strip(), "language": result["language"]}
    if recording.text is not None:
        found["reference"] = recording.text.strip()
    return {**found, "segments": result["segments"]}


def _print(recording: Any, result: dict[str, Any], form: str, *, alone: bool) -> None:
    if form != "text":
        _write(result, form, sys.stdout)
        return
    text = result["text"].strip()
    click.echo(text if alone else f"{recording.id}\t{text}")


def _save(path: Path, text: str) -> None:
    from hooked_whisper.io import write_whole

    write_whole(path, lambda file: file.write(text.encode()))


def _write(result: dict[str, Any], form: str, file: Any) -> None:
    """By openai-whisper's writers."""
    from whisper.utils import get_writer

    writer: Any = get_writer("txt" if form == "text" else form, ".")
    writer.write_result(result, file, {})
    if form == "json":
        file.write("\n")
