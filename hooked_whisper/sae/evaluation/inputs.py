"""What autoencoders are judged on: windows of recordings and what is said in them, in batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_SECOND
from hooked_whisper.data.batches import (
    check_batch_size,
    pad_tokens,
    text_row,
    window_batches,
    written_rows,
)
from hooked_whisper.data.recordings import Recording, reason_of
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import AudioWindow, SkippedRecording, each_window, with_texts
from hooked_whisper.errors import AudioLengthError, InputError, NoDecoderError, shown
from hooked_whisper.model.language import find_languages
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens, get_tokenizer, has_tokenizer


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows side by side, and what the decoder reads and should write with them.

    Args:
        windows: The windows.
        mel: Their log-mels.
        rows: Token ids of each, prompt first and end-of-text last; empty where nobody
            says what is said.
        start: The first token whose prediction counts.
        languages: What is spoken in each, once the model has heard it.
    """

    windows: Sequence[AudioWindow]
    mel: Mel
    rows: list[list[int]]
    start: int
    languages: Sequence[str] = ()

    @property
    def n_recordings(self) -> int:
        """Recordings that begin here."""
        return sum(window.start_s == 0 for window in self.windows)

    @property
    def tokens(self) -> Int64[Tensor, "batch pos"]:
        """What the decoder reads: all tokens but the last."""
        return pad_tokens(self.rows, self.mel.device)[:, :-1]

    @property
    def targets(self) -> Int64[Tensor, "batch pos"]:
        """What it should write at each position."""
        return pad_tokens(self.rows, self.mel.device)[:, 1:]

    @property
    def n_tokens(self) -> Int64[Tensor, " batch"]:
        """How many tokens the decoder reads of each window; the rest is padding."""
        return torch.tensor([len(row) - 1 for row in self.rows], device=self.mel.device)

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """The positions whose predictions count."""
        pos = torch.arange(max(map(len, self.rows)) - 1, device=self.mel.device)
        return (pos >= self.start - 1) & (pos < self.n_tokens[:, None])


