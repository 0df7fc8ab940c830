"""Where to act: a hook, and which heads, positions, seconds, neurons or latents there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_SECOND, POSITIONS_PER_SECOND
from hooked_whisper.errors import AlignmentError, SiteError, check_number, shown
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.passes import pass_info
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.model.whisper import HookedWhisper

Positions = int | slice | Sequence[int]
Window = tuple[float | int, float | int]
"""Start and end of a time, in seconds."""

Places = range | list[int]
"""Places on an axis: without gaps (a step of 1), or one by one."""

_NEURON_AXES = ("d_mlp", "d_model", "d_head")


@dataclass(frozen=True)
class Part:
    """The part of one activation that a site means, in one pass of the model.

    Args:
        local_index: Its index in the activation that the hook sees.
        global_places: Its places on each axis of the activation of a pass over all positions.
            They differ while decoding, when a pass sees the newest positions only.
    """

    local_index: tuple[slice, ...] | tuple[Tensor, ...]
    global_places: tuple[Places, ...]

    def read(self, source: Tensor, point: HookPoint, broadcasts: bool = False) -> Tensor:
        """What the activation of a pass over all positions holds there, in all of its rows.

        Args:
            source: The activation.
            point: Its hook.
            broadcasts: Whether an axis of length 1 serves all places.

        Raises:
            AlignmentError: The source is too short.
        """
        for axis, places in enumerate(self.global_places):
            size = source.shape[axis]
            if axis == 0 or (broadcasts and size == 1):
                continue
            last = places[-1] if isinstance(places, range) else max(places)
            if last >= size:
                raise AlignmentError(
                    f"the source for {point.name!r} has {size} places on {point.axes[axis]!r}; "
                    f"place {last} is asked for. Run both on inputs of one length."
                )
            if isinstance(places, range):
                source = source.narrow(axis, places.start, len(places))
            else:
                index = torch.tensor(places, device=source.device)
                source = source.index_select(axis, index)
        return source


@dataclass(frozen=True)
class Site:
    """Some of an activation, of one hook or of several.

    Args:
        name: A hook name, shorthand, glob, or list of them.
        head: Heads, counted from 0; None is all of them.
        pos: Positions of the stack: decoder tokens, or encoder positions of
            20 ms; of attention scores and patterns, the queries. Negative
            ones count from the newest. While decoding, positions keep the
            numbers that they have in the whole text.
        window_s: Start and end of a time of the recording, in seconds: encoder
            positions, mel frames, or the keys of cross-attention.
        neuron: Places on the activation's last axis.
        latent: Latents, of an autoencoder that is spliced in.

    Source: none; axis names are those of `hooked_whisper.config`.
    """

    name: NamesFilter
    head: int | Sequence[int] | None = None
    pos: Positions | None = None
    window_s: Window | None = None
    neuron: int | Sequence[int] | None = None
    latent: int | Sequence[int] | None = None

    def names(self, model: HookedWhisper) -> list[str]:
        """The hooks that this means, after checking that each has such a part.

        Raises:
            HookNameError: No hook has that name.
            SiteError: Heads, neurons or times that the activation does not have.
        """
        names = model.hook_names(self.name)
        for name in names:
            self._check(model, name)
        return names

    def part(self, point: HookPoint, shape: Sequence[int], first_pos: int = 0) -> Part | None:
        """This part of an activation; None if the pass has nothing of it.

        Args:
            point: The hook.
            shape: The activation's shape in this pass.
            first_pos: The position of the first token in this pass.

        A decoder position that this pass does not reach is no error, as the
        text may yet grow to it.
        """
        name, axes = point.name or "", point.axes
        local: list[Places] = []
        everywhere: list[Places] = []
        for axis, (label, size) in enumerate(zip(axes, shape, strict=True)):
            start = first_pos if label == self._position_axis(name, axes) else 0
            places = self._wanted(name, axes, axis, start + size)
            if isinstance(places, range):
                places = range(max(places.start, start), min(places.stop, start + size))
                local.append(range(places.start - start, places.stop - start))
            else:
                places = [place for place in places if start <= place < start + size]
                local.append([place - start for place in places])
            if not places:
                return None
            everywhere.append(places)
        return Part(_as_index(local), tuple(everywhere))

    def _wanted(self, name: str, axes: Sequence[str], axis: int, n: int) -> Places:
        """The places on one axis, of which a whole pass has `n`."""
        label = axes[axis]
        if label == "head" and self.head is not None:
            return places_on(self.head, n, "head", name)
        if axis == len(axes) - 1 and label in _NEURON_AXES and self.neuron is not None:
            return places_on(self.neuron, n, "neuron", name)
        if label == "latent" and self.latent is not None:
            return places_on(self.latent, n, "latent", name)
        if self.pos is not None and label == self._position_axis(name, axes):
            return places_on(self.pos, n, "position", name, may_be_absent=True)
        if self.window_s is not None and label == _time_axis(name, axes):
            start, end = window_to_places(self.window_s, label)
            return range(min(start, n - 1), min(end, n))
        return range(n)

    def _position_axis(self, name: str, axes: Sequence[str]) -> str | None:
        """The axis that counts positions of the hook's own stack."""
        if name.split(".")[0] == "encoder" and "frame" in axes:
            return None
        return next((axis for axis in ("pos", "query") if axis in axes), None)

    def _check(self, model: HookedWhisper, name: str) -> None:
        axes, sizes = model.hook_dict[name].axes, model.axis_sizes(name)
        if self.head is not None:
            if "head" not in axes:
                raise SiteError(f"{name!r} has axes {axes}: no heads. Leave out head.")
            places_on(self.head, sizes[axes.index("head")] or 0, "head", name)
        if self.neuron is not None:
            if axes[-1] not in _NEURON_AXES:
                raise SiteError(f"{name!r} has axes {axes}: no neurons. Leave out neuron.")
            places_on(self.neuron, sizes[-1] or 0, "neuron", name)
        if self.latent is not None:
            if axes[-1] != "latent":
                raise SiteError(
                    f"{name!r} has axes {axes}: no latents. Those of an autoencoder are at "
                    "{hook_name}.hook_sae_acts_post once it is spliced in: model.add_sae(sae)."
                )
            places_on(self.latent, sizes[-1] or 0, "latent", name)
        if self.pos is not None:
            axis = self._position_axis(name, axes)
            if axis is None:
                raise SiteError(f"{name!r} has axes {axes}: no positions. Leave out pos.")
            longest = sizes[axes.index(axis)] or model.cfg.n_text_ctx
            places_on(self.pos, longest, "position", name)
        if self.window_s is not None:
            self._check_window(model, name, axes)

    def _check_window(self, model: HookedWhisper, name: str, axes: Sequence[str]) -> None:
        assert self.window_s is not None
        if _time_axis(name, axes) is None:
            raise SiteError(
                f"{name!r} has axes {axes}, none of which is the recording's time. Give pos "
                "instead of window_s."
            )
        if self.pos is not None and _time_axis(name, axes) == self._position_axis(name, axes):
            raise SiteError(f"{name!r}: both pos and window_s are given; pass one of them.")
        check_window(self.window_s, model.cfg.window_s)


