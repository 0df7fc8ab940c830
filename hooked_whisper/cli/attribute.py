"""`hooked-whisper attribute`: what patches would do, estimated in a part of their time."""

import click

from hooked_whisper.cli import effects, pairs
from hooked_whisper.cli import options as opt


@opt.command(
    *pairs.RUNS,
    opt.hooks_option(opt.ENCODER_STREAM),
    *effects.PLACES,
    pairs.DIRECTION,
    *pairs.MEASURED,
    opt.option(
        "--steps",
        "n_steps",
        type=opt.COUNT_FROM_1,
        help="Gradients over so many steps everywhere.  [default: the way that pays]",
    ),
    opt.option(
        "--along",
        type=click.Choice(["inputs", "sites"]),
        help="What moves in --steps: mel and embeddings, or one site.  [default: inputs]",
    ),
    opt.option(
        "--reach-s",
        type=opt.FROM_0,
        default=0.5,
        help="How far from a patch in the encoder its effect is followed.",
    ),
    pairs.TOP,
    opt.flag("--resume", help="Go on with the unfinished estimate in the folder."),
    out=("A folder for the table, the plot and the result", "MODEL-attribute"),
    examples="""
    hooked-whisper attribute
    hooked-whisper attribute --hook 'decoder.blocks.*.mlp.hook_post' --per neuron
    hooked-whisper attribute yes.wav no.wav --model tiny.en --window-s 0.25 --out yes-no
    hooked-whisper attribute pairs.csv --model tiny.en --corrupt noise --window-s 0.3
    """,
)
def attribute(args: opt.Options) -> None:
    """Estimate what each patch of `patch` would do, in a part of its time.

    In the encoder a patch is followed near its own time; elsewhere gradients
    are taken where a few true patches agree with them, and true patches where
    they do not. --steps takes gradients alone.

    CLEAN, CORRUPTED and manifests of pairs are those of `patch`. The folder
    gets attribution.csv, attribution.png and attribution.safetensors.
    """
    pairs.check_runs(args)
    if args.along and args.n_steps is None:
        raise click.UsageError("--along is about --steps; give both.")
    from hooked_whisper.patching import attribution_patch

    effects.sweep(
        attribution_patch,
        "attribute",
        "attribution",
        args,
        n_steps=args.n_steps,
        along=args.along,
        reach_s=args.reach_s,
    )
