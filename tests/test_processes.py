"""No test waits without end for a process that it has started."""

import ast
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .processes import Child, shared_count

HERE = Path(__file__).parent


def test_exit_codes(in_child: Callable[..., Child]) -> None:
    assert in_child(lambda: None).wait() == 0
    assert in_child(lambda: 1 / 0).wait() == 1
    child = in_child(lambda: time.sleep(60))
    assert child.is_alive() and child.kill() == -signal.SIGKILL and not child.is_alive()


def test_one_that_hangs_fails_the_test_and_is_killed(in_child: Callable[..., Child]) -> None:
    child = in_child(lambda: time.sleep(60))
    with pytest.raises(pytest.fail.Exception, match=r"did not end within 0\.01 s, and was killed"):
        child.wait(0.01)
    assert child.exit_code == -signal.SIGKILL
    child = in_child(lambda: time.sleep(60))
    with pytest.raises(pytest.fail.Exception, match=r"did not come so far within 0\.01 s"):
        child.wait_until(lambda: False, 0.01)
    with pytest.raises(OSError):
        os.kill(child.pid, 0)


def test_one_that_dies_is_not_waited_for(in_child: Callable[..., Child]) -> None:
    count = shared_count()

    def work() -> None:
        count.value = 3
        os._exit(7)

    in_child(work).wait_until(lambda: count.value == 3)
    with pytest.raises(pytest.fail.Exception, match="ended too early, with exit code 7"):
        in_child(work).wait_until(lambda: count.value == 4)


ENDLESS = ("wait", "waitpid", "fork", "recv", "join", "communicate")
"""What may take for ever when it is given nothing, or an id alone."""
PROGRAMS = ("run", "check_call", "check_output")


def test_nothing_else_waits_without_end() -> None:
    """Forks are those of processes.py; threads and programs are given a time to end in."""
    found = []
    for path in sorted(HERE.rglob("*.py")):
        if path.name == "processes.py" or path.parent.name == "mutants":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            of, name = ast.unparse(node.func.value), node.func.attr
            endless = name in ENDLESS and (not (node.args or node.keywords) or of == "os")
            if name in PROGRAMS and of == "subprocess":
                endless = "timeout" not in [each.arg for each in node.keywords]
            if endless and "child" not in of:
                found.append(f"{path.relative_to(HERE)}:{node.lineno}: {of}.{name}")
    assert not found