def _as_index(places: list[Places]) -> tuple[slice, ...] | tuple[Tensor, ...]:
    """Ranges, which are copied faster; where there are gaps, numbers that broadcast together."""
    if all(isinstance(each, range) for each in places):
        return tuple(slice(each.start, each.stop) for each in places if isinstance(each, range))
    return tuple(torch.from_numpy(index) for index in np.ix_(*places))


def first_pos(name: str) -> int:
    """The position of the first token that a hook sees in the present pass."""
    return pass_info().first_pos if name.startswith("decoder") else 0


def n_recordings(name: str, n_rows: int) -> int:
    """How many recordings the rows of an activation belong to, in equal groups.

    In beam search, several rows are hypotheses about one recording.
    """
    n = pass_info().n_recordings if name.startswith("decoder") else n_rows
    return n if n_rows % n == 0 else n_rows


def window_to_places(window_s: Window, axis: str = "pos") -> tuple[int, int]:
    """First place of a time and the first one after it, on an axis of the encoder; at least one.

    >>> window_to_places((0.5, 1.0))
    (25, 50)
    """
    rate_hz = FRAMES_PER_SECOND if axis == "frame" else POSITIONS_PER_SECOND
    start = round(window_s[0] * rate_hz)
    return start, max(start + 1, round(window_s[1] * rate_hz))


def check_window(window_s: Window, length_s: float) -> None:
    """Refuse a time that is empty, or outside the recording."""
    try:
        start_s, end_s = window_s
        check_number("the start of a window", start_s, SiteError)
        check_number("the end of a window", end_s, SiteError)
    except (TypeError, ValueError) as error:
        if isinstance(error, SiteError):
            raise
        raise SiteError(
            f"{shown(window_s)} is no window; its start and end in seconds are: (0.5, 1.0)."
        ) from error
    if not 0 <= start_s < end_s <= length_s:
        raise SiteError(
            f"the window is {start_s} to {end_s} s; it must lie in 0 to {length_s} s and end "
            "after it starts."
        )


def _time_axis(name: str, axes: Sequence[str]) -> str | None:
    """The axis along the recording's time, if there is one."""
    if name.startswith("encoder"):
        return next((axis for axis in ("frame", "pos", "query") if axis in axes), None)
    return "key" if "cross" in name and "key" in axes else None


def places_on(wanted: Any, n: int, what: str, name: str, may_be_absent: bool = False) -> Places:
    """Places on an axis of length `n`, negative ones counted from its end.

    Args:
        wanted: An integer, several, or a slice.
        n: The axis's length.
        what: What to call a place.
        name: What has the axis.
        may_be_absent: Let pass, as they are, places that the axis does not have.

    Raises:
        SiteError: Something else, or places that the axis does not have.
    """
    if isinstance(wanted, slice):
        if wanted.step is not None and wanted.step < 1:
            raise SiteError(f"{what} is {wanted!r} at {name!r}; its step must be at least 1.")
        chosen = range(n)[wanted]
        if not chosen and not may_be_absent:
            raise SiteError(f"{what} is {wanted!r} at {name!r}: none of {what}s 0 to {n - 1}.")
        return chosen if chosen.step == 1 else list(chosen)
    places = list(wanted) if isinstance(wanted, Iterable) else [wanted]
    if not places or not all(type(each) is int for each in places):
        raise SiteError(f"{what} is {shown(wanted)} at {name!r}; it can be an integer or several.")
    for place in places:
        if not -n <= place < n and not may_be_absent:
            raise SiteError(f"no {what} {place} at {name!r}: it has {what}s 0 to {n - 1}.")
    places = [place + n if place < 0 else place for place in places]
    return range(places[0], places[0] + 1) if len(places) == 1 else places
