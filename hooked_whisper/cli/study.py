"""`hooked-whisper study`: the published study of Whisper-Tiny, on any model and recordings."""

import click

from hooked_whisper.cli import options as opt


@opt.command(
    opt.RECORDINGS,
    opt.option(
        "--sae",
        help="An autoencoder, a suite, or digits for the shipped one; else one is trained.",
    ),
    opt.option(
        "--hook", "hook_name", help="What it reads.  [default: behind the encoder's last layer]"
    ),
    opt.option("--latents", "n_latents", type=opt.COUNT_FROM_1, help="[default: 8 x the width]"),
    opt.option("--k", type=opt.COUNT_FROM_1, default=32, help="Active latents a vector."),
    opt.option(
        "--vectors", "n_vectors", type=opt.COUNT_FROM_1, default=500_000, help="To train on."
    ),
    opt.option("--pages/--no-pages", default=True, help="Write pages of features and attention."),
    opt.LANGUAGE,
    opt.option("--max-new-tokens", type=opt.COUNT_FROM_1, help="Of a window's transcript."),
    opt.option("--seed", type=opt.COUNT, default=0, help="Of the training."),
    out=("The folder of the report", "MODEL-study"),
    examples="""
    hooked-whisper study
    hooked-whisper study --sae digits --no-pages --json
    hooked-whisper study recordings/ --model tiny --latents 3072 --vectors 2000000 --out tiny
    hooked-whisper study list.csv --model tiny --sae tiny-saes --hook encoder.blocks.3.hook_mlp_out
    """,
)
def study(args: opt.Options) -> None:
    """Study a Whisper on RECORDINGS: transcripts, residual stream, attention, an autoencoder.

    The folder gets report.html with pictures, tables and findings, report.json
    with the numbers, and the pages that they link to. The same command goes on
    after an interruption.
    """
    from hooked_whisper.study import study as run

    recordings = args.chosen_recordings()
    found = run(
        args.load_model(),
        recordings,
        args.out_path("study"),
        overwrite=args.overwrite,
        progress=not args.quiet,
        **args.besides(),
    )
    if args.as_json:
        opt.echo_json(found.to_dict())
        return
    for finding in found.findings:
        click.echo(finding)
    args.note(f"the report is {found.report}, its numbers are in {found.numbers}.")
