"""Forks of a test's process that cannot keep it waiting: they are given a time to end in."""

import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_int
from typing import Any

import jaxtyping
import pytest
import torch

PATIENCE_S = 120.0
"""What a child may take, on a machine that is busy too."""


def shared_count() -> Any:
    """A whole number, its `value`, that forks made later have in common with this process."""
    return multiprocessing.RawValue(c_int)


class Child:
    """A fork of this process that runs a function and ends, with exit code 0 when all went well.

    Shapes are not checked in it, and it computes with one thread.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self.exit_code: int | None = None
        """None while it runs; that of a killed child is minus the signal's number."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            self.pid = os.fork()
        if not self.pid:
            _run(function)
        with suppress(OSError):  # it may have done so itself, or have ended
            os.setpgid(self.pid, self.pid)

    def is_alive(self) -> bool:
        """Whether it runs still."""
        if self.exit_code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is None

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended; where that takes too long, the test fails."""
        self._wait_until(lambda: not self.is_alive(), "end", patience_s)
        assert self.exit_code is not None
        return self.exit_code

    def wait_until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Return once a condition holds; where the child ends before, the test fails."""
        self._wait_until(lambda: condition() or not self.is_alive(), "come so far", patience_s)
        if not (self.is_alive() or condition()):
            pytest.fail(f"the child ended too early, with exit code {self.exit_code}")

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Its exit code after a signal: of itself where it had ended before."""
        if self.is_alive():
            os.kill(self.pid, number)
        return self.wait()

    def end(self) -> None:
        """Kill it with all that it has started, if it runs still."""
        if self.is_alive():
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _wait_until(self, is_so: Callable[[], bool], what: str, patience_s: float) -> None:
        end_s = time.monotonic() + patience_s
        while not is_so():
            if time.monotonic() > end_s:
                self.end()
                pytest.fail(f"the child did not {what} within {patience_s:g} s, and was killed")
            time.sleep(0.002)


def _run(function: Callable[[], object]) -> None:
    exit_code = 1
    try:
        os.setpgid(0, 0)  # so that it can be ended with all that it starts
        jaxtyping.config.update("jaxtyping_disable", True)
        torch.set_num_threads(1)  # the parent's pool of threads was not forked
        function()
        exit_code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(exit_code)
