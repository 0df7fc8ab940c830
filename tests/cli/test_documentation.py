"""The commands of docs/command_line.md print what the page says that they print.

They are run one after the other in one folder. Numbers may differ by a little from one
machine to the next; `...` stands for anything.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from hooked_whisper.digits import FOLDER
from hooked_whisper.patching import SweepResult
from hooked_whisper.reports import attention, features

PAGE = Path(__file__).parents[2] / "docs/command_line.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TOLERANCE = 0.05

Run = Callable[..., Result]


def shown(page: str) -> list[tuple[str, str]]:
    """Each command of the page, with what it prints there."""
    found = []
    for block in BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def alike(wanted: str, printed: str) -> bool:
    """Whether two texts have the same words, and numbers that are about the same."""
    words, others = wanted.split(), printed.split()
    if "..." in words:
        place = words.index("...")
        rest = words[place + 1 :]
        return alike(" ".join(words[:place]), " ".join(others[:place])) and alike(
            " ".join(rest), " ".join(others[len(others) - len(rest) :])
        )
    return len(words) == len(others) and all(map(_same, words, others))


def _same(word: str, other: str) -> bool:
    if word == other:
        return True
    try:
        a, b = (float(each.strip(",%").replace(",", "")) for each in (word, other))
    except ValueError:
        return False
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b), 1)


def test_words_and_numbers() -> None:
    assert alike("FVU 0.512, in a", "FVU 0.513, in a") and not alike("FVU 0.5", "FVU 0.7")
    assert alike("1.64e-05 1,024", "1.65e-05 1,030") and not alike("2.4e+05", "2.4e+06")
    assert alike("a ... c", "a b b c") and not alike("a ... c", "a b")
    assert not alike("a b", "a") and not alike("seven", "eight")


def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes longest, and does not change what is printed, is left out."""

    def page(model: Any, *args: Any, **options: Any) -> Any:
        return SimpleNamespace(path=next(each for each in args if str(each).endswith(".html")))

    monkeypatch.setattr(attention, "attention_page", page)
    monkeypatch.setattr(features, "feature_page", page)
    blank = SimpleNamespace(savefig=lambda path, **how: None)
    monkeypatch.setattr(SweepResult, "plot", lambda *args, **options: blank)


def test_the_commands_print_what_the_page_says(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_pictures(monkeypatch)
    shutil.copytree(FOLDER, folder / "recordings", ignore=shutil.ignore_patterns("*.json"))
    commands = shown(PAGE.read_text(encoding="utf-8"))
    assert len(commands) >= 12
    for command, wanted in commands:
        words = shlex.split(command, comments=True)
        assert words[0] == "hooked-whisper"
        done = run(*words[1:])
        code = int(command[-1]) if "# exit code" in command else 0
        assert done.exit_code == code, f"{command}\n{done.output}"
        printed = done.stderr.splitlines()[-1] if code else done.stdout
        assert alike(wanted, printed), f"$ {command}\n{printed}"
