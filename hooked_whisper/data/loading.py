"""Reading recordings in worker processes, while the model runs on earlier ones."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import DataLoader, Dataset

from hooked_whisper.config import (
    FRAMES_PER_SECOND,
    HOP_LENGTH,
    SAMPLE_RATE_HZ,
    HookedWhisperConfig,
)
from hooked_whisper.data.batches import recording_row
from hooked_whisper.data.recordings import Recording, reason_of
from hooked_whisper.data.windows import LongRule, read_windows, window_mel
from hooked_whisper.errors import AudioLengthError, InputError
from hooked_whisper.io import checksum_of_audio
from hooked_whisper.speech.mel import Mel

TextRule = Literal["label", "transcript"]

_AHEAD = 4
"""Recordings that each worker may be ahead of the model."""


@dataclass(frozen=True)
class ReadingRules:
    """How recordings become windows and tokens.

    Args:
        cfg: The model's configuration.
        long: What to do with a recording that is longer than the window:
            `"split"` it into windows, `"cut"` it after the first, `"skip"` it.
        text: Where the decoder's tokens come from; None where it does not run.
        language: Of texts, unless the label `language` says otherwise; None
            where the model is to find out.
        task: Of the tokens' beginning.
    """

    cfg: HookedWhisperConfig
    long: LongRule
    text: TextRule | None
    language: str | None
    task: str


@dataclass(frozen=True)
class ReadJob:
    """A recording and its place in a harvest.

    Args:
        index: Its number among all recordings.
        shard: The number of its shard.
        recording: The recording.
        check_only: Its rows are in the store already; only its checksum is needed.
    """

    index: int
    shard: int
    recording: Recording
    check_only: bool = False


@dataclass(frozen=True)
class Loaded:
    """What a worker made of a recording.

    Args:
        job: The recording.
        checksum: Of its audio; None where it could not be read.
        mels: `[window mel frame]` in float32, as an array: it travels through a pipe.
        n_frames: Mel frames of each window that hold sound.
        n_samples: Its length at 16 kHz.
        tokens: The decoder's, start sequence included; None where there are none.
        reason: Why it cannot be used; None where it can.
    """

    job: ReadJob
    checksum: str | None = None
    mels: Any = None
    n_frames: tuple[int, ...] = ()
    n_samples: int = 0
    tokens: tuple[int, ...] | None = None
    reason: str | None = None


class RecordingReader(Dataset[Loaded]):
    """What runs in the workers: a job comes in as the index, and goes out loaded."""

    def __init__(self, rules: ReadingRules) -> None:
        self.rules = rules

    def __getitem__(self, job: ReadJob) -> Loaded:
        """The recording as windows of mels; a bad one as the reason."""
        try:
            job.recording.check()
            checksum = checksum_of_audio(job.recording.audio)
            return Loaded(job, checksum) if job.check_only else self._load(job, checksum)
        except FileNotFoundError:
            return Loaded(job, reason=f"there is no file {str(job.recording.audio)!r}.")
        except Exception as error:  # whatever is wrong with one, the others are harvested
            return Loaded(job, reason=reason_of(error))

    def _load(self, job: ReadJob, checksum: str) -> Loaded:
        rules, cfg, recording = self.rules, self.rules.cfg, job.recording
        if isinstance(recording.audio, Mel):
            samples, n_samples = None, int(recording.audio.n_frames[0]) * HOP_LENGTH
        else:
            samples = recording.load()
            n_samples = len(samples)
        windows = read_windows(recording, job.index, cfg, rules.long, samples)
        if len(windows) > 1 and rules.text == "label":
            raise AudioLengthError(
                f"{n_samples / SAMPLE_RATE_HZ:.2f} s are longer than the window of "
                f"{cfg.n_frames / FRAMES_PER_SECOND:g} s, and no one says which part of the text "
                "is in which window."
            )
        mel = Mel.cat([window_mel(window, cfg.n_mels, cfg.n_frames) for window in windows])
        tokens = None
        if rules.text == "label":
            tokens = recording_row(recording, cfg, language=rules.language, task=rules.task)
            if tokens is None:
                raise InputError("it has no text, which the decoder's hooks need.")
        return Loaded(
            job,
            checksum,
            mel.values.numpy(),
            tuple(mel.n_frames.tolist()),
            n_samples,
            None if tokens is None else tuple(tokens),
        )


def load_all(jobs: Iterable[ReadJob], rules: ReadingRules, n_workers: int) -> Iterator[Loaded]:
    """Every job's recording, loaded, in the jobs' order.

    Args:
        jobs: Taken one by one, a little ahead of what is given back.
        rules: How recordings become windows.
        n_workers: Worker processes; 0 reads in this one.
    """
    if n_workers:
        from whisper.audio import mel_filters  # before the fork: its import takes seconds

        mel_filters("cpu", rules.cfg.n_mels)
    return iter(
        DataLoader(
            RecordingReader(rules),
            sampler=jobs,  # any iterable: what it gives goes to the workers
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=n_workers,
            prefetch_factor=_AHEAD if n_workers else None,
        )
    )


def default_workers() -> int:
    """A worker for each processor but one, shared with the other ranks here; 8 at most."""
    here = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, here - 1))


def _as_it_is(loaded: Any) -> Any:
    return loaded
