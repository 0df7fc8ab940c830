"""One pass over the recordings: each window runs once, and statistics take in what they need."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.data.loading import Loaded, ReadingRules, ReadJob, load_all
from hooked_whisper.data.recordings import Recording, Recordings
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import RecordingsError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import has_tokenizer

Hook = tuple[str, Callable[..., None]]


@dataclass(frozen=True, eq=False)
class Clip:
    """One window of a recording on its way through the model.

    Args:
        recording: What it is of.
        number: Its number among all windows, from 0.
        start_s: Where the window begins in the recording, in seconds.
        mel: Its log-mel, alone in its batch.
    """

    recording: Recording
    number: int
    start_s: float
    mel: Mel

    @property
    def n_positions(self) -> int:
        """Encoder positions that hold sound."""
        return int(self.mel.n_positions[0])


@dataclass(frozen=True, eq=False)
class Written:
    """What the decoder wrote of a clip, or was given.

    Args:
        tokens: What it read, start sequence first.
        text_queries: The queries that write the text.
        text: The transcript; None where the tokens were given.
    """

    tokens: Int64[Tensor, "1 pos"]
    text_queries: slice
    text: str | None


@dataclass
class Heard:
    """A recording that was used.

    Args:
        id: Its name.
        checksum: Of its audio: XXH3, 128 bits.
        seconds: Its length.
        reference: What is said, where that is known.
        transcript: What the model wrote; None where it writes no text.
        n_windows: Windows that it was split into.
    """

    id: str
    checksum: str
    seconds: float
    reference: str | None
    transcript: str | None
    n_windows: int


@dataclass
class Hearing:
    """What came of a pass, besides the statistics.

    Args:
        recordings: Those that could be used.
        used: The same as they were given.
        skipped: Names of the others, and why.
    """

    recordings: list[Heard] = field(default_factory=list)
    used: list[Recording] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)


@runtime_checkable
class Collector(Protocol):
    """A statistic that takes clips in one after the other."""

    def encoder_hooks(self, clip: Clip) -> list[Hook]:
        """What to hook while the encoder runs on a clip."""
        ...

    def decoder_hooks(self, clip: Clip, written: Written) -> list[Hook]:
        """What to hook while the decoder reads what it wrote."""
        ...


@torch.no_grad()
def hear(
    model: HookedWhisper,
    recordings: Recordings,
    collectors: Sequence[Collector],
    *,
    language: str = "en",
    max_new_tokens: int | None = None,
    progress: bool = True,
) -> Hearing:
    """Run the model over all recordings, window by window.

    Args:
        model: The model.
        recordings: What to hear; one that is longer than the window is split.
        collectors: What takes the activations in.
        language: Of what is said.
        max_new_tokens: Of the transcript of a window, at most.
        progress: Show a bar on stderr.

    Raises:
        RecordingsError: None of them can be used.
    """
    hearing, n_windows = Hearing(), 0
    rules = ReadingRules(model.cfg, "split", None, language, "transcribe")
    jobs = (ReadJob(i, 0, each) for i, each in enumerate(recordings))
    bar = progress_bar(
        load_all(jobs, rules, n_workers=0),
        total=recordings.n,
        desc="listening",
        unit="recording",
        show=progress,
    )
    for loaded in bar:
        recording = loaded.job.recording
        if loaded.reason is not None:
            hearing.skipped.append({"id": recording.id, "reason": loaded.reason})
            continue
        texts = []
        for clip in _clips(model, loaded, n_windows):
            written = _run(model, clip, collectors, language, max_new_tokens)
            texts.append(None if written is None else written.text)
            n_windows += 1
        known = [text for text in texts if text is not None]
        hearing.used.append(recording)
        hearing.recordings.append(
            Heard(
                recording.id,
                str(loaded.checksum),
                loaded.n_samples / SAMPLE_RATE_HZ,
                recording.text,
                " ".join(known) if known else None,
                len(texts),
            )
        )
    if not hearing.recordings:
        raise RecordingsError(
            "none of the recordings can be used"
            + (f"; the first is {hearing.skipped[0]}." if hearing.skipped else ".")
        )
    return hearing


def _clips(model: HookedWhisper, loaded: Loaded, number: int) -> Iterator[Clip]:
    for i, (values, n_frames) in enumerate(zip(loaded.mels, loaded.n_frames, strict=True)):
        mel = Mel(torch.from_numpy(values)[None], torch.tensor([n_frames]))
        start_s = i * model.cfg.window_s
        yield Clip(loaded.job.recording, number + i, start_s, mel.to(model.device, model.dtype))


def _run(
    model: HookedWhisper,
    clip: Clip,
    collectors: Sequence[Collector],
    language: str,
    max_new_tokens: int | None,
) -> Written | None:
    with model.hooks([hook for each in collectors for hook in each.encoder_hooks(clip)]):
        encoder_output = model.encoder(clip.mel.values)
    written = _write(model, clip, encoder_output, language, max_new_tokens)
    if written is not None:
        hooks = [hook for each in collectors for hook in each.decoder_hooks(clip, written)]
        with model.hooks(hooks):
            model(None, written.tokens, encoder_output=encoder_output, return_type=None)
    return written


def _write(
    model: HookedWhisper,
    clip: Clip,
    encoder_output: Float[Tensor, "1 pos d_model"],
    language: str,
    max_new_tokens: int | None,
) -> Written | None:
    """What the model writes; the recording's own tokens where its vocabulary is not Whisper's."""
    if has_tokenizer(model.cfg):
        done = model.generate(
            None, encoder_output=encoder_output, language=language, max_new_tokens=max_new_tokens
        )
        tokens = done.tokens[:, :-1]
        queries = slice(done.n_prompt - 1, tokens.shape[1] - 1)
        return Written(tokens, queries, done.texts[0])
    if clip.recording.tokens is None:
        return None
    tokens = torch.tensor([clip.recording.tokens], device=model.device)
    return Written(tokens, slice(0, tokens.shape[1] - 1), None)
