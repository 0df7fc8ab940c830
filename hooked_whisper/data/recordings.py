"""Recordings: sound, and what is known about it."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.display import box, facts, note, player
from hooked_whisper.errors import AudioError, HookedWhisperError, InputError, cut
from hooked_whisper.speech.audio import encode_audio, load_audio
from hooked_whisper.speech.files import read_audio
from hooked_whisper.speech.labels import TimedLabel, timed_labels
from hooked_whisper.speech.mel import Mel

WORD_LABELS = ("words", "word")
"""What a label that holds the words with their times may be called, whatever they are."""
_PLAYED_S = 60
"""Seconds that a notebook's player has, at 5 kB each."""


@dataclass(frozen=True)
class Recording:
    """One recording, with what is known about it.

    Args:
        id: Its name in the store: a path relative to its folder or manifest.
        audio: A path, the bytes of an audio file, a pair of samples and rate in Hz, or a
            `Mel` of this recording alone.
        labels: What JSON can hold, by name. A list of `[start_s, end_s,
            value]` is a label that changes in time.
        text: What is said, for the decoder's hooks.
        tokens: Token ids for the decoder, in place of a text.
    """

    id: str
    audio: Any = field(repr=False)
    labels: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    tokens: tuple[int, ...] | None = None

    def check(self) -> None:
        """Raise InputError for what no function could use: types that are not those above."""
        if not isinstance(self.id, str):
            raise InputError(f"the id is {self.id!r}; it must be a string.")
        if self.text is not None and not isinstance(self.text, str):
            raise InputError(f"the text is a {type(self.text).__name__}; it must be a string.")
        if self.tokens is not None and not all(type(token) is int for token in self.tokens):
            raise InputError(f"the tokens are {str(self.tokens)[:100]}; they must be integers.")
        try:
            whole = json.loads(json.dumps(self.labels)).keys() == self.labels.keys()
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InputError(f"the labels are not what JSON can hold: {error}.") from error
        if not whole:
            raise InputError("the labels are not what JSON can hold: their names must be strings.")

    def load(self) -> Float[Tensor, " sample"]:
        """Its sound at 16 kHz, one channel.

        Raises:
            AudioError: It cannot be read, or is a `Mel`, which is no sound.
        """
        if isinstance(self.audio, Mel):
            raise AudioError(f"{self.id!r} is {self.audio!r}, from which no sound can be made.")
        return load_audio(_decode(self.audio) if isinstance(self.audio, bytes) else self.audio)

    @property
    def path(self) -> Path | None:
        """Its file; None where it has none."""
        return Path(self.audio) if isinstance(self.audio, str | Path) else None

    @property
    def speaker(self) -> str | None:
        """The label `speaker`."""
        return speaker_of(self.labels)

    @property
    def timed(self) -> dict[str, tuple[TimedLabel, ...]]:
        """The labels that change in time."""
        return {
            name: pieces
            for name, label in self.labels.items()
            if (pieces := timed_labels(label)) is not None
        }

    @property
    def language(self) -> str | None:
        """The label `language`; None where it says nothing."""
        return str(self.labels.get("language") or "") or None

    @property
    def words(self) -> tuple[TimedLabel, ...] | None:
        """The words of the text with their times; None where no label holds them.

        Of the labels that change in time, the one that reads like the text, whatever its case
        and punctuation; else the one called `words` or `word`.
        """
        timed = self.timed
        said = None if self.text is None else _plain(self.text)
        alike = (pieces for pieces in timed.values() if _read(pieces) == said)
        named = (timed[name] for name in WORD_LABELS if name in timed)
        return next(alike, None) or next(named, None)

    def with_text(self, text: str | None) -> "Recording":
        """The same with another text; times of words that are not of that text are dropped."""
        changed = replace(self, text=text)
        if text is None or changed.words is None or _read(changed.words) == _plain(text):
            return changed
        labels = {name: label for name, label in self.labels.items() if name not in WORD_LABELS}
        return replace(changed, labels=labels)

    def _repr_html_(self) -> str:
        """What is said and known of it, and a player of its beginning."""
        about = facts({"text": self.text, "tokens": self.tokens, **self.labels})
        try:
            samples = self.load()
        except AudioError as error:
            return box(self.id, "", note(f"It cannot be played: {error}"), about)
        seconds = len(samples) / SAMPLE_RATE_HZ
        heard = player(encode_audio(samples[: _PLAYED_S * SAMPLE_RATE_HZ]))
        cut = f", of which the first {_PLAYED_S} s can be played" if seconds > _PLAYED_S else ""
        return box(self.id, f"{seconds:.2f} s{cut}", heard, about)


def speaker_of(labels: Mapping[str, Any]) -> str | None:
    """Who speaks, where labels say it."""
    speaker = labels.get("speaker")
    return None if speaker is None else str(speaker)


def _read(words: Iterable[TimedLabel]) -> list[str]:
    return _plain(" ".join(str(word.value) for word in words))


def _plain(text: str) -> list[str]:
    """The words of a text without case and punctuation."""
    return re.sub(r"[^\w\s]|_", "", text.lower()).split()


def _decode(data: bytes) -> tuple[Any, float]:
    """The samples of an audio file's bytes, and their rate."""
    samples, rate_hz = read_audio(data)
    if not samples.size:
        raise AudioError("it is empty: it has no samples.")
    if len(samples) > 2:
        samples = samples.mean(axis=0, dtype=np.float32, keepdims=True)
    return samples, rate_hz


def reason_of(error: Exception) -> str:
    """Why a recording cannot be used, in a line or two."""
    is_ours = isinstance(error, HookedWhisperError)
    text = str(error) if is_ours else f"{type(error).__name__}: {error}"
    return cut(text, 600)


@dataclass(frozen=True)
class Recordings:
    """Recordings in their order, which may be read one by one.

    Args:
        make: Begins at the first one, each time.
        n: How many; None for a stream that does not know.
        digest: Of names, labels and texts; None for such a stream.
        is_in_memory: Whether going through them costs nothing.
        get: Makes the recording of a number; None for a stream.
    """

    make: Callable[[], Iterator[Recording]]
    n: int | None = None
    digest: str | None = None
    is_in_memory: bool = False
    get: Callable[[int], Recording] | None = None

    def __iter__(self) -> Iterator[Recording]:
        return self.make()
