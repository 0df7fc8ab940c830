"""A page on which every attention head of a model can be looked at, and listened to."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND, SAMPLE_RATE_HZ
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import AudioWindow, mel_of, read_windows
from hooked_whisper.display import box, framed
from hooked_whisper.errors import AudioLengthError, InputError, RecordingsError
from hooked_whisper.hooks.root import Hook
from hooked_whisper.io import as_path
from hooked_whisper.model.language import spoken_language
from hooked_whisper.model.openai_api import has_alignment_heads
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.attention_data import (
    KINDS,
    Axis,
    Kind,
    PatternReducer,
    ReducedHead,
    choose_axes,
)
from hooked_whisper.reports.html import encode_mel, write_page
from hooked_whisper.speech.alignment import (
    AlignmentCollector,
    Times,
    Word,
    times_of_known_words,
    word_times,
    words_of_tokens,
)
from hooked_whisper.speech.audio import encode_audio
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens, get_tokenizer

MAX_MB = 12.0
"""What all patterns of a page may take; sound and spectrogram of 30 s add 0.3 MB."""


@dataclass(frozen=True)
class AttentionPage:
    """A page that was written; a notebook shows it whole.

    Args:
        path: The file.
        n_bytes: Its size.
        text: The transcript on it.
        bins: Positions, or tokens, in a bin of the queries and of the keys, by
            kind of attention; 1 and 1 where nothing was gathered.
    """

    path: Path
    n_bytes: int
    text: str
    bins: Mapping[Kind, tuple[int, int]]

    def _repr_html_(self) -> str:
        """The page itself."""
        return box(str(self.path), repr(self.text), framed(self.path))


@torch.no_grad()
def attention_page(
    model: HookedWhisper,
    recording: Any,
    out: str | os.PathLike[str],
    *,
    text: str | None = None,
    words: Sequence[Any] | None = None,
    language: str | None = None,
    cut: bool = False,
    max_mb: float | int = MAX_MB,
) -> AttentionPage:
    """Write one HTML file that shows where every head looks while a recording plays.

    The file works from disk, without a network: a grid of all heads, the
    pattern of the chosen one, and the sound behind each time and token. What
    it shows is the mean of the pattern over small bins, as fine as `max_mb`
    allows; for 3 s and a model of Whisper-Tiny's size every position is there.

    Args:
        model: The model, as it is: hooks and autoencoders that are attached take effect.
        recording: A path, a pair of samples and rate, one of
            `digits.recordings()`, or whatever else `harvest` takes, of one recording.
        out: The file to write; one that is there is replaced.
        text: What the decoder reads; None has the model write it down. "" is no text.
        words: `(start_s, end_s, word)` of what is said, to mark in the
            spectrogram. None takes the recording's own, else the text's words
            where cross-attention hears them.
        language: Of the text, a code or name; None takes the recording's label, else a
            multilingual model finds out.
        cut: Take the first 30 s of what is longer, instead of refusing it.
        max_mb: Megabytes that the patterns may take; wider bins are chosen until they fit.

    Raises:
        InputError: A budget that is too small, words that are none, an `out` that is a folder.
        RecordingsError: No recording, or several.
        AudioError: No usable audio; its subclasses say why.
        TokenError: A text of too many tokens, an unknown language.
        StoreWriteError: The file cannot be written.
    """
    model.cfg.need_decoder()
    path = check_out(out, "attention.html")
    max_mb = _check_budget(max_mb)
    known_words = [] if words is None else check_words(words)
    window = read_recording(model, recording, cut)
    if words is None:
        known_words = check_words(window.words or ())
    assert window.samples is not None
    mel = mel_of(model, [window])
    n_sound = max(1, int(mel.n_positions))
    choose_axes(model.cfg, n_sound, 2, max_mb)  # refused before the model writes a text
    transcript = read_transcript(model, mel, text, language or window.language)
    axes = choose_axes(model.cfg, n_sound, transcript.tokens.shape[1], max_mb)

    reducer = PatternReducer(axes)
    alignment = AlignmentCollector(model.alignment_heads, n_sound)
    hooks: list[Hook] = [("*.hook_pattern", reducer), (alignment.names, alignment)]
    model.run_with_hooks(mel, transcript.tokens, return_type=None, fwd_hooks=hooks)

    n_tokens = transcript.tokens.shape[1]
    times_of_words = times_of_known_words(transcript.words, known_words, n_tokens)
    times = times_of_words or alignment.token_times(transcript.n_prompt)
    data = {
        "model": model.cfg.model_name,
        "recording": window.name,
        "text": transcript.text,
        "text_from": "the model" if text is None else "given",
        "sound_s": window.seconds,
        "window_s": model.cfg.window_s,
        "position_s": model.cfg.window_s / model.cfg.n_audio_ctx,
        "audio": encode_audio(window.samples),
        "mel": encode_mel(mel.values[0, :, : max(1, int(mel.n_frames))]),
        "tokens": _tokens(model, transcript, times),
        "n_prompt": transcript.n_prompt,
        "words": known_words or word_times(transcript.words, times),
        "words_from": "given" if known_words else "cross-attention",
        "times_from": "given" if times_of_words else "cross-attention",
        "padded": n_sound < model.cfg.n_audio_ctx,
        "about": {kind: _about(kind, *axes[kind]) for kind in KINDS},
        "timing_heads": model.alignment_heads.to_dense().nonzero().tolist(),
        "timing_known": has_alignment_heads(model),
        "kinds": {kind: _kind(axes[kind], reducer.heads[kind]) for kind in KINDS},
    }
    title = f"Attention of {model.cfg.model_name}: {window.name}"
    n_bytes = write_page(path, "attention", data, title)
    bins = {kind: (query.width, key.width) for kind, (query, key) in axes.items()}
    return AttentionPage(path, n_bytes, transcript.text, bins)


@dataclass(frozen=True)
class Transcript:
    """A text as the decoder reads it.

    Args:
        tokens: The prompt, the text, and end-of-text.
        n_prompt: Tokens of the prompt.
        text: The text alone; empty where nothing is said.
        words: Its words, each with the places of its tokens.
    """

    tokens: Int[Tensor, "one pos"]
    n_prompt: int
    text: str
    words: list[tuple[str, range]]


def read_transcript(
    model: HookedWhisper, mel: Mel, text: str | None, language: str | None
) -> Transcript:
    """The tokens of a text, or of what the model writes down itself where there is none.

    Args:
        model: The model.
        mel: One recording.
        text: What is said; begins with a space, or is given one, as Whisper writes.
        language: A code or name; None has a multilingual model find out.

    Raises:
        TokenError: No such language, or a text of more tokens than the decoder has positions.
    """
    if text is None:
        made = model.generate(mel, language=language, skip_silence=True)
        tokenizer = get_tokenizer(model.cfg, made.languages[0])
        row, n_prompt = made.tokens[0].tolist(), made.n_prompt
        written = [token for token in row[n_prompt:] if token != tokenizer.eot]
        written = written[: model.cfg.n_text_ctx - n_prompt - 1]
        tokens = torch.tensor([[*row[:n_prompt], *written, tokenizer.eot]])
    else:
        language = spoken_language(model, mel, language)
        tokenizer = get_tokenizer(model.cfg, language)
        stripped = text.strip()
        spaced = f" {stripped}" if stripped and not stripped.startswith("<|") else stripped
        n_prompt = model.to_tokens("", language=language).shape[1]
        tokens = model.to_tokens(spaced, append_eot=True, language=language)
    tokens = tokens.to(model.device)
    check_tokens(tokens, model.cfg.d_vocab, model.cfg.n_text_ctx)
    words = words_of_tokens(tokenizer, tokens[0].tolist(), n_prompt)
    return Transcript(tokens, n_prompt, model.to_string(tokens[0]).strip(), words)


def check_out(out: Any, name: str) -> Path:
    """The file to write, once it is sure that it is no folder; `name` is one as an example."""
    path = as_path(out, InputError)
    if path.is_dir():
        raise InputError(f"out is {str(out)!r}, a folder; name the file: {path / name}")
    return path


def _check_budget(max_mb: Any) -> float:
    is_number = isinstance(max_mb, int | float) and not isinstance(max_mb, bool)
    if not is_number or not 0 < max_mb < float("inf"):
        raise InputError(f"max_mb is {max_mb!r}; it must be a number of megabytes over 0.")
    return float(max_mb)


def check_words(words: Sequence[Any]) -> list[Word]:
    """Words with their times, as plain tuples."""
    checked: list[Word] = []
    for number, given in enumerate(words):
        try:
            start_s, end_s, word = given
            start_s, end_s = float(start_s), float(end_s)
        except (TypeError, ValueError):
            raise InputError(
                f"word {number} is {given!r}; pass its start and end in seconds and the word: "
                '(0.5, 0.9, "three").'
            ) from None
        if not 0 <= start_s <= end_s < float("inf"):
            raise InputError(
                f"word {number}, {word!r}, goes from {start_s:g} to {end_s:g} s; it must begin at "
                "0 s or later, and end after that."
            )
        checked.append((start_s, end_s, str(word)))
    return checked


def read_recording(model: HookedWhisper, recording: Any, cut: bool) -> AudioWindow:
    """The one recording of a page, as long as the model's window at most."""
    found = list(as_recordings([recording] if isinstance(recording, Mapping) else recording))
    if len(found) != 1:
        raise RecordingsError(
            f"{len(found)} recordings were given, and the page shows one: {found[0].id!r}, say."
        )
    samples = found[0].load()
    window = read_windows(found[0], 0, model.cfg, "cut", samples)[0]
    if not window.is_whole and not cut:
        raise AudioLengthError(
            f"{window.name} is {len(samples) / SAMPLE_RATE_HZ:.2f} s long; the page shows one "
            f"window of {model.cfg.window_s:g} s. Pass cut=True for its beginning."
        )
    return replace(window, name="recording") if isinstance(recording, tuple) else window


