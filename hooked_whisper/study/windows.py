"""One pass over the recordings: each window runs once, and statistics take in what they need."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.data import (
    AudioWindow,
    Recording,
    SkippedRecording,
    each_window,
    window_batches,
)
from hooked_whisper.display import progress_bar, table
from hooked_whisper.errors import RecordingsError
from hooked_whisper.io import checksum_of_audio
from hooked_whisper.speech import has_tokenizer, word_error_rate
from hooked_whisper.study.report import Section, exhibit, section

Hooks = list[tuple[str, Callable[..., None]]]

MOST_ROWS = 200
"""Recordings in the report's table; report.json has all."""


@dataclass(eq=False)
class WindowRun:
    """One window on its way through the model.

    Args:
        window: Its sound, and what is known of it.
        mel: Its log-mel, alone in its batch.
        tokens: What the decoder reads, start sequence first, once that is known.
        n_start: Queries before those that write the text.
        text: The transcript; None where the model writes none.
    """

    window: AudioWindow
    mel: Mel
    tokens: Int64[Tensor, "1 pos"] | None = None
    n_start: int = 0
    text: str | None = None

    @property
    def text_queries(self) -> slice:
        """The queries that write the text."""
        return slice(self.n_start, 0 if self.tokens is None else self.tokens.shape[1] - 1)


@dataclass
class Transcripts:
    """What came of a pass, besides the statistics.

    Args:
        recordings: Those that could be used.
        rows: Of each its name, audio's checksum, length, language, text, transcript and number of
            windows.
        skipped: Names of the others, and why.
    """

    recordings: list[Recording] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)


@torch.no_grad()
def run_windows(
    model: HookedWhisper,
    recordings: Any,
    encoder: Sequence[Any],
    decoder: Sequence[Any],
    *,
    progress: bool,
    language: str | None = None,
    **options: Any,
) -> Transcripts:
    """Run the model over what `as_recordings` gives, window by window; `generate` has the options.

    Where the model hears no speech it writes nothing.

    Statistics, of the encoder and of the decoder while it reads what it wrote,
    say with `hooks(run)` what they hook.
    """
    found = Transcripts()
    bar = {"total": recordings.n, "desc": "listening", "unit": "recording", "show": progress}
    for recording in progress_bar(recordings, **bar):
        skipped: list[SkippedRecording] = []
        windows = list(each_window(model.cfg, [recording], skipped))
        found.skipped += [{"id": each.id, "reason": each.reason} for each in skipped]
        if skipped:
            continue
        texts, spoken = [], recording.language or language
        for batch in window_batches(model, windows, 1):
            run = WindowRun(batch.windows[0], batch.mel)
            with model.hooks([hook for each in encoder for hook in each.hooks(run)]):
                encoder_output = model.encoder(run.mel.values)
            if has_tokenizer(model.cfg):
                done = model.generate(
                    encoder_output=encoder_output, language=spoken, skip_silence=True, **options
                )
                n_read = -1 if done.texts[0] else done.n_prompt  # of silence no text
                run.tokens, run.n_start = done.tokens[:, :n_read], done.n_prompt - 1
                [spoken], run.text = done.languages, done.texts[0]
                texts.append(run.text)
            elif run.window.tokens is not None:  # the recording's own
                run.tokens = torch.tensor([run.window.tokens], device=model.device)
            if run.tokens is not None:
                with model.hooks([hook for each in decoder for hook in each.hooks(run)]):
                    model(None, run.tokens, encoder_output=encoder_output, return_type=None)
        found.recordings.append(recording)
        found.rows.append(
            {
                "id": recording.id,
                "checksum": checksum_of_audio(recording.audio),
                "seconds": sum(window.seconds for window in windows),
                "language": spoken if texts else None,
                "reference": recording.text,
                "transcript": " ".join(texts) if texts else None,
                "n_windows": len(windows),
            }
        )
    if not found.rows:
        first = f"; the first is {found.skipped[0]}" if found.skipped else ""
        raise RecordingsError(f"none of the recordings can be used{first}.")
    return found


def transcripts_section(found: Transcripts) -> Section:
    """Transcripts beside what is said, with the word error rate."""
    rows = [row | {"wer": _wer([row])} for row in found.rows]
    said = [row for row in rows if None not in (row["reference"], row["transcript"])]
    shown = sorted(rows, key=lambda row: -(row["wer"] or 0))[:MOST_ROWS]
    numbers: dict[str, Any] = {
        "n_recordings": len(rows),
        "n_with_reference": len(said),
        "seconds": sum(row["seconds"] for row in rows),
        "n_skipped": len(found.skipped),
        "wer": _wer(said),
        "exact_share": sum(row["wer"] == 0 for row in said) / len(said) if said else None,
    }
    header = ["recording", "length (s)", "what is said", "what the model writes", "WER (%)"]
    cells = [
        [row[name] for name in ("id", "seconds", "reference", "transcript")]
        + [None if row["wer"] is None else 100 * row["wer"]]
        for row in shown
    ]
    transcripts = exhibit(
        "transcripts_table",
        called="transcripts",
        table=table(header, cells),
        n_shown=len(shown),
        **numbers,
    )
    return section("transcripts", numbers, [transcripts])


def _wer(rows: Sequence[dict[str, Any]]) -> float | None:
    """Of recordings together; None where a text or a transcript is missing, or no word is said."""
    references = [row["reference"] for row in rows]
    transcripts = [row["transcript"] for row in rows]
    if not rows or None in references or None in transcripts:
        return None
    rate = word_error_rate(references, transcripts, language=[row["language"] for row in rows])
    return None if math.isnan(rate) else rate
