"""What all commands have in common: help, one line for an error, exit codes, pipes, signals."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import hooked_whisper
from hooked_whisper import HookedWhisper
from hooked_whisper.cli import main
from hooked_whisper.cli.main import COMMANDS
from hooked_whisper.digits import recordings

Run = Callable[..., Result]
MODULE = [sys.executable, "-m", "hooked_whisper"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(hooked_whisper.__file__).parents[1])}


def start(*arguments: Any, **options: Any) -> "subprocess.Popen[str]":
    """The command line in a process of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [*MODULE, *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, **options)


def test_the_help_names_every_command_and_the_exit_codes(run: Run) -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    for part in (*COMMANDS, "Exit codes", "130  stopped by Ctrl-C"):
        assert part in shown.stdout


def test_the_help_comes_without_loading_pytorch() -> None:
    script = (
        "import sys\nfrom hooked_whisper.cli import main\n"
        "try:\n    main(['patch', '--help'])\nfinally:\n"
        "    print([name for name in ('torch', 'numpy', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def run_module(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*MODULE, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )


def test_the_version_and_the_module() -> None:
    done = run_module("--version")
    assert done.stdout == f"hooked-whisper, version {hooked_whisper.__version__}\n"
    done = run_module("-h")
    assert done.stdout.startswith("Usage: hooked-whisper [OPTIONS]")


def test_every_public_name_has_a_home() -> None:
    assert set(hooked_whisper._HOMES) == set(hooked_whisper.__all__)
    assert set(hooked_whisper.__all__) <= set(dir(hooked_whisper))
    with pytest.raises(AttributeError, match="'hooked_whisper' has no attribute 'HookedWisper'"):
        hooked_whisper.HookedWisper  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["harvets"], "Error: No such command 'harvets'."),
        (["info", "--jsn"], "Error: No such option '--jsn'."),
        (["patch", "--per", "row"], "Error: Invalid value for '--per': 'row' is not one of"),
        (["patch", "a.wav"], "Error: name a CORRUPTED recording, or give --corrupt"),
    ],
    ids=["command", "option", "choice", "together"],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    run: Run, arguments: list[str], line: str
) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith("--help")


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    done = run()
    assert done.exit_code == 2 and "Commands:" in done.stderr


def test_what_the_package_refuses_is_one_line_and_exit_code_1(run: Run) -> None:
    done = run("info", "--hook", "encoder.blocks.9.*", "--json", "--quiet")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: no hook matches 'encoder.blocks.9.*': there are encoder")
    assert done.stderr.count("\n") == 1


def test_an_error_that_nobody_expected_is_one_line_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(HookedWhisper, "from_pretrained", fail)
    done = run("info", "--quiet")
    assert done.exit_code == 1
    assert done.stderr == (
        "Error: ZeroDivisionError: division by zero (unexpected: --debug shows where it happened)\n"
    )
    for arguments in (["--debug", "info"], ["info", "--debug"]):
        done = run(*arguments)
        assert done.exit_code == 1 and isinstance(done.exception, ZeroDivisionError)


REFUSALS = {
    "no such hook": ("cache {clip} --hook nonsense", "List names with: hooked-whisper info"),
    "no such layer": (
        "cache {clip} --hook encoder.blocks.9.hook_z",
        "are encoder blocks 0 to 3. List names with: hooked-whisper info",
    ),
    "a hook that is off": (
        "cache {clip} --hook encoder.blocks.0.attn.hook_result",
        "Only Python turns it on: model.set_use_attn_result(True)",
    ),
    "no store": ("store info {empty}", "Make one with: hooked-whisper harvest"),
    "no texts": ("harvest {clip} --hook decoder.hook_embed", "or pass --text transcript"),
    "an empty folder": ("transcribe {empty}", "there are no recordings in {empty}."),
    "a folder for a file": ("patch {clip} {empty}", "is a folder; name a file in it."),
    "an empty file": ("transcribe {zero}", "zero.wav' is empty: it holds 0 bytes."),
    "no such language": ("transcribe {clip} --language klingon", "this model has 99 languages"),
    "no network": ("info --model openai/whisper-tiny", "without a network, give --model a local"),
    "a folder of no model": ("info --model {empty}", "a folder as save_pretrained writes it"),
    "a place that takes no files": (
        "cache {clip} --out /proc/x",
        "Error: /proc/x cannot be written: No such file or directory.",
    ),
}
"""Command lines, and what they are told."""


@pytest.mark.parametrize(("line", "told"), REFUSALS.values(), ids=REFUSALS)
def test_advice_is_in_a_command_lines_words(
    run: Run,
    line: str,
    told: str,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = {"clip": clip, "empty": tmp_path / "empty", "zero": tmp_path / "zero.wav"}
    places["empty"].mkdir()
    places["zero"].touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between tries to reach the hub
    done = run(*(part.format(**places) for part in line.split()))
    assert done.exit_code == 1
    message = done.stderr.splitlines()[-1]
    assert told.format(**places) in message
    assert "unexpected" not in message
    assert not re.search(r"model\.hook_names|harvest\(|from_pretrained", message)


def test_debug_keeps_the_traceback_of_what_is_refused(run: Run) -> None:
    done = run("store", "info", "nowhere", "--debug")
    assert done.exit_code == 1 and isinstance(done.exception, hooked_whisper.errors.StoreError)
    assert run("store", "info", "nowhere").stderr.startswith("Error: ")


def test_ctrl_c_is_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HookedWhisper, "from_pretrained", interrupt)
    done = run("info", "--quiet")
    assert (done.exit_code, done.stdout, done.stderr.split()) == (130, "", ["stopped."])


def test_a_command_that_is_not_run_alone_raises(run: Run) -> None:
    with pytest.raises(hooked_whisper.errors.StoreError, match="no activation store"):
        main(["store", "info", "nowhere"], standalone_mode=False)


@contextmanager
def limited(process: "subprocess.Popen[str]", patience_s: float = 300) -> Iterator[None]:
    """A block in which the process is killed when it takes too long."""
    killer = threading.Timer(patience_s, process.kill)
    killer.start()
    try:
        yield
    finally:
        killer.cancel()


def test_nobody_reads_the_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("--help", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, "")


def test_a_real_ctrl_c_and_what_goes_where(tmp_path: Path) -> None:
    # A shell in the background has its programs ignore Ctrl-C; a handler here undoes that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # So many that it is not done before the signal arrives, on a busy machine either.
        process = start("transcribe", *8 * [each.path for each in recordings()], cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stderr is not None and process.stdout is not None
    # Once the first is done, and others are not; a program that hangs ends with nothing said.
    with limited(process):
        first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert first.endswith(".flac\tthree one four\n") and output.count("\n") < 63
    assert all("\t" in line for line in output.splitlines())
    assert "taking digits" in errors and "transcribing:" in errors
    assert errors.rstrip().endswith("stopped.") and "Traceback" not in errors
    assert "\x1b" not in output + errors