def _tokens(model: HookedWhisper, transcript: Transcript, times: Times) -> list[dict[str, Any]]:
    """Each token's text and times for the page."""
    texts = model.to_str_tokens(transcript.tokens[0])
    return [
        {"text": text, "start": time[0] if time else None, "end": time[1] if time else None}
        for text, time in zip(texts, times, strict=True)
    ]


def _about(kind: Kind, query: Axis, key: Axis) -> str:
    """What a cell of a pattern is."""
    rows, columns = _size(query, kind == "encoder"), _size(key, kind != "decoder")
    is_whole = query.width == key.width == 1
    each = "every value of the pattern," if is_whole else "the mean of the pattern over"
    of = (
        f"rows and columns of {rows}"
        if rows == columns
        else f"rows of {rows}, columns of {columns}"
    )
    return f"{each} {of}."


def _size(axis: Axis, is_time: bool) -> str:
    """How much there is in a bin, with its unit."""
    unit = ("position" if is_time else "token") + ("" if axis.width == 1 else "s")
    ms = 1000 * FRAMES_PER_POSITION // FRAMES_PER_SECOND
    return f"{axis.width} {unit}" + (f" ({axis.width * ms} ms)" if is_time else "")


def _kind(axes: tuple[Axis, Axis], layers: Mapping[int, list[ReducedHead]]) -> dict[str, Any]:
    """One kind of attention for the page."""
    query, key = ({"edges": each.edges, "n_sound": each.n_sound} for each in axes)
    heads = [
        [
            {"packed": head.packed(), "largest": head.largest, "entropy": head.entropy_nats}
            for head in layers[layer]
        ]
        for layer in sorted(layers)
    ]
    return {"query": query, "key": key, "heads": heads}
