"""The recordings that come with the digits model: people saying a few digits."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from hooked_whisper.display import box, data_uri, fold, player, table

FOLDER = Path(__file__).parent / "weights" / "digits" / "recordings"


@dataclass(frozen=True)
class SpokenWord:
    """One digit, and when it is spoken.

    Args:
        word: The digit as the model writes it, without the space before it.
        start_s: Where its recording begins, in seconds.
        end_s: Where its recording ends.
    """

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class SpokenDigits:
    """A person saying a sequence of digits.

    Args:
        path: The audio file, 16 kHz FLAC.
        text: What is said.
        speaker: Who says it.
        duration_s: The file's length, in seconds.
        words: The digits with their times.
    """

    path: Path
    text: str
    speaker: str
    duration_s: float
    words: tuple[SpokenWord, ...]

    def _repr_html_(self) -> str:
        """What is said, by whom, and a player of it."""
        about = f"{self.text!r}, {self.speaker}, {self.duration_s:.2f} s"
        words = [[each.word, each.start_s, each.end_s] for each in self.words]
        times = fold("words", table(["word", "start_s", "end_s"], words))
        sound = player(data_uri("audio/flac", self.path.read_bytes()))
        return box(self.path.name, about, sound, times)


def recordings() -> list[SpokenDigits]:
    """The shipped recordings; in the first two, each digit begins at the same times.

    Source: Free Spoken Digit Dataset, CC BY-SA 4.0; see the model card beside them.

    >>> recordings()[0].text
    'three one four'
    """
    index = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    return [
        SpokenDigits(
            path=FOLDER / each["file"],
            text=each["text"],
            speaker=each["speaker"],
            duration_s=each["duration_s"],
            words=tuple(
                SpokenWord(word["word"], word["start_s"], word["end_s"]) for word in each["words"]
            ),
        )
        for each in index["recordings"]
    ]


def __getattr__(name: str) -> object:
    if name != "Recording":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "digits.Recording is SpokenDigits now; hooked_whisper.data has a Recording of any sound. "
        "The old name works for one more release.",
        DeprecationWarning,
        stacklevel=2,
    )
    return SpokenDigits
