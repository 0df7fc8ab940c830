"""The moments at which a neuron, or anything else with one number a frame, is most active."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND
from hooked_whisper.errors import InputError

POSITION_S = FRAMES_PER_POSITION / FRAMES_PER_SECOND
"""Seconds of one encoder position."""


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
    n_positions: Sequence[int] | Tensor,
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
    if n_top < 1 or least_apart_s < 0:
        raise InputError(
            f"n_top is {n_top} and least_apart_s {least_apart_s}; they must be at least 1 and 0."
        )
    values = activations.detach().float().cpu().clone()
    if not all_frames:
        padding = torch.arange(n_pos) >= torch.tensor(lengths)[:, None]
        values[padding] = -torch.inf
    around = max(1, round(least_apart_s / POSITION_S))
    found = []
    for neuron in range(n_neurons):
        found += _peaks(values[:, :, neuron], neuron, n_top, around)
    return found


def _peaks(
    values: Float[Tensor, "batch pos"], neuron: int, n_top: int, around: int
) -> list[Moment]:
    """The greatest values, each with its neighbourhood taken out; writes over what it is given."""
    moments = []
    for _ in range(n_top):
        recording, pos = divmod(int(values.argmax()), values.shape[1])
        value = float(values[recording, pos])
        if value == -torch.inf:
            break
        start_s = pos * POSITION_S
        moments.append(Moment(neuron, recording, start_s, start_s + POSITION_S, value))
        values[recording, max(0, pos - around + 1) : pos + around] = -torch.inf
    return moments
