"""`hooked-whisper sae`, and `sae eval`: how good sparse autoencoders are."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import Group
from hooked_whisper.errors import SAEFileError

COMMANDS = {
    "train": "hooked_whisper.cli.training:train",
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
}
"""Columns of the printed table; --json has all numbers."""


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

    Each is spliced in alone. Where texts are known (a manifest's column text),
    transcripts are compared with them; else with the model's own.
    """
    from hooked_whisper.sae import evaluate_saes
    from hooked_whisper.sae.evaluation.report import evaluation_table

    recordings = args.listed_recordings()
    model = args.load_model()
    judged = evaluate_saes(
        load_saes(args.sae_source, args.hooks, model),
        model,
        recordings,
        all_frames=None if args.all_frames else False,
        progress=not args.quiet,
        **args.besides("sae_source", "hooks", "all_frames"),
    )
    if args.as_json:
        saes = {name: evaluation.to_dict() for name, evaluation in judged.items()}
        opt.echo_json({"model": args.source, "saes": saes})
        return
    for remark in (remark for each in judged.values() for remark in each.remarks):
        args.note(remark)
    rows = evaluation_table(judged).to_dict("records")
    names = [name for name in COLUMNS if name in rows[0]]
    opt.echo_table([{COLUMNS[name]: row[name] for name in names} for row in rows])


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
