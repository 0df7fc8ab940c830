"""Labels that change in time: words, phones, speakers, each from a start to an end in seconds.

A recording's labels are what JSON can hold; one that changes in time is a list of
`[start_s, end_s, value]`. A step of time (an encoder position, a mel frame) has the
label that holds in its middle.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class TimedLabel(NamedTuple):
    """What is true from a start to an end, which itself is out, in seconds."""

    start_s: float
    end_s: float
    value: Any

    @property
    def word(self) -> str:
        """The value, where it is a word."""
        return str(self.value)


def timed_labels(label: Any) -> tuple[TimedLabel, ...] | None:
    """A label that changes in time, piece by piece; None where it is one value for all of it.

    >>> timed_labels([[0.0, 0.4, "three"], [0.4, 0.9, "one"]])[1].value
    'one'
    """
    if not isinstance(label, list | tuple) or not all(map(_is_timed, label)):
        return None
    return tuple(TimedLabel(float(start), float(end), value) for start, end, value in label)


def _is_timed(piece: Any) -> bool:
    is_piece = isinstance(piece, list | tuple) and len(piece) == 3
    return is_piece and all(isinstance(bound, int | float) for bound in piece[:2])


def values_at(label: Any, times_s: Iterable[float]) -> list[Any]:
    """What a label says at each moment; None where nothing. One value for all of it always holds.

    Of pieces that overlap, the first one counts.

    >>> values_at([[0.005, 0.03, "a"], [0.05, 0.09, "b"]], [0.01, 0.03, 0.05])
    ['a', None, 'b']
    """
    pieces = timed_labels(label)
    if pieces is None:
        return [label for _ in times_s]
    times = np.fromiter(times_s, dtype=np.float64)
    found = np.full(len(times), None, dtype=object)
    for piece in reversed(pieces):
        for place in np.flatnonzero((piece.start_s <= times) & (times < piece.end_s)):
            found[place] = piece.value
    return list(found)


def values_of_steps(label: Any, n_steps: int, step_s: float) -> list[Any]:
    """What a label says in the middle of each of so many steps from 0 on; None for nothing."""
    return values_at(label, ((step + 0.5) * step_s for step in range(n_steps)))


def steps_within(piece: TimedLabel, n_steps: int, step_s: float) -> range:
    """The steps that a piece touches, of so many; at least one."""
    first = min(n_steps - 1, max(0, math.floor(piece.start_s / step_s + 1e-6)))
    end = min(n_steps, math.ceil(piece.end_s / step_s - 1e-6))
    return range(first, max(first + 1, end))


def labels_within(
    pieces: Sequence[TimedLabel], start_s: float, end_s: float
) -> tuple[TimedLabel, ...]:
    """What lies between two moments, cut at them, in the time that begins with the first."""
    return tuple(
        TimedLabel(
            max(piece.start_s, start_s) - start_s, min(piece.end_s, end_s) - start_s, piece.value
        )
        for piece in pieces
        if piece.start_s < end_s and piece.end_s > start_s
    )
