"""What is known of recordings besides their sound: words with times, the speaker."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ, HookedWhisperConfig
from hooked_whisper.data.recordings import Recording
from hooked_whisper.digits import SpokenWord
from hooked_whisper.study.clips import Clip, Written


@dataclass(frozen=True)
class Known:
    """A recording as the judges of autoencoders take it.

    Args:
        audio: A path, or a pair of samples and rate.
        text: What is said.
        words: With their times; None where unknown.
        speaker: Who speaks.
    """

    audio: Any
    text: str | None
    words: tuple[SpokenWord, ...] | None
    speaker: str | None

    @property
    def path(self) -> Any:
        """The audio, by the name that judges look for."""
        return self.audio


def known(recording: Recording, cfg: HookedWhisperConfig, *, whole: bool = True) -> Known:
    """What a recording's labels say: the first list of `[start_s, end_s, value]`, `speaker`.

    Args:
        recording: The recording.
        cfg: Of the model that is to hear it.
        whole: Whether it fits the model's window; else its first window stands
            for it, of which no text is known.
    """
    audio, speaker = recording.audio, recording.labels.get("speaker")
    if not whole or isinstance(audio, bytes):
        audio = (recording.load()[: cfg.n_samples], SAMPLE_RATE_HZ)
    return Known(
        audio,
        recording.text if whole else None,
        words_of(recording),
        None if speaker is None else str(speaker),
    )


def words_of(recording: Recording) -> tuple[SpokenWord, ...] | None:
    """The words of a recording with their times, from a label that changes in time."""
    for value in recording.labels.values():
        if not isinstance(value, list) or not value:
            continue
        if all(isinstance(each, list | tuple) and len(each) == 3 for each in value):
            return tuple(SpokenWord(str(word), float(a), float(b)) for a, b, word in value)
    return None


def word_times(clip: Clip, written: Written) -> Float[Tensor, "1 query 2"] | None:
    """Start and end of the word that each text query writes.

    None where words have no times, or where the transcript is not word for
    word, token for token, what is said in the recording's first window.
    """
    words = words_of(clip.recording)
    n_queries = written.text_queries.stop - written.text_queries.start
    if not words or clip.start_s or len(words) != n_queries or written.text is None:
        return None
    if written.text.split() != [word.word for word in words]:
        return None
    return torch.tensor([[[word.start_s, word.end_s] for word in words]])
