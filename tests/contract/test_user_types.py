"""A type checker knows what the public names are: for users, `py.typed` is kept to.

`data/user_types.py` is a user's file: each `assert_type` in it says what mypy
has to find, and each `type: ignore` a mistake that it has to see.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "data" / "user_types.py"


def check(path: Path) -> list[str]:
    """mypy's complaints about a file, as strictly as `make types`, whose cache this takes.

    Without that cache it takes a minute, for torch's own types.
    """
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def test_types_are_those_that_a_user_needs_and_mistakes_are_seen() -> None:
    pytest.importorskip("mypy", reason="mypy is in the extra 'dev'")
    assert check(FILE) == []
