"""Windows of recordings: the sound that a model takes at once, with what is said in it."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import (
    FRAMES_PER_SECOND,
    HOP_LENGTH,
    SAMPLE_RATE_HZ,
    HookedWhisperConfig,
)
from hooked_whisper.data.recordings import Recording, reason_of, speaker_of
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.errors import AudioLengthError, InputError, RecordingsError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.audio import MIN_SAMPLES
from hooked_whisper.speech.labels import TimedLabel, labels_within, timed_labels
from hooked_whisper.speech.mel import Mel, positions_of, to_mel

LongRule = Literal["split", "cut", "skip"]


@dataclass(frozen=True, eq=False)
class AudioWindow:
    """One window of a recording.

    Args:
        recording: The recording's number, from 0.
        name: The recording's name.
        start_s: Where the window begins in its recording.
        samples: Its sound, 16 kHz; None where the recording came as a mel.
        text: What is said, where that is known.
        words: The words with their times in the window; None where these are not known.
        labels: What is true of the whole recording, by name.
        spans: What is true of some time of the window, by name.
        tokens: What the decoder reads, prompt first, where it is given.
        mel: Its log-mel, where the recording came as one.
        is_whole: Whether it is the whole recording.
        language: What is spoken, where a label says it.
    """

    recording: int
    name: str
    start_s: float
    samples: Float[Tensor, " sample"] | None
    text: str | None = None
    words: tuple[TimedLabel, ...] | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    spans: Mapping[str, tuple[TimedLabel, ...]] = field(default_factory=dict)
    tokens: tuple[int, ...] | None = None
    mel: Mel | None = None
    is_whole: bool = True
    language: str | None = None

    @property
    def speaker(self) -> str | None:
        """The label `speaker`."""
        return speaker_of(self.labels)

    @property
    def n_frames(self) -> int:
        """Mel frames that hold sound."""
        if self.mel is not None:
            return int(self.mel.n_frames[0])
        assert self.samples is not None
        return -(-len(self.samples) // HOP_LENGTH)

    @property
    def seconds(self) -> float:
        """How long it is."""
        if self.samples is None:
            return self.n_frames / FRAMES_PER_SECOND
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def n_positions(self) -> int:
        """Encoder positions that hold sound."""
        return int(positions_of(self.n_frames))


def load_windows(
    model: HookedWhisper, recordings: Any, texts: Sequence[str | None] | None = None
) -> list[AudioWindow]:
    """Recordings, read and cut into windows of the model's length.

    One that cannot be used is left out, with a warning that says which and why.

    Args:
        model: The model.
        recordings: What `as_recordings` takes.
        texts: What is said in each, in place of what the recordings say themselves.

    Raises:
        RecordingsError: There are none, or none that can be used.
        InputError: As many texts as there are no recordings.
    """
    found = list(as_recordings(recordings))
    if not found:
        raise RecordingsError("there are no recordings; pass at least one.")
    if texts is not None:
        found = with_texts(found, texts)
    skipped: list[SkippedRecording] = []
    windows = list(each_window(model.cfg, found, skipped))
    warn_of_skipped(skipped, len(found))
    return windows


class SkippedRecording(NamedTuple):
    """A recording that cannot be used: its number, its name, and why."""

    recording: int
    id: str
    reason: str


def each_window(
    cfg: HookedWhisperConfig, recordings: Sequence[Recording], skipped: list[SkippedRecording]
) -> Iterator[AudioWindow]:
    """The windows of recordings, read when they are due.

    Args:
        cfg: Of the model that is to hear them.
        recordings: The recordings.
        skipped: Those that cannot be used are appended to it.
    """
    for number, recording in enumerate(recordings):
        try:
            recording.check()
            windows = read_windows(recording, number, cfg)
        except Exception as error:  # whatever is wrong with one, the others are used
            skipped.append(SkippedRecording(number, str(recording.id), reason_of(error)))
            continue
        yield from windows


def warn_of_skipped(skipped: Sequence[SkippedRecording], n_recordings: int) -> None:
    """Warn of recordings that were left out, each with its reason.

    Raises:
        RecordingsError: All of them were.
    """
    if not skipped:
        return
    listed = "; ".join(f"{number} ({name}): {reason}" for number, name, reason in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    told = f"{len(skipped)} of {n_recordings} recordings cannot be used: {listed}{more}"
    if len(skipped) == n_recordings:
        raise RecordingsError(told)
    warnings.warn(told, stacklevel=3)


def with_texts(found: Sequence[Recording], texts: Any) -> list[Recording]:
    """The recordings with these texts.

    Raises:
        InputError: Not as many texts as recordings, or something else than texts.
    """
    several = [texts] if isinstance(texts, str) else list(texts)
    if len(several) != len(found) or not all(isinstance(text, str | None) for text in several):
        raise InputError(
            f"{len(several)} texts and {len(found)} recordings do not match. Pass one string for "
            "each, None where it is unknown."
        )
    return [one.with_text(text) for one, text in zip(found, several, strict=True)]


def read_windows(
    recording: Recording,
    number: int,
    cfg: HookedWhisperConfig,
    long: LongRule = "split",
    samples: Float[Tensor, " sample"] | None = None,
) -> list[AudioWindow]:
    """The windows of one recording, those of under 25 ms left out.

    Args:
        recording: The recording.
        number: Its number among all.
        cfg: Of the model that is to hear it.
        long: What to do with one that is longer than the window: `"split"` it,
            `"cut"` it after the first, or refuse it (`"skip"`).
        samples: Its sound, where it has been read already.

    Raises:
        AudioError: It cannot be read, or is longer than the window and to be skipped.
    """
    timed = {name: timed_labels(label) for name, label in recording.labels.items()}
    spans = {
        name: tuple(piece._replace(value=str(piece.value)) for piece in pieces)
        for name, pieces in timed.items()
        if pieces
    }
    whole = AudioWindow(
        recording=number,
        name=_short(recording.id),
        start_s=0.0,
        samples=None,
        text=recording.text,
        labels={
            name: label
            for name, label in recording.labels.items()
            if isinstance(label, str | int | bool) and name not in ("text", "language")
        },
        tokens=recording.tokens,
        language=recording.language,
    )
    words = recording.words
    if whole.text is None and words:
        whole = replace(whole, text=" ".join(word.word for word in words))
    if isinstance(recording.audio, Mel):
        return [replace(whole, words=words, spans=spans, mel=recording.audio)]
    samples = recording.load() if samples is None else samples
    pieces = [piece for piece in samples.split(cfg.n_samples) if len(piece) >= MIN_SAMPLES]
    if len(samples) <= cfg.n_samples:
        return [replace(whole, samples=samples, words=words, spans=spans)]
    if long == "skip":
        seconds, window_s = len(samples) / SAMPLE_RATE_HZ, cfg.n_frames / FRAMES_PER_SECOND
        raise AudioLengthError(f"{seconds:.2f} s are longer than the window of {window_s:g} s.")
    windows = []
    for i, piece in enumerate(pieces[:1] if long == "cut" else pieces):
        start_s = i * cfg.n_samples / SAMPLE_RATE_HZ
        end_s = start_s + len(piece) / SAMPLE_RATE_HZ
        own = None if words is None else labels_within(words, start_s, end_s)
        windows.append(
            replace(
                whole,
                start_s=start_s,
                samples=piece.clone(),
                text=" ".join(word.word for word in own or ()) or None,
                words=own,
                spans={name: labels_within(each, start_s, end_s) for name, each in spans.items()},
                tokens=None,
                is_whole=False,
            )
        )
    return windows


def mel_of(model: HookedWhisper, windows: Sequence[AudioWindow]) -> Mel:
    """The log-mels of windows, side by side, where the model is and in its dtype."""
    cfg = model.cfg
    mels = [
        window_mel(window, cfg.n_mels, cfg.n_frames).to(model.device, model.dtype)
        for window in windows
    ]
    return Mel.cat(mels)


def window_mel(window: AudioWindow, n_mels: int, n_frames: int) -> Mel:
    """The log-mel of one window."""
    if window.mel is not None:
        return window.mel
    return to_mel((window.samples, SAMPLE_RATE_HZ), n_mels=n_mels, n_frames=n_frames)


def _short(name: str) -> str:
    """A name as it is, but of a path the file alone."""
    return Path(name).name or name if "/" in name else name
