"""What is said when, and by whom: labels of frames, words and recordings, and latents to match."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hooked_whisper.analysis.selectivity import (
    ActiveLatents,
    Labels,
    LatentCollector,
    Selectivity,
    Unit,
    selectivity,
)
from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError
from hooked_whisper.hooks.splice_site import VECTORS_AT_ONCE, SpliceSite
from hooked_whisper.model.splicing import splice_site
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.evaluation.inputs import Inputs, prepare
from hooked_whisper.speech.mel import Mel

Level = Literal["frame", "word", "recording"]

POSITION_S = FRAMES_PER_POSITION / FRAMES_PER_SECOND
"""Seconds of one encoder position."""


@dataclass(frozen=True, eq=False)
class LatentsBySpeech:
    """The latents of recordings: of every frame, and the greatest in each word and recording.

    Args:
        recordings: What they are of.
        n_positions: How many encoder positions of each recording count.
        frames: Of these positions, one recording after the other.
        words: The greatest within each word, in order.
        whole: The greatest within each recording.
    """

    recordings: Sequence[Any]
    n_positions: tuple[int, ...]
    frames: ActiveLatents
    words: ActiveLatents | None
    whole: ActiveLatents

    def selectivity(self, level: Level = "frame", unit: Unit = "bits") -> Selectivity:
        """How well each latent tells what is said, who speaks, which word of the text it is.

        Args:
            level: What is told apart. `"frame"`: each frame, by its word;
                frames between words have none, and count for `"silence"` only.
                `"word"`: each word, by its most active frame. `"recording"`:
                the speaker, and which words occur.
            unit: Of mutual information.
        """
        if level not in get_args(Level):
            raise InputError(f"level is {level!r}; it can be {', '.join(get_args(Level))}.")
        if level == "frame":
            return selectivity(self.frames, frame_labels(self.recordings, self.n_positions), unit)
        if level == "recording":
            return selectivity(self.whole, recording_labels(self.recordings), unit)
        labels = word_labels(self.recordings)
        assert self.words is not None
        return selectivity(self.words, labels, unit)


@torch.no_grad()
def latents_by_speech(
    sae: Any,
    model: HookedWhisper,
    recordings: Sequence[Any],
    hook_name: str | None = None,
    *,
    all_frames: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> LatentsBySpeech:
    """The latents of recordings at a site of the encoder, to be held against labels.

    Args:
        sae: Anything with `encode` and `decode`.
        model: The model.
        recordings: Anything with a `.path` or `.audio`, with `.words` (each with
            `word`, `start_s`, `end_s`), or a `.speaker`, or both: `digits.recordings()`.
        hook_name: What it reads; None is what its configuration says.
        all_frames: Count the padding too.
        batch_size: Recordings side by side.
        progress: Show a progress bar.

    Raises:
        InputError: Recordings of which nothing is known, or a site in the decoder.
        SpliceError: The autoencoder does not fit the site.
    """
    recordings = list(recordings)
    _check_known(recordings)
    site, inputs = (
        splice_site(model, sae, hook_name).of_positions(),
        _untold(model, recordings, batch_size),
    )
    frames, words, whole = LatentCollector(), LatentCollector(), LatentCollector()
    n_positions: list[int] = []
    has_words = all(getattr(each, "words", None) is not None for each in recordings)
    for first, mel, latents in encoder_latents(site, inputs, progress=progress):
        lengths = [latents.shape[1]] * len(mel) if all_frames else mel.n_positions.tolist()
        n_positions += lengths
        for row, length in enumerate(lengths):
            mine = latents[row, :length]
            frames.add(mine)
            whole.add(mine.amax(dim=0, keepdim=True))
            spans = _word_spans(recordings[first + row], latents.shape[1]) if has_words else []
            if spans:
                words.add(torch.stack([latents[row, a:b].amax(dim=0) for a, b in spans]))
    return LatentsBySpeech(
        recordings,
        tuple(n_positions),
        frames.result(),
        words.result() if words.n_vectors else None,
        whole.result(),
    )


def label_selectivity(
    sae: Any,
    model: HookedWhisper,
    recordings: Sequence[Any],
    hook_name: str | None = None,
    *,
    level: Level = "frame",
    unit: Unit = "bits",
    all_frames: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> Selectivity:
    """How well each latent tells words, speakers, places in the text, and silence, in one call.

    See `latents_by_speech` for what it is given, and `LatentsBySpeech.selectivity`
    for the levels.
    """
    if level not in get_args(Level):
        raise InputError(f"level is {level!r}; it can be {', '.join(get_args(Level))}.")
    found = latents_by_speech(
        sae,
        model,
        recordings,
        hook_name,
        all_frames=all_frames,
        batch_size=batch_size,
        progress=progress,
    )
    return found.selectivity(level, unit)


def frame_labels(recordings: Sequence[Any], n_positions: Sequence[int] | Tensor) -> list[Labels]:
    """What is known about each encoder position, of all recordings one after the other.

    Args:
        recordings: With `.words`, or `.speaker`, or both.
        n_positions: How many positions of each count: `mel.n_positions`.

    Returns:
        `"word"`, `"position"` (which word of the text, from 1), `"silence"`
        (whether no word is said in the middle of the position), `"speaker"`.
        Frames between words have no `"word"` and no `"position"`.
    """
    _check_known(recordings)
    lengths = [int(each) for each in n_positions]
    if len(lengths) != len(recordings):
        raise InputError(f"{len(lengths)} n_positions and {len(recordings)} recordings.")
    said: list[str | None] = []
    place: list[int | None] = []
    for recording, length in zip(recordings, lengths, strict=True):
        found = _word_at(recording, length)
        words = getattr(recording, "words", None) or ()
        said += [None if i < 0 else words[i].word for i in found.tolist()]
        place += [None if i < 0 else i + 1 for i in found.tolist()]
    labels = _speakers(recordings, lengths)
    if all(getattr(each, "words", None) is not None for each in recordings):
        silence = ["silence" if word is None else "speech" for word in said]
        if any(word is not None for word in said):
            labels = [Labels.of("word", said), Labels.of("position", place), *labels]
        labels.append(Labels.of("silence", silence, ["speech", "silence"]))
    return labels


def word_labels(recordings: Sequence[Any]) -> list[Labels]:
    """What is known about each word of all recordings: `"word"`, `"position"`, `"speaker"`."""
    _check_known(recordings)
    words = [list(getattr(each, "words", None) or ()) for each in recordings]
    if not any(words):
        raise InputError("no recording has words with their times; there is no word to tell.")
    said = [word.word for each in words for word in each]
    place = [i + 1 for each in words for i in range(len(each))]
    speakers = _speakers(recordings, [len(each) for each in words])
    return [Labels.of("word", said), Labels.of("position", place), *speakers]


def recording_labels(recordings: Sequence[Any]) -> list[Labels]:
    """What is known about each whole recording: `"speaker"`, and for each word whether it occurs.

    The labels of words are called `"has three"`, with the values `"no"` and `"yes"`.
    """
    _check_known(recordings)
    labels = _speakers(recordings, [1] * len(recordings))
    said = [{word.word for word in getattr(each, "words", None) or ()} for each in recordings]
    for word in sorted(set().union(*said)):
        has = ["yes" if word in each else "no" for each in said]
        labels.append(Labels.of(f"has {word}", has, ["no", "yes"]))
    return labels


@torch.no_grad()
def encoder_latents(
    site: SpliceSite, inputs: Inputs, chosen: Sequence[int] | None = None, *, progress: bool = True
) -> Iterator[tuple[int, Mel, Float[Tensor, "batch pos latent"]]]:
    """The latents of each batch of recordings, on the CPU, a batch at a time.

    Args:
        site: The autoencoder and where it reads; in the encoder.
        inputs: The recordings.
        chosen: Some of the latents; None is all.
        progress: Show a progress bar.

    Raises:
        InputError: A site in the decoder, or behind more than a position's vector.
    """
    if not site.hook_in.startswith("encoder"):
        raise InputError(
            f"{site.hook_in!r} is in the decoder, whose positions have no time. Labels of its "
            "tokens go to selectivity(latents, labels)."
        )
    columns = slice(None) if chosen is None else list(chosen)
    mels = progress_bar(
        inputs.mels(), desc="latents", unit="batch", total=inputs.n_batches, show=progress
    )
    for first, mel in mels:
        _, cache = inputs.model.run_with_cache(mel, names_filter=site.hook_in)
        x = cache[site.hook_in]
        if x.ndim != 3:
            raise InputError(
                f"{site.hook_in!r} has {x.ndim} axes; here each position needs one vector."
            )
        parts = x.reshape(-1, site.d_in).split(VECTORS_AT_ONCE)
        latents = torch.cat([site.encode(part)[:, columns].float().cpu() for part in parts])
        yield first, mel, latents.view(*x.shape[:2], -1)


def word_at(recording: Any, time_s: float | int) -> str | None:
    """The word that is said at a time, in seconds; None between words, or where none is known."""
    for word in getattr(recording, "words", None) or ():
        if word.start_s <= time_s < word.end_s:
            return str(word.word)
    return None


def _untold(model: HookedWhisper, recordings: Sequence[Any], batch_size: int) -> Inputs:
    """Inputs of which no text is needed."""
    tokens = [[0, 0]] * len(recordings)
    return prepare(model, recordings, tokens=tokens, batch_size=batch_size)


def _word_at(recording: Any, n_positions: int) -> Int64[Tensor, " pos"]:
    """Which word is said in the middle of each position; -1 for none."""
    found = torch.full((n_positions,), -1)
    middle_s = (torch.arange(n_positions, dtype=torch.float64) + 0.5) * POSITION_S
    for i, word in enumerate(getattr(recording, "words", None) or ()):
        found[(middle_s >= word.start_s) & (middle_s < word.end_s)] = i
    return found


def _word_spans(recording: Any, n_positions: int) -> list[tuple[int, int]]:
    """The positions of each word, from the first that it touches to behind the last."""
    spans = []
    for word in recording.words:
        first = min(n_positions - 1, max(0, math.floor(word.start_s / POSITION_S + 1e-6)))
        end = min(n_positions, math.ceil(word.end_s / POSITION_S - 1e-6))
        spans.append((first, max(first + 1, end)))
    return spans


def _speakers(recordings: Sequence[Any], counts: Sequence[int]) -> list[Labels]:
    speakers = [getattr(each, "speaker", None) for each in recordings]
    if all(speaker is None for speaker in speakers):
        return []
    each = [speaker for speaker, n in zip(speakers, counts, strict=True) for _ in range(n)]
    return [Labels.of("speaker", each)] if any(name is not None for name in each) else []


def _check_known(recordings: Sequence[Any]) -> None:
    if not len(recordings):
        raise InputError("there are no recordings; pass at least one.")
    for i, each in enumerate(recordings):
        if getattr(each, "words", None) is None and getattr(each, "speaker", None) is None:
            raise InputError(
                f"recording {i} is a {type(each).__name__} with neither words nor a speaker, so "
                "that there is nothing to tell. Give it `.words` with word, start_s and end_s."
            )
        for word in getattr(each, "words", None) or ():
            if not 0 <= word.start_s < word.end_s:
                raise InputError(
                    f"recording {i}: {word.word!r} is from {word.start_s} to {word.end_s} s, "
                    "which is no stretch of time."
                )
