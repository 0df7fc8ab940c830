"""Recordings get labels of what is said when: by the model, by an aligner, from files."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hooked_whisper.data.batches import text_row
from hooked_whisper.data.recordings import Recording, reason_of
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import AudioWindow, mel_of, read_windows
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import LabelError, RecordingsError, shown
from hooked_whisper.io import as_path, write_whole
from hooked_whisper.model.language import spoken_language
from hooked_whisper.model.openai_api import warn_of_heads
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.alignment import (
    AlignmentCollector,
    Times,
    word_times,
    words_of_tokens,
)
from hooked_whisper.speech.alignment_files import SUFFIXES, read_alignment
from hooked_whisper.speech.phone_alignment import PhoneAligner, words_of
from hooked_whisper.speech.phones import MANNER, PLACE
from hooked_whisper.speech.tokens import get_tokenizer

WORD, PHONE = "word", "phone"
"""What the labels of words and phones are called."""


@torch.no_grad()
def align_words(
    model: HookedWhisper, recordings: Any, *, language: str | None = None, progress: bool = True
) -> list[Recording]:
    """Recordings with a label `word`: when each word is said, by the model's cross-attention.

    The text is the recording's, or where there is none what the model writes. A word begins where
    the one before ends, so that a pause belongs to a word beside it; `align_phones` is nearer and
    knows pauses, for English.

    Args:
        model: The model, whose `alignment_heads` are read.
        recordings: What `as_recordings` takes.
        language: Of the texts; a recording's label `language` goes before it. None has a
            multilingual model find out.
        progress: Show a progress bar.

    Returns:
        All recordings in their order; those that cannot be aligned, of which a warning tells, as
        they are.

    Raises:
        RecordingsError: No recording, or none that can be aligned.
        TokenError: A vocabulary that is not Whisper's, or a language that it does not have.

    Source: `whisper.timing.find_alignment`.
    """
    get_tokenizer(model.cfg, language)
    warn_of_heads(model)

    def labelled(recording: Recording) -> Recording:
        told = recording.language or language
        if recording.text is None:
            return _transcribed(model, recording, told)
        text = read_text(model, recording, told)
        times = times_by_attention(model, text.window, text.tokens, text.n_prompt)
        return _with(recording, {WORD: word_times(text.words, times)})

    return _each(labelled, recordings, "aligning words", progress)


def align_phones(
    recordings: Any,
    *,
    pronunciations: Mapping[str, str] | None = None,
    progress: bool = True,
) -> list[Recording]:
    """Recordings with labels `word`, `phone`, `manner` and `place`, by forced alignment.

    For English with a text. A word that the dictionary does not have gets its time by a guess at
    how it sounds, and no phones; a warning names these words.

    Args:
        recordings: What `as_recordings` takes.
        pronunciations: More words, or others' pronunciations: `{"yule": "Y UW L"}`, in ARPAbet.
        progress: Show a progress bar.

    Returns:
        All recordings in their order; those that cannot be aligned, of which a warning tells, as
        they are.

    Raises:
        LabelError: PocketSphinx, of the extra `labels`, is not installed; a pronunciation that is
            none.
        RecordingsError: No recording, or none that can be aligned.

    Source: PocketSphinx (Huggins-Daines et al. 2006) with CMUSphinx's model "en-us".
    """
    aligner = PhoneAligner(pronunciations)
    unknown: set[str] = set()

    def labelled(recording: Recording) -> Recording:
        language = str(recording.labels.get("language") or "en")
        if language.split("-")[0].lower() not in ("en", "english"):
            raise LabelError(f"its language is {language!r}; phones are aligned in English alone.")
        if recording.text is None:
            raise LabelError("it has no text. align_words transcribes what has none.")
        found = aligner.align(recording.load(), recording.text)
        unknown.update(found.unknown)
        return _with(recording, {WORD: found.words, PHONE: found.phones})

    done = _each(labelled, recordings, "aligning phones", progress)
    if unknown:
        some = ", ".join(sorted(unknown)[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        warnings.warn(
            f"{len(unknown)} words are not in the dictionary and get no phones: {some}{more}. "
            "Pass pronunciations={...} for them.",
            stacklevel=2,
        )
    return done


def add_alignments(recordings: Any, source: str | os.PathLike[str]) -> list[Recording]:
    """Recordings with labels from files of words and phones: a label for each tier.

    Args:
        recordings: What `as_recordings` takes.
        source: A folder of TextGrid, CSV, TSV or CTM files, searched to its depths, or one such
            file. Each belongs to the recording whose file is called like it, but for the ending.

    Returns:
        All recordings in their order; those without such a file, of which a warning tells, as they
        are.

    Raises:
        LabelError: No file there, one that cannot be read, or two for one recording.
        RecordingsError: No recording, or none that has such a file.
    """
    path = as_path(source, LabelError)
    suffixes = {suffix.lower() for suffix in SUFFIXES}
    files = [path]
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in suffixes)
        files = [each for each in files if each.stem != "manifest"]
    if not files or not path.exists():
        raise LabelError(f"there is no {', '.join(SUFFIXES)} in {shown(str(path))}.")
    tiers: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, found in read_alignment(file).items():
            if name in tiers:
                raise LabelError(f"two files in {shown(str(path))} are for {shown(name)}.")
            tiers[name] = found

    def labelled(recording: Recording) -> Recording:
        stem = Path(recording.id).stem
        if stem not in tiers:
            raise LabelError(f"no alignment is called {stem!r}.")
        return _with(recording, tiers[stem])

    return _each(labelled, recordings, "labels", progress=False)


def write_manifest(recordings: Any, path: str | os.PathLike[str]) -> None:
    """Write recordings and all their labels as a JSONL manifest, which `as_recordings` reads.

    Raises:
        RecordingsError: A recording that is no file, another ending.
        StoreWriteError: It cannot be written.
    """
    path = as_path(path, RecordingsError)
    if path.suffix.lower() != ".jsonl":
        raise RecordingsError(f"{shown(str(path))} must end in .jsonl, which holds timed labels.")
    lines = []
    for recording in as_recordings(recordings):
        if recording.path is None:
            raise RecordingsError(
                f"{recording.id!r} is no file, and a manifest names files. Write its sound to one."
            )
        audio = os.path.relpath(recording.path.expanduser(), path.parent)
        row = {"path": Path(audio).as_posix(), "id": recording.id, **recording.labels}
        if recording.text is not None:
            row["text"] = recording.text
        if recording.tokens is not None:
            row["tokens"] = list(recording.tokens)
        lines.append(json.dumps(row, ensure_ascii=False))
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    write_whole(path, lambda file: file.write(data))


class ReadText(NamedTuple):
    """A text as the decoder reads it, and the sound that it says.

    Args:
        window: The recording's only one.
        tokens: The prompt and the text.
        n_prompt: Tokens of the prompt.
        words: Each with the places of its tokens.
    """

    window: AudioWindow
    tokens: list[int]
    n_prompt: int
    words: list[tuple[str, range]]


def read_text(model: HookedWhisper, recording: Recording, language: str | None) -> ReadText:
    """What a recording with a text gives the decoder.

    Raises:
        LabelError: It is longer than a window, or its text than the decoder takes.
    """
    assert recording.text is not None
    windows = read_windows(recording, 0, model.cfg)
    if len(windows) != 1 or not windows[0].is_whole:
        raise LabelError(
            "it is longer than the model's window, and a text can be aligned with one alone. "
            "Leave its text out, so that it is transcribed, or use align_phones."
        )
    spoken = spoken_language(model, mel_of(model, windows), language)
    tokens = text_row(recording.text, model.cfg, language=spoken)
    n_prompt = len(text_row("", model.cfg, language=spoken))
    tokenizer = get_tokenizer(model.cfg, spoken)
    words = words_of_tokens(tokenizer, [*tokens, tokenizer.eot], n_prompt)
    if len(tokens) >= model.cfg.n_text_ctx:
        raise LabelError(f"its text has {len(tokens)} tokens, more than the decoder takes.")
    return ReadText(windows[0], list(tokens), n_prompt, words)


@torch.no_grad()
def times_by_attention(
    model: HookedWhisper, window: AudioWindow, tokens: Sequence[int], n_prompt: int
) -> Times:
    """When each token is said, as the alignment heads hear it; None for the prompt."""
    mel = mel_of(model, [window])
    row = [*tokens, get_tokenizer(model.cfg).eot][: model.cfg.n_text_ctx]
    collector = AlignmentCollector(model.alignment_heads, window.n_positions)
    with model.hooks([(collector.names, collector)]):
        model(mel, torch.tensor([row], device=model.device), return_type=None)
    return [*collector.token_times(n_prompt), None][: len(tokens)]


def _transcribed(model: HookedWhisper, recording: Recording, language: str | None) -> Recording:
    found = model.transcribe(
        recording.load(), language=language, word_timestamps=True, temperature=0.0
    )
    spoken = [word for segment in found["segments"] for word in segment["words"]]
    times = [(float(word["start"]), float(word["end"]), word["word"]) for word in spoken]
    return _with(replace(recording, text=found["text"].strip()), {WORD: times})


def _with(recording: Recording, tiers: Mapping[str, Iterable[Any]]) -> Recording:
    """The recording with timed labels; words without case and marks, of phones manner and place."""
    labels: dict[str, Any] = dict(recording.labels)
    for name, pieces in tiers.items():
        rows = [[*piece] for piece in pieces]
        if name == WORD:
            rows = [[start, end, " ".join(words_of(str(word)))] for start, end, word in rows]
        labels[name] = [[start, end, value] for start, end, value in rows if start < end and value]
    phones = labels[PHONE] if PHONE in tiers else []
    if all(phone in MANNER for *_, phone in phones):
        for name, of_phone in (("manner", MANNER), ("place", PLACE)) if phones else ():
            labels[name] = [[start, end, of_phone[phone]] for start, end, phone in phones]
    return replace(recording, labels=labels)


def _each(
    labelled: Callable[[Recording], Recording], recordings: Any, what: str, progress: bool
) -> list[Recording]:
    """Each recording labelled, or as it is where that cannot be done, which a warning tells."""
    found = list(as_recordings(recordings))
    done, failed = [], []
    for recording in progress_bar(found, desc=what, unit="recording", show=progress):
        try:
            recording.check()
            done.append(labelled(recording))
        except Exception as error:  # whatever is wrong with one, the others are labelled
            done.append(recording)
            failed.append(f"{shown(str(recording.id), 60)}: {reason_of(error)}")
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        told = f"{len(failed)} of {len(found)} recordings cannot be labelled: "
        told += "; ".join(failed[:5]) + more
        if len(failed) == len(found):
            raise RecordingsError(told)
        warnings.warn(told, stacklevel=3)
    return done
