"""`hooked-whisper features`: a page of what latents or neurons respond to."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    batch_option,
    chosen_recordings,
    json_option,
    language_option,
    load_model,
    model_options,
    new_path,
    note,
    out_option,
    overwrite_option,
    quiet_option,
    recordings_argument,
    short_name,
)
from hooked_whisper.cli.output import echo_json
from hooked_whisper.cli.sae_eval import load_saes
from hooked_whisper.errors import InputError

_COUNT = click.IntRange(0)


@click.command(
    cls=Command,
    examples="""
    hooked-whisper features
    hooked-whisper features --hook encoder.blocks.1.hook_resid_post --latent 7 --latent 12
    hooked-whisper features recordings/ --model tiny --sae tiny-saes --clips 6 --out tiny.html
    hooked-whisper features --neurons --hook encoder.blocks.2.mlp.hook_post --effects 0
    """,
)
@recordings_argument
@click.option(
    "--sae",
    "sae_source",
    default="digits",
    help="An autoencoder's file or folder, a suite's folder, or digits for the shipped suite.",
)
@click.option("--neurons", is_flag=True, help="The neurons of --hook instead of latents.")
@click.option(
    "--hook", help="Which of a suite, or whose neurons.  [default: the encoder's last layer]"
)
@click.option(
    "--latent", "latents", type=_COUNT, multiple=True, help="Only these; repeat it.  [default: all]"
)
@click.option("--clips", "n_clips", type=click.IntRange(1), default=10, help="Moments of each.")
@click.option(
    "--effects",
    "n_effects",
    type=_COUNT,
    help="How many get transcripts without them and with more of them.  [default: 24]",
)
@click.option(
    "--effect-clips", "n_effect_clips", type=_COUNT, default=1, help="For how many moments."
)
@click.option("--amplify", type=float, default=4.0, help="What more of one is multiplied with.")
@click.option(
    "--max-mb", type=click.FloatRange(0, min_open=True), default=30.0, help="The file's size."
)
@click.option("--all-frames", is_flag=True, help="Count the padding of the window too.")
@click.option(
    "--transcribe/--no-transcribe", default=True, help="Write down recordings without a text."
)
@language_option
@batch_option
@click.option("--seed", type=_COUNT, default=0, help="Of what is drawn from a latent's range.")
@click.option("--title", help="Of the page.")
@model_options
@out_option("The HTML file", "MODEL-features.html")
@overwrite_option
@json_option
@quiet_option
def features(
    recordings: tuple[Path, ...],
    sae_source: str,
    neurons: bool,
    hook: str | None,
    latents: tuple[int, ...],
    source: str,
    device: str | None,
    model_dtype: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write a page of what each latent responds to on RECORDINGS, to look at and to listen to.

    A table with search and sort; for each latent the moments at which it is
    most active, with sound, and what becomes of the transcript without it. One
    file that works from disk, without a network.
    """
    from hooked_whisper.reports.features import feature_page

    path = new_path(out, f"{short_name(source)}-features.html", overwrite=overwrite)
    chosen = chosen_recordings(recordings, quiet)
    model = load_model(source, device, model_dtype)
    if neurons:
        name, sae = hook or model.hook_names("encoder.blocks.*.mlp.hook_post")[-1], None
    else:
        name, sae = _one(load_saes(sae_source, (hook,) if hook else (), model), model)
    if hook is None:
        note(f"no --hook named: taking {name}.", quiet)
    page = feature_page(
        model,
        sae,
        chosen,
        path,
        hook_name=name,
        latents=list(latents) or None,
        progress=not quiet,
        **options,
    )
    if as_json:
        echo_json({"page": page.path, "hook": name, "features": page.table})
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
