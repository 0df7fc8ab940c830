"""`hooked-whisper features`: a page of what latents or neurons respond to."""

from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.sae import check_there_is_one, load_saes
from hooked_whisper.errors import InputError


@opt.command(
    opt.RECORDINGS,
    opt.SAE,
    opt.flag("--neurons", help="The neurons of --hook instead of latents."),
    opt.option(
        "--hook", help="Which of a suite, or whose neurons.  [default: the encoder's last layer]"
    ),
    opt.option(
        "--latent",
        "latents",
        type=opt.COUNT,
        multiple=True,
        help="Only these; repeat it.  [default: all]",
    ),
    opt.option("--clips", "n_clips", type=opt.COUNT_FROM_1, default=10, help="Moments of each."),
    opt.option(
        "--effects",
        "n_effects",
        type=opt.COUNT,
        help="How many get transcripts without them and with more of them.  [default: 24]",
    ),
    opt.option(
        "--effect-clips", "n_effect_clips", type=opt.COUNT, default=1, help="For how many moments."
    ),
    opt.option("--amplify", type=float, default=4.0, help="What more of one is multiplied with."),
    opt.option("--max-mb", type=opt.OVER_0, default=30.0, help="The file's size."),
    opt.flag("--all-frames", help="Count the padding of the window too."),
    opt.option(
        "--transcribe/--no-transcribe", default=True, help="Write down recordings without a text."
    ),
    opt.LANGUAGE,
    opt.BATCH_SIZE,
    opt.option("--seed", type=opt.COUNT, default=0, help="Of what is drawn from a latent's range."),
    opt.option("--title", help="Of the page."),
    out=("The HTML file", "MODEL-features.html"),
    examples="""
    hooked-whisper features
    hooked-whisper features --hook encoder.blocks.1.hook_resid_post --latent 7 --latent 12
    hooked-whisper features recordings/ --model tiny --sae tiny-saes --clips 6 --out tiny.html
    hooked-whisper features --neurons --hook encoder.blocks.2.mlp.hook_post --effects 0
    """,
)
def features(args: opt.Options) -> None:
    """Write a page of what each latent responds to on RECORDINGS, to look at and to listen to.

    A table with search and sort; for each latent the moments at which it is
    most active, with sound, and what becomes of the transcript without it. One
    file that works from disk, without a network.
    """
    from hooked_whisper.reports.features import feature_page

    if not args.neurons:
        check_there_is_one(args, instead="; or pass --neurons")
    path = args.new_path("features.html")
    chosen = args.chosen_recordings()
    model, hook = args.load_model(), args.hook
    if args.neurons:
        name, sae = hook or model.hook_names("encoder.blocks.*.mlp.hook_post")[-1], None
    else:
        saes = load_saes(args.sae_source, (hook,) if hook else (), model)
        name, sae = _one(saes, model)
    if hook is None:
        args.note(f"no --hook named: taking {name}.")
    page = feature_page(
        model,
        sae,
        chosen,
        path,
        hook_name=name,
        latents=list(args.latents) or None,
        progress=not args.quiet,
        **args.besides("sae_source", "neurons", "hook", "latents"),
    )
    if args.as_json:
        opt.echo_json({"page": page.path, "hook": name, "features": page.table})
    else:
        click.echo(page.path)


def _one(saes: dict[str, Any], model: Any) -> tuple[str, Any]:
    """The autoencoder to show: the only one, or that of the encoder's last layer."""
    in_order = model.hook_names(list(saes))
    in_encoder = [name for name in in_order if name.startswith("encoder")]
    if not in_encoder and len(saes) > 1:
        raise InputError(f"the suite has {', '.join(in_order)}; choose one with --hook.")
    name = (in_encoder or in_order)[-1]
    return name, saes[name]
