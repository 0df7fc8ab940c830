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
from hooked_whisper.speech import get_tokenizer, has_tokenizer, word_error_rate
from hooked_whisper.study.report import Section, exhibit, section

Hooks = list[tuple[str, Callable[..., None]]]

MOST_ROWS = 200
"""Recordings in the report's table; report.json has all."""
WRITTEN_TOGETHER = 8
"""Windows whose texts are decoded side by side."""


@dataclass(eq=False)
class WindowRun:
    """One window on its way through the model.

    Args:
        window: Its sound, and what is known of it.
        mel: Its log-mel, alone in its batch.
        row: What the report says of its recording.
        encoder_output: What the decoder reads, until it has.
        tokens: What the decoder reads, start sequence first, once that is known.
        n_start: Queries before those that write the text.
        text: The transcript; None where the model writes none.
    """

    window: AudioWindow
    mel: Mel
    row: dict[str, Any] = field(default_factory=dict)
    encoder_output: Tensor | None = None
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

    Where the model hears no speech it writes nothing. Texts of several windows, of as many
    recordings as these are of, are decoded side by side.

    Statistics, of the encoder and of the decoder while it reads what it wrote,
    say with `hooks(run)` what they hook.
    """
    found, waiting, writes = Transcripts(), list[WindowRun](), has_tokenizer(model.cfg)
    bar = {"total": recordings.n, "desc": "listening", "unit": "recording", "show": progress}
    for recording in progress_bar(recordings, **bar):
        skipped: list[SkippedRecording] = []
        windows = list(each_window(model.cfg, [recording], skipped))
        found.skipped += [{"id": each.id, "reason": each.reason} for each in skipped]
        if skipped:
            continue
        row = {
            "id": recording.id,
            "checksum": checksum_of_audio(recording.audio),
            "seconds": sum(window.seconds for window in windows),
            "language": (recording.language or language) if writes else None,
            "reference": recording.text,
            "transcript": None,
            "n_windows": len(windows),
        }
        found.recordings.append(recording)
        found.rows.append(row)
        for batch in window_batches(model, windows, 1):
            run = WindowRun(batch.windows[0], batch.mel, row)
            with model.hooks([hook for each in encoder for hook in each.hooks(run)]):
                run.encoder_output = model.encoder(run.mel.values)
            waiting.append(run)
            first_tells = row["language"] is None and len(windows) > 1  # what all of it is in
            if len(waiting) == WRITTEN_TOGETHER or first_tells:
                _decode(model, waiting, decoder, options)
    _decode(model, waiting, decoder, options)
    if not found.rows:
        first = f"; the first is {found.skipped[0]}" if found.skipped else ""
        raise RecordingsError(f"none of the recordings can be used{first}.")
    return found


def _decode(
    model: HookedWhisper, runs: list[WindowRun], decoder: Sequence[Any], options: dict[str, Any]
) -> None:
    """Write the texts of windows side by side, and have the decoder read each; empties the list."""
    if runs and has_tokenizer(model.cfg):
        outputs = torch.cat([run.encoder_output for run in runs if run.encoder_output is not None])
        told = [run.row["language"] for run in runs]
        done = model.generate(encoder_output=outputs, language=told, skip_silence=True, **options)
        is_text = done.tokens != get_tokenizer(model.cfg).eot
        for number, (run, text) in enumerate(zip(runs, done.texts, strict=True)):
            tokens = done.tokens[number, is_text[number]]
            run.tokens = tokens[None, : None if text else done.n_prompt]  # of silence no text
            run.n_start, run.text = done.n_prompt - 1, text
            before = run.row["transcript"]
            run.row["transcript"] = text if before is None else f"{before} {text}"
            run.row["language"] = done.languages[number]
    last: Any = ("decoder", model.cfg.n_text_layers)  # nobody looks at logits
    for run in runs:
        if run.tokens is None and run.window.tokens is not None:  # the recording's own
            run.tokens = torch.tensor([run.window.tokens], device=model.device)
        output, run.encoder_output = run.encoder_output, None
        if run.tokens is not None:
            with model.hooks([hook for each in decoder for hook in each.hooks(run)]):
                model(None, run.tokens, encoder_output=output, stop_at_layer=last)
    runs.clear()


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
