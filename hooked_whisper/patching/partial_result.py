"""How a long search shows how far it is, and keeps what is done when it is stopped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from hooked_whisper.errors import InterventionError, SweepError


class Unfinished(Protocol):
    """A result that grows."""

    @property
    def n_done(self) -> int:
        """How much of it is done."""


@contextmanager
def keep_what_is_done(
    result: Callable[[], Unfinished], so_far: Callable[[], str], bar: Any
) -> Iterator[None]:
    """End at Ctrl-C as if all were done; turn an error into one that holds the result.

    Args:
        result: Gives the result as it is by then.
        so_far: Says how much is done.
        bar: Closed at the end.

    Raises:
        SweepError: An error when something was done before; `error.result` has it.
    """
    try:
        yield
    except KeyboardInterrupt:
        bar.close()
        print(f"\nstopped after {so_far()}; pass resume=result to go on.", file=sys.stderr)
    except Exception as error:
        if result().n_done == 0:
            raise
        raise SweepError(
            f"after {so_far()}: {type(error).__name__}: {error} What is done is in error.result.",
            result(),
        ) from error
    finally:
        bar.close()


def check_same(earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a result that was made with something else.

    Args:
        earlier: What the result was made with.
        now: What this search is made with.

    Raises:
        InterventionError: What differs.
    """
    for what in now:
        if earlier.get(what) != now[what]:
            theirs, ours = (_short(each.get(what)) for each in (earlier, now))
            raise InterventionError(
                f"the result to resume has other {what}: {theirs}, not {ours}. Leave out resume "
                "to begin anew."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
