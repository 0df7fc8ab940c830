"""What begins is ended, whenever Ctrl-C comes: between the two, in the first or in the second.

Python answers a signal between any two calls, with an exception that is raised wherever the
program happens to be. That may be behind the `yield` of a generator, with which nobody goes on
then, or at the first instruction of an `__exit__`, before any `try` of it.
"""

import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from functools import partial
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Value = TypeVar("Value")


class Work(Protocol):
    """What is begun and ended."""

    def begin(self) -> None:
        """Begin; an interruption may leave a part."""

    def end(self) -> None:
        """End all that may have begun, and leave alone what has ended already.

        May be interrupted anywhere, and is then called again.
        """


class _Exit:
    """What a `with` statement takes as `__exit__`: when that is dropped uncalled, the work ends.

    Python takes it before it enters, and drops it when entering fails, and when calling it
    was interrupted, whoever keeps the traceback.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Callable[..., None]:
        if instance is None:
            return Temporarily._leave
        n_open = len(instance._open)
        guard: list[Any] = []
        leave = partial(instance._leave, guard=guard)
        guard.append(weakref.ref(leave, lambda _: instance._end_down_to(n_open)))
        return leave


class Temporarily(ContextDecorator, Generic[Value]):
    """A `with` block for which some work is begun, and ended, however and whenever that ends.

    It can be entered again, also inside itself.

    Args:
        value: What the block knows it as.
        start: Makes the work of one block.
    """

    def __init__(self, value: Value, start: Callable[[], Work]) -> None:
        self._value, self._start = value, start
        self._open: list[Work] = []

    def __enter__(self) -> Value:
        n_open = len(self._open)
        try:
            work = self._start()
            self._open.append(work)
            work.begin()
            return self._value
        except BaseException:
            self._end_down_to(n_open)
            raise

    __exit__ = _Exit()

    def _leave(self, *_: Any, guard: Any = None) -> None:
        n_open = len(self._open) - 1
        try:
            self._end_down_to(n_open)
        except BaseException:
            with uninterrupted():
                self._end_down_to(n_open)
            raise
        if guard:
            guard.clear()

    def _end_down_to(self, n_open: int) -> None:
        while len(self._open) > n_open:
            self._open[-1].end()
            self._open.pop()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while the block runs; it is answered at its end.

    So is SIGTERM, which torchrun sends when another rank is lost, where the program
    answers it. In threads other than the main one, which signals do not reach, nothing changes.
    """
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread() or not handlers:
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            handlers[waiting[0][0]](*waiting[0])
