"""The examples in the help are command lines that work."""

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from hooked_whisper import digits
from hooked_whisper.cli import main

FLEETING = (
    "recordings/",
    ".wav",
    ".mp3",
    ".csv",
    "sae_folder",
    "tiny",
    "small",
    "store",
    "suite",
    "textgrids",
)
"""What an example needs beside the package; one that has none of it is run for real."""

Run = Callable[..., Result]
Path = tuple[str, ...]
"""The words that call a command: `("sae", "train")`."""


def commands(group: Any = main, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every command that does something, with the words that call it."""
    context = click.Context(group, info_name=" ".join(("hooked-whisper", *path)))
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


def examples(path: Path) -> list[str]:
    """The examples that the help of a command shows."""
    shown = CliRunner().invoke(main, [*path, "--help"]).stdout
    _, _, below = shown.partition("Examples:\n")
    return [line.strip() for line in below.splitlines() if line.strip()]


EXAMPLES = [(path, line) for path in COMMANDS for line in examples(path)]
"""Each with the words of its command."""


def arguments(line: str) -> list[str]:
    """What an example passes on, without torchrun before it and a shell's `>` behind it."""
    words = shlex.split(line.partition(">")[0])
    start = words.index("hooked_whisper" if words[0] == "torchrun" else "hooked-whisper")
    return words[start + 1 :]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_examples(path: Path) -> None:
    assert len(examples(path)) >= 1
    assert all(" ".join(path) in line for line in examples(path))


@pytest.mark.parametrize(("path", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_an_example_is_understood(
    run: Run, monkeypatch: pytest.MonkeyPatch, path: Path, line: str
) -> None:
    called = []
    monkeypatch.setattr(COMMANDS[path], "callback", lambda **options: called.append(options))
    done = run(*arguments(line))
    assert done.exit_code == 0, done.output
    assert len(called) == 1


CHEAP = [line for _, line in EXAMPLES if not any(part in line for part in FLEETING)]
SLOW = (
    *("sae eval", "study", "hallucinations", "features", "attention", "whisper patch"),
    "whisper circuit",
)
"""Run in tests of their own, and for the documentation."""


@pytest.mark.parametrize("line", [line for line in CHEAP if not any(part in line for part in SLOW)])
def test_an_example_works(run: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    shipped = digits.recordings()[:2]  # two will do
    monkeypatch.setattr(digits, "recordings", lambda: shipped)
    done = run(*arguments(line))
    assert done.exit_code == 0, done.output
    assert done.stdout
