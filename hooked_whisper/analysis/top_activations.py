"""The moments at which a neuron, or anything else with one number a frame, is most active."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from hooked_whisper.config import POSITION_S
from hooked_whisper.errors import InputError, check_count, check_number


@dataclass(frozen=True)
class Moment:
    """A time in a recording.

    Args:
        neuron: Which place of the last axis.
        recording: Which recording, counted from 0.
        start_s: Where the encoder position of the peak begins, in seconds.
        end_s: Where it ends.
        value: The activation there.
    """

    neuron: int
    recording: int
    start_s: float
    end_s: float
    value: float


def top_activations(
    activations: Float[Tensor, "batch pos neuron"],
    n_positions: Sequence[int] | Int[Tensor, "recording"],
    n_top: int = 10,
    *,
    least_apart_s: float | int = 0.2,
    all_frames: bool = False,
) -> list[Moment]:
    """The greatest peaks of each neuron over the recordings, greatest first.

    Args:
        activations: Of encoder positions: `cache["encoder", 2, "post", "mlp"]`, or
            some of its neurons.
        n_positions: How many positions of each recording hold sound: `mel.n_positions`.
        n_top: Peaks for each neuron, at most.
        least_apart_s: Two peaks of one neuron in one recording are at least
            so far apart, in seconds; otherwise all of them would be neighbours.
        all_frames: Look at the padding too.

    Raises:
        InputError: Lengths that do not fit, or nothing asked for.

    Source: the "top activating examples" of Reid 2023 for Whisper's neurons.

    >>> quiet = torch.zeros(1, 50, 1)
    >>> quiet[0, 10, 0] = 2.0
    >>> moment = top_activations(quiet, [50], n_top=1)[0]
    >>> round(moment.start_s, 2), moment.value
    (0.2, 2.0)
    """
    n_recordings, n_pos, n_neurons = activations.shape
    lengths = [int(each) for each in n_positions]
    if len(lengths) != n_recordings or not all(1 <= each <= n_pos for each in lengths):
        raise InputError(
            f"n_positions is {lengths}; it must be one number from 1 to {n_pos} for each of the "
            f"{n_recordings} recordings: mel.n_positions."
        )
    check_count("n_top", n_top, 1, InputError)
    check_number("least_apart_s", least_apart_s, InputError, 0)
    values = activations.detach().float().cpu()
    rows = torch.arange(n_recordings).repeat_interleave(n_pos)
    positions = torch.arange(n_pos).repeat(n_recordings)
    counts = positions < torch.tensor(lengths)[rows]
    if all_frames:
        counts[:] = True
    rows, positions, values = rows[counts], positions[counts], values.flatten(0, 1)[counts]
    least_apart = round(least_apart_s / POSITION_S)
    found = []
    for neuron in range(n_neurons):
        for i in greatest(values[:, neuron], rows, positions, n_top, least_apart):
            start_s, value = int(positions[i]) * POSITION_S, float(values[i, neuron])
            found.append(Moment(neuron, int(rows[i]), start_s, start_s + POSITION_S, value))
    return found


def greatest(
    values: Float[Tensor, " entry"],
    rows: Int64[Tensor, " entry"],
    positions: Int64[Tensor, " entry"],
    n: int,
    least_apart: int,
    sources: Int64[Tensor, " entry"] | None = None,
) -> list[int]:
    """Which entries have the greatest values, none near another; greatest first, then earliest.

    Args:
        values: Those that are -inf are never taken.
        rows: In which row each is: a recording, or a window of one; rising.
        positions: Where in its row; rising within a row.
        n: How many, at most.
        least_apart: Two of one row are so many positions apart, and at least one.
        sources: What each row comes from, rising: as long as there are others,
            each entry comes from a source of its own.
    """
    n_apart = max(1, least_apart)
    stride = int(positions.max()) + n_apart + 1 if len(positions) else 1
    # Rising, and rows are further apart than neighbours. NumPy makes less ado of few numbers.
    time, found = (rows * stride + positions).numpy(), values.numpy()
    taken: list[int] = []
    if sources is not None:
        left, source = found.copy(), sources.numpy()
        while len(taken) < n and (i := _argmax(left)) is not None:
            taken.append(i)
            _cross_out(left, source, int(source[i]), int(source[i]))
    left = found.copy()
    for i in taken:
        _cross_out(left, time, int(time[i]) - n_apart + 1, int(time[i]) + n_apart - 1)
    while len(taken) < n and (i := _argmax(left)) is not None:
        taken.append(i)
        _cross_out(left, time, int(time[i]) - n_apart + 1, int(time[i]) + n_apart - 1)
    return sorted(taken, key=lambda i: (-float(found[i]), i))


def _argmax(values: np.ndarray) -> int | None:
    """The first of the greatest; None where all are -inf."""
    if not len(values):
        return None
    i = int(values.argmax())
    return i if values[i] > -np.inf else None


def _cross_out(values: np.ndarray, rising: np.ndarray, low: int, high: int) -> None:
    """Have the entries at `low` to `high`, by numbers that rise, be -inf."""
    first, end = rising.searchsorted(low), rising.searchsorted(high, side="right")
    values[first:end] = -np.inf
