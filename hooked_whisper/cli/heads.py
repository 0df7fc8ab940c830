"""`hooked-whisper heads`: the heads of cross-attention that follow the speech."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt

FORMS = ("text", "openai", "huggingface", "whisper.cpp")


@opt.command(
    opt.RECORDINGS,
    opt.LANGUAGE,
    opt.option("--format", "form", type=click.Choice(FORMS), default="text"),
    opt.option("--out", type=opt.FILE, help="A JSON file, for from_pretrained(alignment_heads=)."),
    opt.OVERWRITE,
    *opt.MODEL,
    model=False,
    examples="""
    hooked-whisper heads
    hooked-whisper heads list.csv --model my-tiny.pt --out heads.json
    hooked-whisper heads list.csv --model my-tiny.pt --format whisper.cpp
    """,
)
def heads(args: opt.Options) -> None:
    """Find the alignment heads of a model, from which the times of words are read.

    RECORDINGS have words and their times (hooked-whisper labels --phones makes
    them); without times, the model's own word timing stands in.
    """
    from hooked_whisper.data.alignment_heads import find_alignment_heads

    path: Path | None = args.out and opt.new_path(args.out, overwrite=args.overwrite)
    recordings = args.listed_recordings()
    with args.noting_warnings():
        found = find_alignment_heads(
            args.load_model(), recordings, language=args.language, progress=not args.quiet
        )
    if path is not None:
        found.save(path)
    if args.as_json:
        opt.echo_json(found.to_dict())
    elif args.form == "openai":
        click.echo(found.to_openai())
    elif args.form == "huggingface":
        opt.echo_json(found.to_huggingface())
    elif args.form == "whisper.cpp":
        click.echo(found.to_whisper_cpp())
    else:
        opt.echo_table(
            [
                {
                    "head": f"{layer}.{head}",
                    "chosen": "*" if found.mask[layer, head] else "",
                    "score": float(found.scores[layer, head]),
                    "word starts off by (ms)": 1000 * float(found.errors_s[layer, head]),
                }
                for layer, head in _by_score(found.scores)
            ]
        )
        click.echo(found)


def _by_score(scores: Any) -> list[tuple[int, int]]:
    """Every head, the best first."""
    order: list[int] = scores.flatten().argsort(descending=True).tolist()
    return [divmod(each, scores.shape[1]) for each in order]
