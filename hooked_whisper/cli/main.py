"""The group of all commands; a command's own imports wait until it runs."""

import click

from hooked_whisper.cli.commands import PROGRAM, Group

COMMANDS = {
    "info": "hooked_whisper.cli.info:info",
    "transcribe": "hooked_whisper.cli.transcribe:transcribe",
    "cache": "hooked_whisper.cli.cache:cache",
    "patch": "hooked_whisper.cli.patch:patch",
    "attention": "hooked_whisper.cli.attention:attention",
    "features": "hooked_whisper.cli.features:features",
    "study": "hooked_whisper.cli.study:study",
    "harvest": "hooked_whisper.cli.harvest:harvest",
    "store": "hooked_whisper.cli.store:store",
    "sae": "hooked_whisper.cli.sae:sae",
}
"""Where each command is: `module:function`."""


@click.group(
    cls=Group,
    lazy=COMMANDS,
    exit_codes=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    },
)
@click.version_option(package_name="hooked-whisper", prog_name=PROGRAM)
def main() -> None:
    """OpenAI's Whisper with every internal activation named, readable and editable.

    Without further arguments, commands run offline on the small model and the
    recordings that come with the package. Results go to standard output,
    progress and notes to standard error.
    """