class CleanRun(NamedTuple):
    """What the model makes of a batch as it is.

    Args:
        encoder_output: What the decoder reads.
        logits: Of the batch's tokens.
        streams: The encoder's residual stream where autoencoders replace it.
    """

    encoder_output: Tensor
    logits: Tensor
    streams: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Recordings to judge on, checked.

    Args:
        model: The model.
        recordings: The recordings.
        given: The tokens of each recording, in place of texts.
        batch_size: Windows side by side.
        language: Of the texts; None has a multilingual model find out.
        skipped: Those that could not be used, once the windows have been read.
    """

    model: HookedWhisper
    recordings: Sequence[Recording]
    given: tuple[list[int], ...] | None
    batch_size: int
    language: str | None
    skipped: list[SkippedRecording] = field(default_factory=list)

    def __len__(self) -> int:
        """Recordings."""
        return len(self.recordings)

    @property
    def start(self) -> int:
        """The first token whose prediction counts: the first of the text, or the second of rows."""
        if self.given is not None or not self.model.cfg.has_decoder:
            return 1
        return self.model.to_tokens("").shape[1]

    def languages(
        self, batch: Batch, encoder_output: Float[Tensor, "batch pos d_model"]
    ) -> list[str]:
        """What is spoken in each window of a batch: by its label, as told, or as the model hears.

        None where the vocabulary is not Whisper's.
        """
        if not has_tokenizer(self.model.cfg):
            return []
        told = [window.language or self.language for window in batch.windows]
        return find_languages(self.model, encoder_output, told)

    def batches(
        self, rows: Sequence[list[int]] | None = None, languages: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """The windows with their tokens, read when they are due.

        Args:
            rows: The tokens of all windows; None takes what is known of them.
            languages: Of all windows, once they are known.
        """
        known: list[list[int]] = []
        for batch in window_batches(self.model, self._windows(known), self.batch_size):
            own = known[batch.first : batch.first + len(batch)]
            given = own if rows is None else rows[batch.first : batch.first + len(batch)]
            spoken = languages[batch.first : batch.first + len(batch)]
            yield Batch(batch.windows, batch.mel, list(given), self.start, spoken)

    def text_of(self, window: AudioWindow) -> str | None:
        """What is said in a window, which may be nothing; None where nobody says."""
        recording = self.recordings[window.recording]
        if self.given is not None or (recording.text is None and not recording.words):
            return None
        return window.text or ""

    def _windows(self, known: list[list[int]]) -> Iterator[AudioWindow]:
        """The windows that can be used; their tokens are appended to `known`."""
        self.skipped.clear()
        for window in each_window(self.model.cfg, self.recordings, self.skipped):
            try:
                known.append(self._row(window))
            except InputError as error:
                if window.start_s == 0:
                    skipped = SkippedRecording(window.recording, window.name, reason_of(error))
                    self.skipped.append(skipped)
                continue
            yield window

    def _row(self, window: AudioWindow) -> list[int]:
        """The tokens that are known of a window; none where nobody says what is said.

        Raises:
            InputError: Nobody knows which part of the text it has, or the text is too long.
        """
        if not self.model.cfg.has_decoder:
            return []
        text, words = self.text_of(window), self.recordings[window.recording].words
        if not window.is_whole and (self.given is not None or (text is not None and not words)):
            window_s = self.model.cfg.n_frames / FRAMES_PER_SECOND
            raise AudioLengthError(
                f"it is longer than the window of {window_s:g} s, and no one says which part of "
                "its text is in which window. Give its words with times, or leave its text out."
            )
        if self.given is not None:
            return self.given[window.recording]
        if text is None:
            return []
        language = window.language or self.language
        row = text_row(text, self.model.cfg, language=language, append_eot=True)
        _check_rows(self.model, [row])
        return row


def prepare(
    model: HookedWhisper,
    recordings: Any,
    texts: Sequence[str] | None = None,
    tokens: Any = None,
    *,
    batch_size: int = 8,
    language: str | None = None,
) -> Inputs:
    """Recordings to judge on, once it is sure that they fit together.

    Args:
        model: The model.
        recordings: What `as_recordings` takes.
        texts: What is said in each; "" where nothing is. None is what they say themselves.
        tokens: Instead of texts, the rows of token ids that the decoder reads
            and writes.
        batch_size: Windows side by side.
        language: Of the texts; None has a multilingual model find out.

    Raises:
        NoDecoderError: Texts or tokens for an encoder alone.
    """
    check_batch_size(batch_size)
    if texts is not None and tokens is not None:
        raise InputError("both texts and tokens are given; pass one of them.")
    found = list(as_recordings(recordings))
    if not model.cfg.has_decoder:
        if texts is not None or tokens is not None:
            raise NoDecoderError
        return Inputs(model, found, None, batch_size, language)
    if tokens is not None:
        given = _token_rows(model, tokens, len(found))
        return Inputs(model, found, given, batch_size, language)
    if texts is not None:
        found = with_texts(found, texts)
        if any(recording.text is None for recording in found):
            raise InputError('texts hold None. Pass one string for each, "" where nothing is said.')
    if not has_tokenizer(model.cfg):
        raise InputError(
            f"this model's vocabulary of {model.cfg.d_vocab} is not Whisper's, so that it neither "
            "reads texts nor writes any. Pass tokens=."
        )
    return Inputs(model, found, None, batch_size, language)


@torch.no_grad()
def own_rows(
    inputs: Inputs,
    encoder_output: Float[Tensor, "batch pos d_model"],
    languages: Sequence[str],
    *,
    max_new_tokens: int | None = None,
) -> tuple[list[list[int]], list[str]]:
    """What the model itself writes: tokens with the end-of-text, and texts; of silence none."""
    cfg = inputs.model.cfg
    done = inputs.model.generate(
        encoder_output=encoder_output,
        language=languages,
        max_new_tokens=max_new_tokens,
        skip_silence=True,
    )
    width, eot = done.tokens.shape[1], get_tokenizer(cfg).eot
    rows = [row if len(row) == width else [*row, eot] for row in written_rows(done, cfg)]
    return rows, list(done.texts)


def _token_rows(model: HookedWhisper, tokens: Any, n: int) -> tuple[list[int], ...]:
    if not isinstance(tokens, Iterable):
        raise InputError(f"tokens are {shown(tokens)}; give a row of tokens for each recording.")
    rows = tuple(row.tolist() if isinstance(row, Tensor) else list(row) for row in tokens)
    if len(rows) != n:
        raise InputError(f"{len(rows)} rows of tokens and {n} recordings do not match.")
    if any(len(row) < 2 for row in rows):
        raise InputError("a row of tokens has fewer than two; nothing predicts the first.")
    _check_rows(model, rows)
    return rows


def _check_rows(model: HookedWhisper, rows: Sequence[list[int]]) -> None:
    for row in rows:
        check_tokens(torch.tensor([row]), model.cfg.d_vocab, model.cfg.n_text_ctx + 1)
