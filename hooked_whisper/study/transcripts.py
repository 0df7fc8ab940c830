"""What the model writes beside what is said, with the word error rate."""

from collections.abc import Sequence
from typing import Any

from hooked_whisper.speech.wer import Normalize, normalizer, word_error_rate
from hooked_whisper.study.clips import Hearing
from hooked_whisper.study.exhibits import Exhibit, Section, Table, number, percent

MOST_ROWS = 200
"""Recordings in the report's table; report.json has all."""


def transcripts_section(hearing: Hearing, normalize: Normalize = "basic") -> Section:
    """Transcripts beside reference texts.

    Args:
        hearing: The recordings and what the model wrote.
        normalize: What is done to texts before; see `speech.wer.Normalize`.
    """
    about = (
        "Each recording is transcribed greedily. Words are compared without case and punctuation; "
        "the word error rate (WER) counts words put in, left out or replaced, as a share of the "
        "words that are said."
    )
    words = normalizer(normalize)
    rows = [_row(each, normalize) for each in hearing.recordings]
    judged = [row for row in rows if row["wer"] is not None]
    said = [row for row in rows if row["reference"] is not None and row["transcript"] is not None]
    pairs = [(row["reference"], row["transcript"]) for row in said]
    plain = [(words(a), words(b)) for a, b in pairs]
    numbers: dict[str, Any] = {
        "n_recordings": len(rows),
        "n_with_reference": len(said),
        "seconds": sum(each.seconds for each in hearing.recordings),
        "n_skipped": len(hearing.skipped),
        "wer": _rate(pairs, normalize),
        "exact_share": sum(a == b for a, b in plain) / len(plain) if plain else None,
    }
    shown = sorted(rows, key=lambda row: -(row["wer"] or 0))[:MOST_ROWS]
    table = Table(
        ["recording", "length (s)", "what is said", "what the model writes", "WER (%)"],
        [
            [
                row["id"],
                number(row["seconds"]),
                "unknown" if row["reference"] is None else row["reference"],
                "no text" if row["transcript"] is None else row["transcript"],
                "" if row["wer"] is None else number(100 * row["wer"], 1),
            ]
            for row in shown
        ],
        _caption(rows, shown, judged),
    )
    exhibit = Exhibit("transcripts", "Transcripts", _finding(numbers), table=table)
    return Section("transcripts", "What it writes", about, numbers, [exhibit])


def _rate(pairs: Sequence[tuple[str, str]], normalize: Normalize) -> float | None:
    if not pairs:
        return None
    return word_error_rate([a for a, _ in pairs], [b for _, b in pairs], normalize)


def _row(heard: Any, normalize: Normalize) -> dict[str, Any]:
    wer = None
    if heard.reference is not None and heard.transcript is not None:
        found = word_error_rate(heard.reference, heard.transcript, normalize)
        wer = found if found == found else None
    return vars(heard) | {"wer": wer}


def _caption(rows: Sequence[Any], shown: Sequence[Any], judged: Sequence[Any]) -> str:
    order = "highest error rate first" if judged else "in their order"
    if len(shown) < len(rows):
        return f"{len(shown)} of {len(rows)} recordings, {order}; report.json has all"
    return f"{len(rows)} recordings, {order}" if len(rows) > 1 else "The recording"


def _finding(numbers: dict[str, Any]) -> str:
    n, seconds = numbers["n_recordings"], numbers["seconds"]
    heard = f"{n} recording{'s' if n != 1 else ''} ({number(seconds, 1)} s)"
    if not numbers["n_with_reference"]:
        return f"Of {heard} nobody told what is said, so that there is no word error rate."
    of = "" if numbers["n_with_reference"] == n else f" of the {numbers['n_with_reference']} known"
    return (
        f"Over {heard} the word error rate is {percent(numbers['wer'])}, and "
        f"{percent(numbers['exact_share'])}{of} are right word for word."
    )
