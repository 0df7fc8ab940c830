"""The group of all commands; a command's own imports wait until it runs."""

import importlib
from typing import Any

import click

from hooked_whisper.errors import HookedWhisperError

COMMANDS = {
    "harvest": "hooked_whisper.cli.harvest:harvest",
    "sae": "hooked_whisper.cli.sae:sae",
    "store": "hooked_whisper.cli.store:store",
}
"""Where each command is: `module:function`."""


class LazyGroup(click.Group):
    """Commands that are imported when they are called, and errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what the package refuses is told in one sentence, with exit code 1."""
        try:
            return super().invoke(ctx)
        except HookedWhisperError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hooked-whisper")
def main() -> None:
    """OpenAI's Whisper with every internal activation named, readable and editable."""
