"""What is listened to: recordings in windows, with what is known of what is said in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, HOP_LENGTH, SAMPLE_RATE_HZ
from hooked_whisper.data.recordings import Recording, as_recordings, readable
from hooked_whisper.errors import InputError, RecordingsError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.audio import MIN_SAMPLES, load_audio

Span = tuple[float, float, str]
"""Start and end in seconds, and what is true between them."""

_WORD_LABELS = ("words", "word")


@dataclass(frozen=True, eq=False)
class Heard:
    """One window of a recording.

    Args:
        recording: The recording's number, from 0.
        name: The recording's name.
        start_s: Where the window begins in its recording.
        samples: Its sound, 16 kHz.
        text: What is said, where that is known.
        words: The words with their times in the window, where these are known.
        labels: What is true of the whole recording, by name.
        spans: What is true of some time of the window, by name.
        tokens: What the decoder reads, prompt first, where it is given.
    """

    recording: int
    name: str
    start_s: float
    samples: Float[Tensor, " sample"]
    text: str | None = None
    words: tuple[Span, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    tokens: tuple[int, ...] | None = None

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def n_positions(self) -> int:
        """Encoder positions that hold sound."""
        n_frames = -(-len(self.samples) // HOP_LENGTH)
        return -(-n_frames // FRAMES_PER_POSITION)


def hear(
    model: HookedWhisper, recordings: Any, texts: Sequence[str | None] | None = None
) -> list[Heard]:
    """Recordings, read and cut into windows of the model's length.

    Args:
        model: The model.
        recordings: What `harvest` takes.
        texts: What is said in each, in place of what the recordings say themselves.

    Raises:
        RecordingsError: There are none, or one that cannot be read.
        InputError: As many texts as there are no recordings.
    """
    if hasattr(recordings, "path") or isinstance(recordings, Recording):
        recordings = [recordings]
    found = list(as_recordings(recordings))
    if not found:
        raise RecordingsError("there are no recordings; pass at least one.")
    if texts is not None:
        found = _with_texts(found, texts)
    return [each for i, one in enumerate(found) for each in _windows(model, i, one)]


def _with_texts(found: list[Recording], texts: Any) -> list[Recording]:
    several = [texts] if isinstance(texts, str) else list(texts)
    if len(several) != len(found) or not all(isinstance(each, str | None) for each in several):
        raise InputError(
            f"{len(several)} texts and {len(found)} recordings do not match. Pass one string for "
            "each, None where it is unknown."
        )
    return [replace(one, text=text) for one, text in zip(found, several, strict=True)]


def _windows(model: HookedWhisper, number: int, recording: Recording) -> Iterator[Heard]:
    """The windows of one recording, those of under 25 ms left out."""
    try:
        samples = load_audio(readable(recording.audio))
    except (InputError, OSError) as error:
        raise RecordingsError(f"recording {number} ({recording.id}): {error}") from error
    spans = {name: timed for name, each in recording.labels.items() if (timed := _timed(each))}
    labels = {
        name: each
        for name, each in recording.labels.items()
        if isinstance(each, str | int | bool) and name not in ("text", "language")
    }
    words = _words(spans, recording.text)
    text = recording.text
    if text is None and words:
        text = " ".join(word for _, _, word in words)
    pieces = samples.split(model.cfg.n_samples)
    is_one = len(pieces) == 1
    for i, piece in enumerate(pieces):
        if len(piece) < MIN_SAMPLES:
            continue
        start_s = i * model.cfg.n_samples / SAMPLE_RATE_HZ
        end_s = start_s + len(piece) / SAMPLE_RATE_HZ
        mine = _within(words, start_s, end_s)
        yield Heard(
            recording=number,
            name=_short(recording.id),
            start_s=start_s,
            samples=piece.clone(),
            text=text if is_one else " ".join(word for _, _, word in mine) or None,
            words=mine,
            labels=labels,
            spans={name: _within(each, start_s, end_s) for name, each in spans.items()},
            tokens=recording.tokens if is_one else None,
        )


def _timed(value: Any) -> tuple[Span, ...]:
    """A label that changes in time: `[[start_s, end_s, value], ...]`; () for any other."""
    if not isinstance(value, list | tuple) or not value:
        return ()
    for each in value:
        if not isinstance(each, list | tuple) or len(each) != 3:
            return ()
        if not all(isinstance(number, int | float) for number in each[:2]):
            return ()
    return tuple((float(start), float(end), str(what)) for start, end, what in value)


def _words(spans: Mapping[str, tuple[Span, ...]], text: str | None) -> tuple[Span, ...]:
    """The label that holds the words of the text: one called so, or one that reads like it."""
    for name, each in spans.items():
        read = " ".join(word for _, _, word in each)
        if text is not None and read.lower().split() == text.lower().split():
            return each
        if text is None and name in _WORD_LABELS:
            return each
    named = next((spans[name] for name in _WORD_LABELS if name in spans), ())
    return named if text is None else ()


def _within(spans: Sequence[Span], start_s: float, end_s: float) -> tuple[Span, ...]:
    """What lies in a window, in its own time."""
    return tuple(
        (max(start, start_s) - start_s, min(end, end_s) - start_s, what)
        for start, end, what in spans
        if start < end_s and end > start_s
    )


def _short(name: str) -> str:
    """A name as it is, but of a path the file alone."""
    return Path(name).name or name if "/" in name else name


def batches(windows: Sequence[Heard], size: int) -> Iterator[tuple[int, list[Heard]]]:
    """Some windows at a time, with the number of the first."""
    for first in range(0, len(windows), size):
        yield first, list(windows[first : first + size])


def mel_of(model: HookedWhisper, windows: Sequence[Heard]) -> Any:
    """The log-mels of windows, side by side."""
    return model.to_mel([(each.samples, SAMPLE_RATE_HZ) for each in windows])


def on_positions(spans: Sequence[Span], n_positions: int, position_s: float) -> list[str | None]:
    """What is true in the middle of each position; None for nothing."""
    middle = (torch.arange(n_positions, dtype=torch.float64) + 0.5) * position_s
    found: list[str | None] = [None] * n_positions
    for start, end, what in spans:
        for place in ((middle >= start) & (middle < end)).nonzero()[:, 0].tolist():
            found[place] = what
    return found
