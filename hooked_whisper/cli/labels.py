"""`hooked-whisper labels`: a manifest of recordings with what is said when."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt


@opt.command(
    opt.RECORDINGS,
    opt.flag("--words", help="When each word is said, by the model's cross-attention."),
    opt.HEADS,
    opt.flag("--phones", help="Words and phones by forced alignment; English with a text."),
    opt.option(
        "--from",
        "alignments",
        type=opt.FILE,
        help="A folder of TextGrid, CTM, CSV or TSV files, or one of them.",
    ),
    opt.option(
        "--dictionary",
        type=opt.FILE,
        help="More words for --phones: lines of a word and its phones in ARPAbet.",
    ),
    opt.LANGUAGE,
    *opt.MODEL,
    out=("The manifest, JSONL", "labels.jsonl"),
    model=False,
    examples="""
    hooked-whisper labels --words --out digits.jsonl
    hooked-whisper labels list.csv --words --model tiny.en --out words.jsonl
    hooked-whisper labels list.csv --phones --out phones.jsonl
    hooked-whisper labels recordings/ --from textgrids/ --out labelled.jsonl
    """,
)
def labels(args: opt.Options) -> None:
    """Write a manifest of RECORDINGS with the times of their words or phones.

    Every other command takes the manifest as its RECORDINGS. Of several
    sources the later one in this order has the last word: --words, --phones,
    --from.
    """
    from hooked_whisper.data.labelling import (
        add_alignments,
        align_phones,
        align_words,
        write_manifest,
    )

    if not (args.words or args.phones or args.alignments):
        raise click.UsageError("pass --words, --phones or --from, or several of them.")
    if args.dictionary and not args.phones:
        raise click.UsageError("--dictionary is for --phones.")
    path = opt.new_path(args.out or Path("labels.jsonl"), overwrite=args.overwrite)
    found: Any = args.listed_recordings()
    progress = not args.quiet
    with args.noting_warnings():
        if args.words:
            model = args.load_model()
            found = align_words(model, found, language=args.language, progress=progress)
        if args.phones:
            more = _pronunciations(args.dictionary) if args.dictionary else None
            found = align_phones(found, pronunciations=more, progress=progress)
        if args.alignments:
            found = add_alignments(found, args.alignments)
    write_manifest(found, path)
    rows = [
        {"recording": each.id, **{name: len(pieces) for name, pieces in each.timed.items()}}
        for each in found
    ]
    if args.as_json:
        opt.echo_json({"manifest": path, "recordings": rows})
    else:
        click.echo(path)


def _pronunciations(path: Path) -> dict[str, str]:
    """The lines of a dictionary file, in the form of CMU's."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is no text in UTF-8: {error}.") from error
    pairs = (line.split(None, 1) for line in lines if line.strip() and not line.startswith(";;;"))
    return {word: "".join(phones) for word, *phones in pairs}
