"""`hooked-whisper sae eval`: how good autoencoders are."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    batch_option,
    chosen_recordings,
    hooks_option,
    json_option,
    language_option,
    listed,
    load_model,
    model_options,
    quiet_option,
    recordings_argument,
)
from hooked_whisper.cli.output import echo_json, echo_table
from hooked_whisper.errors import SAEFileError

COLUMNS = {
    "hook_name": "hook",
    "frames": "frames",
    "architecture": "architecture",
    "d_sae": "latents",
    "fvu": "FVU",
    "l0": "L0",
    "dead_share": "dead",
    "ce_recovered": "CE recovered",
    "sequence_accuracy": "right",
    "wer": "WER",
}
"""Columns of the printed table; --json has all numbers."""


@click.command(
    cls=Command,
    examples="""
    hooked-whisper sae eval
    hooked-whisper sae eval --hook encoder.blocks.2.hook_resid_post --no-transcripts
    hooked-whisper sae eval list.csv --model tiny --sae tiny-saes --all-frames
    hooked-whisper sae eval --sae sae_folder --hook encoder.blocks.2.hook_resid_post --json
    """,
)
@recordings_argument
@click.option(
    "--sae",
    "sae_source",
    default="digits",
    help="An autoencoder's file or folder, a suite's folder, or digits for the shipped suite.",
)
@hooks_option("every one of the suite")
@click.option("--all-frames", is_flag=True, help="Judge the padding of the window too.")
@click.option(
    "--transcripts/--no-transcripts", default=True, help="Transcribe with each one too: slow."
)
@language_option
@batch_option
@model_options
@json_option
@quiet_option
def evaluate(
    recordings: tuple[Path, ...],
    sae_source: str,
    hooks: tuple[str, ...],
    all_frames: bool,
    transcripts: bool,
    language: str,
    batch_size: int,
    source: str,
    device: str | None,
    model_dtype: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Judge autoencoders on RECORDINGS: what they give back, and what they do to speech.

    Each is spliced in alone. Where texts are known (a manifest's column text),
    transcripts are compared with them; else with the model's own.
    """
    from hooked_whisper.sae.evaluation import evaluate_saes, evaluation_table

    chosen = listed(chosen_recordings(recordings, quiet))
    model = load_model(source, device, model_dtype)
    saes = load_saes(sae_source, hooks, model)
    judged = evaluate_saes(
        saes,
        model,
        chosen,
        all_frames=None if all_frames else False,
        transcripts=transcripts,
        language=language,
        batch_size=batch_size,
        progress=not quiet,
    )
    if as_json:
        echo_json({"model": source, "saes": {n: each.to_dict() for n, each in judged.items()}})
        return
    rows = evaluation_table(judged).to_dict("records")
    names = [name for name in COLUMNS if name in rows[0]]
    echo_table([{COLUMNS[name]: row[name] for name in names} for row in rows])


def load_saes(source: str, hooks: tuple[str, ...], model: Any) -> dict[str, Any]:
    """Autoencoders by their hooks: of one file or folder, or of a suite.

    Raises:
        SAEFileError: One that does not say where it belongs, and no --hook does.
        HookNameError: A --hook that the suite does not have.
    """
    from hooked_whisper.hooks.names import match_names
    from hooked_whisper.sae import load_sae, load_suite
    from hooked_whisper.sae.files.suite import SHIPPED

    path = Path(source).expanduser()
    if source not in SHIPPED and (path.is_file() or (path / "cfg.json").is_file()):
        sae = load_sae(path).to(model.device)
        names = model.hook_names(list(hooks)) if hooks else [sae.cfg.hook_name]
        if len(names) != 1 or names[0] is None:
            raise SAEFileError(f"{source} does not say which hook it belongs to; give one --hook.")
        return {names[0]: sae}
    suite = load_suite(source, device=model.device)
    return {name: suite[name] for name in match_names(list(hooks) or None, list(suite))}
