"""The group of all commands, and how each looks from outside: help, errors, exit codes.

0    done
1    refused by the package, a bad input file, or an error that nobody expected
2    the command line makes no sense
130  stopped by Ctrl-C
"""

import importlib
import os
import re
import sys
from typing import Any

import click

from hooked_whisper.errors import HookedWhisperError

PROGRAM = "hooked-whisper"
INTERRUPTED = 130
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What a group without a command raises; older versions of click show the help themselves."""

DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    expose_value=False,  # main looks for it
    help="Show the traceback of an error.",
)


class Command(click.Command):
    """A command with examples below its help, and `--debug`.

    Args:
        examples: Command lines, one a line.
    """

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = [line.strip() for line in examples.strip().splitlines()]
        self.params.append(DEBUG)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, each on a line of its own however long it is."""
        super().format_epilog(ctx, formatter)
        if self.examples:
            formatter.write_paragraph()
            formatter.write_heading("Examples")
            for line in self.examples:
                formatter.write(f"  {line}\n" if line else "\n")


class Group(click.Group):
    """Commands that are imported when they are called, and errors without a traceback.

    Args:
        lazy: Where each command is, by its name: `module:function`.
        exit_codes: Whether the help tells them.
    """

    def __init__(
        self, *args: Any, lazy: dict[str, str], exit_codes: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy, self.exit_codes = lazy, exit_codes
        self.params.append(DEBUG)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order in which they are likely to be needed."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name; None where there is none."""
        if cmd_name not in self.lazy:
            return None
        module, _, name = self.lazy[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        super().format_epilog(ctx, formatter)
        if self.exit_codes:
            formatter.write_paragraph()
            formatter.write_heading("Exit codes")
            for line in (__doc__ or "").strip().splitlines()[2:]:
                formatter.write(f"  {line.strip()}\n")

    def main(
        self,
        args: Any = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and leave with its exit code."""
        prog_name = prog_name or PROGRAM
        args = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else 0)
        except _NO_ARGUMENTS as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _say(_complaint(error))
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _say("stopped.")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # What is still in the buffer has nowhere to go when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            if "--debug" in args:
                raise
            _say(f"Error: {_on_one_line(_in_words(error))}")
            sys.exit(1)


IN_OTHER_WORDS = (
    (r"List (?:names|them) with model\.hook_names\([^)]*\)", f"List names with: {PROGRAM} info"),
    (r"Turn it on with (model\.set_\w+\(True\))", r"Only Python turns it on: \1"),
    (r"Make one with harvest\(\.\.\.\)", f"Make one with: {PROGRAM} harvest"),
    (r'or harvest\(\.\.\., text="transcript"\)', "or pass --text transcript"),
    (r"pass the files in it as a list of paths", "name a file in it"),
    (r"give from_pretrained a", "give --model a"),
    (r"folder that save_pretrained wrote", "folder as save_pretrained writes it"),
)
"""Advice of the package's errors, and what it is on a command line."""


def _in_words(error: Exception) -> str:
    """An error as one sentence: the package's own in a command line's words, others with types."""
    if isinstance(error, HookedWhisperError):
        text = str(error)
        for pattern, words in IN_OTHER_WORDS:
            text = re.sub(pattern, words, text)
        return text
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read or written: {error.strerror}."
    return f"{type(error).__name__}: {error} (unexpected: --debug shows where it happened)"


def _complaint(error: click.ClickException) -> str:
    """One line, whatever the error says; of a wrong command line also where its help is."""
    line = f"Error: {_on_one_line(error.format_message())}"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        line += f" See: {error.ctx.command_path} --help"
    return line


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _say(line: str) -> None:
    try:
        click.echo(line, err=True)
    except OSError:
        pass  # nobody listens


COMMANDS = {
    "info": "hooked_whisper.cli.info:info",
    "convert": "hooked_whisper.cli.convert:convert",
    "transcribe": "hooked_whisper.cli.transcribe:transcribe",
    "cache": "hooked_whisper.cli.cache:cache",
    "patch": "hooked_whisper.cli.patch:patch",
    "circuit": "hooked_whisper.cli.circuit:circuit",
    "attribute": "hooked_whisper.cli.attribute:attribute",
    "path": "hooked_whisper.cli.path:path",
    "ablate": "hooked_whisper.cli.ablate:ablate",
    "lens": "hooked_whisper.cli.lens:lens",
    "attention": "hooked_whisper.cli.attention:attention",
    "features": "hooked_whisper.cli.features:features",
    "study": "hooked_whisper.cli.study:study",
    "hallucinations": "hooked_whisper.cli.hallucinations:hallucinations",
    "labels": "hooked_whisper.cli.labels:labels",
    "heads": "hooked_whisper.cli.heads:heads",
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
