"""`hooked-whisper hallucinations`: what a model writes where nobody speaks."""

from pathlib import Path

import click

from hooked_whisper.cli import options as opt

_SHARE = click.FloatRange(0, 1)


@opt.command(
    opt.file_argument("sounds", nargs=-1, required=False),
    opt.option(
        "--speech",
        multiple=True,
        type=opt.FILE,
        help="Speech with texts and speakers; repeat it.  [default: the package's recordings]",
    ),
    opt.option("--generated", type=opt.COUNT, default=6, help="Sounds of each kind to make."),
    opt.option("--sae", help="An autoencoder of the encoder, or a suite, for its latents."),
    opt.option("--hook", "hook_name", help="What it reads, where it does not say so."),
    opt.option(
        "--screened",
        "n_screened",
        type=click.IntRange(2),
        default=12,
        help="Sounds, and windows of speech, on which all heads and edits are measured.",
    ),
    opt.option("--random", "n_random", type=opt.COUNT, default=3, help="Controls of each edit."),
    opt.option("--max-rate", type=_SHARE, default=0.3, help="Of sounds that may still get a text."),
    opt.option(
        "--max-wer-rise", type=_SHARE, default=0.01, help="Of the word error rate; 0.01: a point."
    ),
    opt.LANGUAGE,
    opt.option("--max-new-tokens", type=opt.COUNT_FROM_1, help="Of a window's text."),
    opt.option("--seed", type=opt.COUNT, default=0, help="Of sounds, halves and controls."),
    out=("The folder of the report", "MODEL-hallucinations"),
    examples="""
    hooked-whisper hallucinations --generated 1 --screened 2 --random 1
    hooked-whisper hallucinations other/manifest.csv --speech sentences.csv --model tiny.en
    hooked-whisper hallucinations --speech list.csv --model tiny.en --sae tiny-saes --json
    """,
)
def hallucinations(args: opt.Options) -> None:
    """What a model writes where nobody speaks, what carries it, and edits that stop it.

    SOUNDS hold no speech; noise, tones, hum, clicks and silence are made beside
    them. Edits are chosen on half of the sounds and speakers and judged on the
    others. The same command goes on after an interruption.
    """
    from hooked_whisper.data import as_recordings
    from hooked_whisper.digits import recordings as shipped
    from hooked_whisper.study import hallucination_study

    sounds: tuple[Path, ...] = args.sounds
    speech: tuple[Path, ...] = args.speech
    if not speech:
        args.note("no recordings of speech named: taking those that come with the package.")
    found = hallucination_study(
        args.load_model(),
        [each for path in sounds for each in as_recordings(path)] or None,
        [each for path in speech for each in as_recordings(path)] or shipped(),
        args.out_path("hallucinations"),
        overwrite=args.overwrite,
        progress=not args.quiet,
        **args.besides("sounds", "speech"),
    )
    if args.as_json:
        opt.echo_json(found.to_dict())
        return
    for finding in found.findings:
        click.echo(finding)
    args.note(f"the page is {found.report}, its numbers are in {found.numbers}.")
