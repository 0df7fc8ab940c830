"""Means of activations over recordings, to put in place of what a run computes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION
from hooked_whisper.data.batches import heard_rows, recording_row
from hooked_whisper.data.recordings import Recording
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import mel_of, read_windows
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError, RecordingsError, SiteError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.passes import first_positions
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
        inputs: Recordings, whatever `data.as_recordings` takes; or an `Example`, a pair of
            mel and tokens, a mel, or a list or any iterable of all of these. The
            decoder needs tokens, or what is said.
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
        InputError: No inputs, inputs whose tokens or lengths are missing, or a
            recording that cannot be read.
    """
    names = _averageable(model, names_filter)
    needs_tokens = any(name.startswith("decoder") for name in names)
    needs_lengths = not all_frames and any(
        _has_padding(name, model.hook_dict[name].axes) for name in names
    )
    found: Iterable[Any] = _each_input(inputs)
    if isinstance(inputs, list | tuple):
        found = list(found)
        for each in found:
            _check_input(each, needs_tokens, needs_lengths)
    means = {name: _Mean(model, name, per_position) for name in names}
    for each in progress_bar(found, desc="mean activations", unit="input", show=progress):
        _check_input(each, needs_tokens, needs_lengths)
        for mel, tokens in _runs(model, each, needs_tokens):
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
            n_sound = -(-n_frames // self.frames_each)
            sound = first_positions(n_sound, n_batch, n_pos).to(sound)
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
            total, count, padding, n_padding = (
                each.sum(dim=0, keepdim=True) for each in (total, count, padding, n_padding)
            )
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


# What is averaged over


def _each_input(inputs: Any) -> Iterator[Any]:
    """What the model takes as it is, and everything else as `Recording`s."""
    if _is_model_input(inputs):
        yield inputs
        return
    is_dataset = type(inputs).__module__.split(".")[0] == "datasets"
    is_stream = isinstance(inputs, Iterable) and not hasattr(inputs, "__getitem__")
    is_audio = isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[1], int | float)
    if is_audio or is_dataset or not (isinstance(inputs, list | tuple) or is_stream):
        yield from as_recordings(inputs)
        return
    for each in inputs:
        if _is_model_input(each):
            yield each
        else:
            yield from as_recordings([each])


def _is_model_input(each: Any) -> bool:
    """Whether it is an example, a mel, or a pair of mel and tokens."""
    is_pair = isinstance(each, tuple) and len(each) == 2
    if is_pair and isinstance(each[0], Mel | Tensor) and isinstance(each[1], Tensor):
        return True
    return isinstance(each, Example | Mel | Tensor)


def _runs(
    model: HookedWhisper, each: Any, needs_tokens: bool
) -> Iterator[tuple[Any, Tensor | None]]:
    """Mel and tokens of an input; of a recording that is longer than the window, several."""
    if not isinstance(each, Recording):
        yield _mel_and_tokens(each)
        return
    try:
        windows = read_windows(each, 0, model.cfg)
    except (InputError, OSError) as error:
        raise RecordingsError(f"recording {each.id}: {error}") from error
    for window in windows:
        tokens = None
        if needs_tokens:
            own = replace(each, text=window.text, tokens=window.tokens)
            _check_input(own, needs_tokens, needs_lengths=False)
            row, mel = recording_row(own, model.cfg) or [], mel_of(model, [window])
            if own.tokens is None and own.language is None and model.cfg.is_multilingual:
                [row] = heard_rows(model, [row], model.encoder(mel), [True])
            tokens = torch.tensor([row], device=model.device)
        yield mel_of(model, [window]), tokens


def _mel_and_tokens(each: Any) -> tuple[Any, Tensor | None]:
    if isinstance(each, Example):
        return each.mel, each.tokens
    return each if isinstance(each, tuple) else (each, None)


def _check_input(each: Any, needs_tokens: bool, needs_lengths: bool) -> None:
    """Refuse an input that lacks what the activations need."""
    if isinstance(each, Recording):
        has_tokens, has_lengths = each.text is not None or each.tokens is not None, True
    else:
        mel, tokens = _mel_and_tokens(each)
        has_tokens, has_lengths = tokens is not None, not isinstance(mel, Tensor)
    if needs_tokens and not has_tokens:
        raise InputError(
            f"{type(each).__name__} has no tokens, which the decoder needs. Pass Examples, pairs "
            "of mel and tokens, or recordings that say their text."
        )
    if needs_lengths and not has_lengths:
        raise InputError(
            "a mel that is a plain tensor does not say how much of it holds sound. Pass "
            "model.to_mel(audio), or all_frames=True."
        )
