"""What is known about each encoder position of recordings, as labels that latents are held against.

One meaning for autoencoders, pages and the study: the words and whatever else changes in time,
and those columns of a manifest that can be told from a sound.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hooked_whisper.analysis.selectivity import Labels
from hooked_whisper.config import POSITION_S
from hooked_whisper.data.labelling import PHONE
from hooked_whisper.data.recordings import Recording
from hooked_whisper.data.windows import AudioWindow
from hooked_whisper.speech.labels import TimedLabel, values_of_steps
from hooked_whisper.speech.phones import in_order

SAID = ["speech", "silence"]
"""The values of the label `silence`."""
MOST_IN_A_VALUE = 60
"""Characters of a label's value; what is longer is a text."""
NO_LABELS = frozenset(
    "path file filename filepath url uri text sentence transcript transcription transcripts "
    "normalized raw prompt comment title duration dur length seconds samples frames begin end "
    "start stop offset time rate wer cer error snr score probability prob confidence logprob loss "
    "votes licence license copyright md5 sha sha256 hash checksum date".split()
)
"""Words in the names of columns that say nothing of how a recording sounds, or no category."""


def position_labels(
    known: Sequence[Recording | AudioWindow], n_positions: Sequence[int]
) -> list[Labels]:
    """What is known about each encoder position, of all recordings one after the other.

    Args:
        known: Recordings or windows.
        n_positions: How many positions of each count.

    Returns:
        `"word"`; `"position"`, which word of the text, from 1; each other label that changes in
        time, such as `"phone"`, by its own name, where a position that no piece covers has none;
        `"silence"`, whether a word is said; then `"speaker"` and the other columns that
        `is_category` takes. Labels that nothing has are left out.
    """
    total, at = sum(n_positions), 0
    columns: dict[str, list[Any]] = {}
    for one, n in zip(known, n_positions, strict=True):
        own: dict[str, list[Any]] = {}
        words = one.words
        if words is not None:
            numbered = [(word.start_s, word.end_s, i) for i, word in enumerate(words)]
            numbers = values_of_steps(numbered, n, POSITION_S)
            own["word"] = [None if i is None else words[i].word for i in numbers]
            own["position"] = [None if i is None else i + 1 for i in numbers]
        for name, pieces in (one.spans if isinstance(one, AudioWindow) else one.timed).items():
            if not _are_words(pieces, words):
                values = values_of_steps(pieces, n, POSITION_S)
                own.setdefault(name, [None if value is None else str(value) for value in values])
        if words is not None:
            own["silence"] = [SAID[i is None] for i in numbers]
        for name, values in own.items():
            columns.setdefault(name, [None] * total)[at : at + n] = values
        at += n
    labels = [
        Labels.of(name, column, _values(name, column))
        for name, column in columns.items()
        if any(value is not None for value in column)
    ]
    return labels + _column_labels(known, n_positions, {label.name for label in labels})


def _values(name: str, column: Sequence[Any]) -> list[Any] | None:
    """The order of a label's values where it is not the alphabet's."""
    if name == "silence":
        return SAID
    if name == PHONE:
        return in_order({value for value in column if value is not None})
    return None


def _are_words(pieces: Sequence[TimedLabel], words: Sequence[TimedLabel] | None) -> bool:
    """Whether a label is the one that the words were taken from."""
    return words is not None and [piece[:2] for piece in pieces] == [word[:2] for word in words]


def _column_labels(
    known: Sequence[Recording | AudioWindow], n_positions: Sequence[int], taken: set[str]
) -> list[Labels]:
    """What is known about whole recordings, a value for each position."""
    found = []
    numbers = [one.recording if isinstance(one, AudioWindow) else i for i, one in enumerate(known)]
    names = dict.fromkeys(name for one in known for name in one.labels if name not in taken)
    for name in sorted(names, key=lambda name: name != "speaker"):
        values = [one.labels.get(name) for one in known]
        by_recording = dict(zip(numbers, values, strict=True))
        if is_category(name, list(by_recording.values())):
            texts = [None if value in (None, "") else str(value) for value in values]
            each = [t for t, n in zip(texts, n_positions, strict=True) for _ in range(n)]
            found.append(Labels.of(name, each))
    return found


def is_category(name: str, values: Sequence[Any]) -> bool:
    """Whether a column of a manifest is a label that a sound may tell: few values, often repeated.

    `speaker` always is. No others than words and whole numbers are, and none whose names say that
    they are paths, texts, lengths, rates, error rates, votes, licences or dates.

    Args:
        name: Of the column.
        values: One for each recording; None where it has none.

    >>> is_category("sex", ["F", "M", "F"]), is_category("duration", ["3.1", "3.1", "4.0"])
    (True, False)
    """
    known = [value for value in values if value not in (None, "") and value == value]
    if name == "speaker":
        return bool(known)
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if NO_LABELS.intersection(re.split(r"[^a-z0-9]+", parts)) or len(known) < 3:
        return False
    if not all(isinstance(value, str | int | bool) for value in known):
        return False
    texts = list(map(str, known))
    if any(len(text) > MOST_IN_A_VALUE or _is_fraction(text) for text in texts):
        return False
    counts = Counter(texts)
    n_repeated = sum(n for n in counts.values() if n > 1)
    return len(counts) > 1 and n_repeated >= len(texts) / 2


def _is_fraction(text: str) -> bool:
    """Whether it is a number that is not whole, or written so: a measure, no category."""
    try:
        float(text)
    except ValueError:
        return False
    return not re.fullmatch(r"\s*[+-]?\d+\s*", text)
