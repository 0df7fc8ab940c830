"""Words of the digits model's recordings, put together anew: sequences whose truth is known.

Used by the examples that need pairs of recordings which differ in one word only.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hooked_whisper import load_audio
from hooked_whisper.digits import recordings

RATE_HZ = 16_000
SLOT_S = 1.0
"""From one word to the next; each stands in the middle of its slot."""
DIGITS = "zero one two three four five six seven eight nine".split()


@dataclass(frozen=True)
class Word:
    """One digit, cut out of a recording.

    Args:
        text: The digit.
        speaker: Who says it.
        sound: Its samples, at 16 kHz.
    """

    text: str
    speaker: str
    sound: Tensor


def slot(number: int) -> tuple[float, float]:
    """The seconds of a word."""
    return number * SLOT_S, (number + 1) * SLOT_S


def shipped_words() -> list[list[Word]]:
    """The words of each shipped recording."""
    found = []
    for each in recordings():
        samples = load_audio(each.path)
        cuts = [slice(round(w.start_s * RATE_HZ), round(w.end_s * RATE_HZ)) for w in each.words]
        words = zip(each.words, cuts, strict=True)
        found.append([Word(word.word, each.speaker, samples[cut]) for word, cut in words])
    return found


def words_of_folder(folder: Path, take: int) -> list[list[Word]]:
    """All digits of each speaker from `{digit}_{speaker}_{take}.wav`, as the FSDD names its files.

    The digits model was trained on takes 10 to 49.
    """
    by_speaker: dict[str, list[Word]] = {}
    for path in sorted(folder.glob(f"*_{take}.wav")):
        digit, speaker, _ = path.stem.split("_")
        word = Word(DIGITS[int(digit)], speaker, load_audio(path))
        by_speaker.setdefault(speaker, []).append(word)
    return list(by_speaker.values())


def join(words: list[Word]) -> Tensor:
    """The words one after the other, each in the middle of its slot."""
    length = round(SLOT_S * RATE_HZ)
    samples = torch.zeros(length * len(words))
    for number, word in enumerate(words):
        sound = word.sound[:length]
        start = number * length + (length - len(sound)) // 2
        samples[start : start + len(sound)] = sound
    return samples
