"""`hooked-whisper sae`, and `sae eval`: how good sparse autoencoders are."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import Group
from hooked_whisper.errors import InputError, SAEFileError

COMMANDS = {
    "train": "hooked_whisper.cli.training:train",
    "curve": "hooked_whisper.cli.training:curve",
    "eval": "hooked_whisper.cli.sae:evaluate",
    "suite": "hooked_whisper.cli.training:suite",
}

COLUMNS = {
    "hook_name": "hook",
    "frames": "frames",
    "architecture": "architecture",
    "d_sae": "latents",
    "fvu": "FVU",
    "fvu_without_massive": "FVU without massive",
    "fvu_normalized": "FVU normalised",
    "l0": "L0",
    "k": "k",
    "dead_share": "never active",
    "ce_recovered": "CE recovered",
    "sequence_accuracy": "right",
    "wer": "WER",
    "wer_model": "model's WER",
    "same_as_model": "same as model",
    "wer_to_model": "WER to model",
}
"""Columns of the printed table, of which those without any number are left out; --json has all
numbers. `right` and `WER` are against the texts, as the model's own; the last two say how far the
transcripts are the model's."""


@click.group(cls=Group, lazy=COMMANDS)
def sae() -> None:
    """Train and judge sparse autoencoders."""


@opt.command(
    opt.RECORDINGS,
    opt.SAE,
    opt.hooks_option("every one of the suite"),
    opt.flag("--all-frames", help="Judge the padding of the window too."),
    opt.option(
        "--transcripts/--no-transcripts", default=True, help="Transcribe with each one too: slow."
    ),
    opt.LANGUAGE,
    opt.BATCH_SIZE,
    examples="""
    hooked-whisper sae eval
    hooked-whisper sae eval --hook encoder.blocks.2.hook_resid_post --no-transcripts
    hooked-whisper sae eval list.csv --model tiny --sae tiny-saes --all-frames
    hooked-whisper sae eval --sae sae_folder --hook encoder.blocks.2.hook_resid_post --json
    """,
)
def evaluate(args: opt.Options) -> None:
    """Judge autoencoders on RECORDINGS: what they give back, and what they do to speech.

    Each is spliced in alone. Transcripts are compared with the model's own and, where texts
    are known (a manifest's column text), with them. What is done is kept in a file here until
    the end: after Ctrl-C or a kill, the same command does the rest.
    """
    from hooked_whisper.sae import evaluate_saes
    from hooked_whisper.sae.evaluation.report import evaluation_table

    check_there_is_one(args)
    recordings = args.listed_recordings()
    model = args.load_model()
    saes = load_saes(args.sae_source, args.hooks, model)
    with args.kept_until_done("judging", [each.id for each in recordings]) as path:
        judged = evaluate_saes(
            saes,
            model,
            recordings,
            all_frames=None if args.all_frames else False,
            progress=not args.quiet,
            save_to=path,
            **args.besides("sae_source", "hooks", "all_frames"),
        )
    if args.as_json:
        numbers = {name: evaluation.to_dict() for name, evaluation in judged.items()}
        opt.echo_json({"model": args.source, "saes": numbers})
        return
    for remark in (remark for each in judged.values() for remark in each.remarks):
        args.note(remark)
    rows = evaluation_table(judged).to_dict("records")
    names = [
        name
        for name in COLUMNS
        if any(row.get(name) is not None and row[name] == row[name] for row in rows)
    ]
    opt.echo_table([{COLUMNS[name]: row[name] for name in names} for row in rows])


def check_there_is_one(args: opt.Options, *, instead: str = "") -> None:
    """Refuse at once to look for an autoencoder of another model among the shipped ones.

    Raises:
        InputError: The model is another one, and no --sae is named.
    """
    from hooked_whisper.sae.io.load import SHIPPED

    named = click.get_current_context().get_parameter_source("sae_source")
    if named is click.core.ParameterSource.DEFAULT and args.source not in SHIPPED:
        raise InputError(
            f"no autoencoder comes with the package for the model {args.source!r}. Name one with "
            f"--sae, which hooked-whisper sae train or sae suite makes{instead}."
        )


def load_saes(source: str, hooks: tuple[str, ...], model: Any) -> dict[str, Any]:
    """Autoencoders by their hooks: of one file or folder, or of a suite.

    Raises:
        SAEFileError: One that does not say where it belongs, and no --hook does.
        HookNameError: A --hook that the suite does not have.
    """
    from hooked_whisper.hooks.names import match_names
    from hooked_whisper.sae import load_sae, load_suite
    from hooked_whisper.sae.io.load import SHIPPED

    path = Path(source).expanduser()
    if source not in SHIPPED and (path.is_file() or (path / "cfg.json").is_file()):
        sae = load_sae(path).to(model.device)
        names = model.hook_names(list(hooks)) if hooks else [sae.cfg.hook_name]
        if len(names) != 1 or names[0] is None:
            raise SAEFileError(f"{source} does not say which hook it belongs to; give one --hook.")
        return {names[0]: sae}
    suite = load_suite(source, device=model.device)
    return {name: suite[name] for name in match_names(list(hooks) or None, list(suite))}
