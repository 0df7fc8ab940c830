"""`make` installs what a target needs, and says in one line what a machine lacks.

A shell script stands in for Python, so that all this takes no time and no network.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYTHON = """#!/bin/sh
case "$LACK $*" in
  "version -c "*) exit 1 ;;
  "version --version") echo "Python 3.8.10" ;;
  "venv -m venv "*) echo "$0: No module named venv" >&2; exit 1 ;;
  "ensurepip -m venv "*) mkdir -p "$3/bin"; ln -s "$0" "$3/bin/python"
    echo "The virtual environment was not created successfully because ensurepip is not"
    echo "available.  On Debian/Ubuntu systems, you need to install the python3-venv"
    exit 1 ;;
  "permission -m venv "*) echo "Error: [Errno 13] Permission denied: '.venv'" >&2; exit 1 ;;
  *" -m venv "*) mkdir -p "$3/bin"; ln -s "$0" "$3/bin/python"; touch "$3/bin/pip"
    chmod +x "$3/bin/pip" ;;
  "network -m pip "*)
    echo "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError()'" >&2
    echo "ERROR: Could not find a version that satisfies the requirement torch" >&2; exit 1 ;;
  "disk -m pip "*) echo "Collecting torch"
    echo "ERROR: Could not install packages due to an OSError: [Errno 28] No space left" >&2
    exit 1 ;;
  *" -c "*) ;;
  *) echo "$*" >>calls ;;
esac
"""
"""A Python that works, but for what LACK names; it writes down what it is called with."""

Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(target, lack="")` in a folder that has the Makefile and such a Python."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}

    def run(target: str, lack: str = "", python: Path = python) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", target, f"PYTHON={python}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**clean, "LACK": lack, "LC_ALL": "C"},
            timeout=300,
        )

    return run


def installed(folder: Path) -> list[str]:
    """What pip was asked for since the last look, beside itself."""
    calls = folder / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return [line.split("--editable ")[1] for line in lines if "--editable" in line]


LACKS = {
    "version": r"needs Python 3.10 or newer; '.*python' is Python 3.8.10. .* make demo PYTHON=",
    "venv": r"'.*python' cannot make environments, .* apt install python3-venv",
    "ensurepip": r"'.*python' cannot make environments, .* apt install python3-venv",
    "permission": r"^\.venv could not be made: .*Permission denied",
    "network": r"No package index can be reached. .*\.venv/install\.log",
    "disk": r"pip failed: ERROR: .*No space left .*\.venv/install\.log",
}


@pytest.mark.parametrize("lack", LACKS)
def test_what_is_missing_is_said_in_one_line(lack: str, make: Make, tmp_path: Path) -> None:
    done = make("demo", lack)
    assert done.returncode
    line, makes_own = done.stderr.splitlines()
    assert re.search(LACKS[lack], line)
    assert makes_own.startswith("make: ***")
    assert not (tmp_path / "calls").exists()


def test_it_goes_on_where_the_lack_is_cured(make: Make, tmp_path: Path) -> None:
    for lack in LACKS:
        assert make("demo", lack).returncode
    assert make("demo").returncode == 0
    assert "examples/demo.py" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("target", "needed"),
    [("demo", "."), ("test", ".[test]"), ("lint", ".[test,dev,docs,notebooks]")],
)
def test_a_target_installs_what_it_needs_once(
    target: str, needed: str, make: Make, tmp_path: Path
) -> None:
    make(target)
    assert installed(tmp_path) == [needed]
    make(target)
    assert installed(tmp_path) == []
    later = time.time() + 10  # a file's time has ticks, and all of this may pass within one
    os.utime(tmp_path / "pyproject.toml", (later, later))
    make(target)
    assert installed(tmp_path) == [needed]


def test_what_has_everything_needs_nothing_more(make: Make, tmp_path: Path) -> None:
    make("env")
    assert installed(tmp_path) == [".[test,dev,docs,notebooks]"]
    make("demo")
    make("test")
    assert installed(tmp_path) == []


def test_what_is_there_is_enlarged(make: Make, tmp_path: Path) -> None:
    for target in ("demo", "test", "env"):
        make(target)
    assert installed(tmp_path) == [".", ".[test]", ".[test,dev,docs,notebooks]"]


def test_no_python_at_all(make: Make, tmp_path: Path) -> None:
    done = make("test", python=tmp_path / "nothing")
    line, _ = done.stderr.splitlines()
    assert line.startswith(f"There is no '{tmp_path / 'nothing'}' here. Install Python 3.10 or")
    assert "make test PYTHON=python3.12" in line
