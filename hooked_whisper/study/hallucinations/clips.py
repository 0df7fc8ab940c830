"""What is listened to: sounds in which nobody speaks, and speech, each in two halves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.data import AudioWindow, Recording, as_recordings, load_windows
from hooked_whisper.errors import RecordingsError

Half = Literal["choose", "judge", ""]
"""Edits are chosen on one half and judged on the other; "" where only rates are told."""

SPEECH = "speech"


@dataclass(frozen=True, eq=False)
class Clip:
    """One window that is listened to.

    Args:
        name: Its recording's, and where it begins in it; no other clip's.
        kind: Of sound, as its label `kind` has it.
        window: Its sound, and what is known of it.
        half: What it is for.
        is_sound: Whether nobody speaks in it.
    """

    name: str
    kind: str
    window: AudioWindow
    half: Half
    is_sound: bool


def sound_clips(model: HookedWhisper, recordings: Any, seed: int) -> list[Clip]:
    """Sounds: each kind in two halves. Where somebody does speak it is in none.

    Speech is told by a label `language`, a text or words.
    """
    found = list(as_recordings(recordings))
    clips = []
    for window in load_windows(model, found):
        recording = found[window.recording]
        spoken = recording.language or recording.text or recording.words
        kind = str(recording.labels.get("kind") or "sound")
        if spoken and recording.language and kind == SPEECH:
            kind = f"{SPEECH} ({recording.language})"
        clips.append(Clip(_name(window), kind, window, "", not spoken))
    halves: dict[str, Half] = {}
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    sounds = sorted((clips[i] for i in order if clips[i].is_sound), key=lambda clip: clip.kind)
    for number, clip in enumerate(sounds):
        halves[clip.name] = "judge" if number % 2 else "choose"
    if len(sounds) < 4:
        raise RecordingsError(
            f"{len(sounds)} sounds without speech are too few to choose edits on one half and to "
            "judge them on the other. Give more, or have some made: generated=6."
        )
    _check_names(clips)
    return [replace(clip, half=halves.get(clip.name, "")) for clip in clips]


def speech_clips(model: HookedWhisper, recordings: Any, seed: int) -> list[Clip]:
    """Speech whose words are known: the speakers of one half are not in the other."""
    windows = [window for window in load_windows(model, recordings) if window.text]
    speakers = sorted({_speaker(window) for window in windows})
    if len(speakers) < 2:
        raise RecordingsError(
            f"{len(windows)} windows of speech with a text, of {len(speakers)} speakers, are too "
            "few: edits are judged on speakers that did not choose them. Give recordings with "
            "texts, and a label speaker."
        )
    order = torch.randperm(len(speakers), generator=torch.Generator().manual_seed(seed)).tolist()
    n_of: dict[Half, int] = {"choose": 0, "judge": 0}
    half_of: dict[str, Half] = {}
    for speaker in (speakers[i] for i in order):
        half: Half = min(n_of, key=lambda half: n_of[half])
        half_of[speaker] = half
        n_of[half] += sum(_speaker(window) == speaker for window in windows)
    clips = [
        Clip(_name(window), SPEECH, window, half_of[_speaker(window)], is_sound=False)
        for window in windows
    ]
    _check_names(clips)
    return clips


def half(clips: Iterable[Clip], which: Half, most: int | None = None) -> list[Clip]:
    """The clips of a half; at most so many of them, spread over all."""
    found = [clip for clip in clips if clip.half == which]
    if most is None or len(found) <= most:
        return found
    return [found[i * len(found) // most] for i in range(most)]


def with_generated(sounds: Any, made: Sequence[Recording]) -> list[Recording]:
    """The user's sounds, if any, and those that were made."""
    own = [] if sounds is None else list(as_recordings(sounds))
    if not own and not made:
        raise RecordingsError("there are no sounds: give some, or have some made: generated=6.")
    return [*own, *made]


def _speaker(window: AudioWindow) -> str:
    return window.speaker or f"of {window.name}"


def _name(window: AudioWindow) -> str:
    return window.name if window.is_whole else f"{window.name} from {window.start_s:g} s"


def _check_names(clips: Sequence[Clip]) -> None:
    names = [clip.name for clip in clips]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecordingsError(f"two recordings are called {twice!r}; give each its own name.")
