"""`hooked-whisper features`: a page of what latents or neurons respond to."""

from pathlib import Path

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    chosen_recordings,
    json_option,
    load_model,
    model_options,
    new_path,
    out_option,
    overwrite_option,
    quiet_option,
    recordings_argument,
    short_name,
)
from hooked_whisper.cli.output import echo_json
from hooked_whisper.cli.sae_eval import load_saes

DEFAULT_HOOK = "encoder.blocks.2.hook_resid_post"


@click.command(
    cls=Command,
    examples="""
    hooked-whisper features
    hooked-whisper features --hook encoder.blocks.3.hook_resid_post --out layer3.html
    hooked-whisper features recordings/ --model tiny --sae tiny-saes
    hooked-whisper features --neurons --hook encoder.blocks.2.mlp.hook_post
    """,
)
@recordings_argument
@click.option("--sae", "sae_source", default="digits", help="An autoencoder, or a suite's folder.")
@click.option("--hook", help=f"Which of a suite, or of the neurons.  [default: {DEFAULT_HOOK}]")
@click.option("--neurons", is_flag=True, help="The neurons of --hook instead of latents.")
@model_options
@out_option("The HTML file", "MODEL-features.html")
@overwrite_option
@json_option
@quiet_option
def features(
    recordings: tuple[Path, ...],
    sae_source: str,
    hook: str | None,
    neurons: bool,
    source: str,
    device: str | None,
    model_dtype: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a page of what each latent responds to on RECORDINGS, to look at and to listen to.

    A table with search and sort; for each latent the moments at which it is
    most active, with sound. One file, no network.
    """
    from hooked_whisper.pages.features import feature_page

    path = new_path(out, f"{short_name(source)}-features.html", overwrite=overwrite)
    chosen = chosen_recordings(recordings, quiet)
    model = load_model(source, device, model_dtype)
    hook, sae = hook or DEFAULT_HOOK, None
    if not neurons:
        ((hook, sae),) = load_saes(sae_source, (hook,), model).items()
    feature_page(model, sae, chosen, path, hook_name=hook)
    if as_json:
        echo_json({"page": path, "bytes": path.stat().st_size})
    else:
        click.echo(path)
