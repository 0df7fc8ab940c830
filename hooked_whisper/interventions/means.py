"""Means of activations over recordings, to put in place of what a run computes."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError, SiteError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.interventions.examples import Example
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel

_POSITIONS = ("frame", "pos", "query", "key")


@torch.no_grad()
def mean_activations(
    model: HookedWhisper,
    inputs: Any,
    names_filter: NamesFilter,
    *,
    per_position: bool = False,
    all_frames: bool = False,
    progress: bool = True,
) -> WhisperCache:
    """The mean of activations over recordings, with a batch axis of 1: for `MeanAblation`.

    Runs the inputs one after the other and keeps sums only, in float64.
    Edits that are active take part.

    Args:
        model: The model.
        inputs: Several (a list or any iterable) of: an `Example`, a pair of
            mel and tokens, a mel or an audio path. The decoder needs tokens.
        names_filter: Which activations. Scores and patterns of the decoder's
            self-attention have no mean, as their keys grow with the text.
        per_position: Keep positions apart, instead of one mean for them all.
            Positions that no recording's speech reaches get the mean of the
            padding there.
        all_frames: Count padding too; by default encoder positions count
            where there is sound.
        progress: Show a progress bar.

    Returns:
        A cache in the activations' dtype; without `per_position`, position
        axes have length 1.

    Raises:
        HookNameError: No such hook.
        SiteError: An activation that has no mean.
        InputError: No inputs, or inputs whose tokens or lengths are missing.
    """
    names = _averageable(model, names_filter)
    paddable = [name for name in names if _has_padding(name, model.hook_dict[name].axes)]
    needs_lengths = bool(paddable) and not all_frames
    inputs = [inputs] if isinstance(inputs, (Example, Mel, Tensor, str, PathLike)) else inputs
    if isinstance(inputs, Sequence):
        for each in inputs:
            _check_input(each, names, needs_lengths)
    means = {name: _Mean(model, name, per_position) for name in names}
    for each in progress_bar(inputs, desc="mean activations", unit="input", show=progress):
        _check_input(each, names, needs_lengths)
        mel, tokens = _mel_and_tokens(model, each)
        _, cache = model.run_with_cache(mel, tokens, return_type=None, names_filter=names)
        for name, mean in means.items():
            mean.add(cache[name], None if all_frames else cache.n_frames)
    if not means[names[0]].n_inputs:
        raise InputError("there are no inputs to average over. Pass at least one recording.")
    tensors = {name: mean.result() for name, mean in means.items()}
    axes = {name: model.hook_dict[name].axes for name in names}
    return WhisperCache(tensors, axes, n_layers=model.layer_counts())


class _Mean:
    """A running mean of one activation, of its positions with sound and of the others."""

    def __init__(self, model: HookedWhisper, name: str, per_position: bool) -> None:
        axes = model.hook_dict[name].axes
        self.axis = position_index(axes)
        self.per_position = per_position
        # Only what runs along the recording has padding.
        self.has_padding = _has_padding(name, axes)
        self.frames_each = FRAMES_PER_POSITION if axes[self.axis] != "frame" else 1
        self.n_inputs = 0
        self.sums: list[Tensor] = []  # of sound, of padding: [pos, ...]
        self.counts: list[Tensor] = []  # the same: [pos]

    def add(self, value: Tensor, n_frames: Tensor | None) -> None:
        """Add some recordings' activations."""
        self.n_inputs += 1
        self.dtype = value.dtype
        value = value.movedim(self.axis, 1)
        n_batch, n_pos = value.shape[:2]
        sound = torch.ones(n_batch, n_pos, dtype=torch.float64, device=value.device)
        if n_frames is not None and self.has_padding:
            n_sound = (n_frames + self.frames_each - 1) // self.frames_each
            sound = (torch.arange(n_pos) < n_sound.cpu()[:, None]).to(sound)
        for i, weight in enumerate((sound, 1 - sound)):
            total = torch.einsum("bp,bp...->p...", weight, value.double())
            if i == len(self.sums):
                self.sums.append(torch.zeros_like(total[:0]))
                self.counts.append(torch.zeros_like(weight[0, :0]))
            self.sums[i] = _add_padded(self.sums[i], total)
            self.counts[i] = _add_padded(self.counts[i], weight.sum(dim=0))

    def result(self) -> Tensor:
        """The mean, in the activation's own axes."""
        (total, padding), (count, n_padding) = self.sums, self.counts
        if not self.per_position:
            total, count = total.sum(dim=0, keepdim=True), count.sum(dim=0, keepdim=True)
            padding, n_padding = padding.sum(dim=0, keepdim=True), n_padding.sum(0, keepdim=True)
        flat = (-1,) + (1,) * (total.ndim - 1)
        of_sound = total / count.clamp(min=1).view(flat)
        of_padding = padding / n_padding.clamp(min=1).view(flat)
        mean = torch.where(count.view(flat) > 0, of_sound, of_padding)
        return mean[None].movedim(1, self.axis).to(self.dtype)


def position_index(axes: Sequence[str]) -> int:
    """Which axis counts positions, of a stack or of the recording.

    >>> position_index(("batch", "key", "head", "d_head"))
    1
    """
    return next(axes.index(axis) for axis in _POSITIONS if axis in axes)


def _has_padding(name: str, axes: Sequence[str]) -> bool:
    """Whether the positions run along the recording, whose end is padding."""
    return name.startswith("encoder") or axes[position_index(axes)] == "key"


def _add_padded(total: Tensor, more: Tensor) -> Tensor:
    """The sum of two tensors, the shorter one counted as 0 behind its end."""
    longer, shorter = (total, more) if len(total) > len(more) else (more, total)
    longer = longer.clone()
    longer[: len(shorter)] += shorter
    return longer


def _averageable(model: HookedWhisper, names_filter: NamesFilter) -> list[str]:
    names = model.hook_names(names_filter)
    for name in names:
        axes = model.hook_dict[name].axes
        if "key" in axes and model.axis_sizes(name)[axes.index("key")] is None:
            raise SiteError(
                f"{name!r} has no mean: its keys grow with the text. Give ReplacePattern a pattern."
            )
    return names


def _check_input(each: Any, names: Sequence[str], needs_lengths: bool) -> None:
    """Refuse an input that lacks what the activations need."""
    mel, tokens = _split(each)
    if tokens is None and any(name.startswith("decoder") for name in names):
        raise InputError(
            f"{type(each).__name__} has no tokens, which the decoder needs. Pass Examples, or "
            "pairs of mel and tokens."
        )
    if isinstance(mel, Tensor) and needs_lengths:
        raise InputError(
            "a mel that is a plain tensor does not say how much of it holds sound. Pass "
            "model.to_mel(audio), or all_frames=True."
        )


def _split(each: Any) -> tuple[Any, Tensor | None]:
    if isinstance(each, Example):
        return each.mel, each.tokens
    return each if isinstance(each, tuple) else (each, None)


def _mel_and_tokens(model: HookedWhisper, each: Any) -> tuple[Any, Tensor | None]:
    mel, tokens = _split(each)
    return (mel if isinstance(mel, (Mel, Tensor)) else model.to_mel(mel)), tokens
