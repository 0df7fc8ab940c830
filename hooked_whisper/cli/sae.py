"""`hooked-whisper sae`: sparse autoencoders."""

import click

from hooked_whisper.cli.commands import Group

COMMANDS = {
    "train": "hooked_whisper.cli.sae_train:train",
    "eval": "hooked_whisper.cli.sae_eval:evaluate",
    "suite": "hooked_whisper.cli.sae_suite:suite",
}


@click.group(cls=Group, lazy=COMMANDS)
def sae() -> None:
    """Train and judge sparse autoencoders."""
