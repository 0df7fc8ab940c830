"""What the model writes beside what is said, with the word error rate."""

from collections.abc import Callable, Sequence
from typing import Any

from hooked_whisper.sae.evaluation.spliced import basic_normalizer, word_error_rate
from hooked_whisper.study.clips import Hearing
from hooked_whisper.study.exhibits import Exhibit, Section, Table, number, percent

MOST_ROWS = 200
"""Recordings in the report's table; report.json has all."""


def transcripts_section(hearing: Hearing, normalize: Callable[[str], str] | None = None) -> Section:
    """Transcripts beside reference texts.

    Args:
        hearing: The recordings and what the model wrote.
        normalize: What to do to texts before words are compared; None is
            openai-whisper's basic normalizer, which takes case and punctuation away.
    """
    about = (
        "Each recording is transcribed greedily. Words are compared without case and punctuation; "
        "the word error rate (WER) counts words put in, left out or replaced, as a share of the "
        "words that are said."
    )
    words = normalize or basic_normalizer()
    rows = [_row(each, words) for each in hearing.recordings]
    judged = [row for row in rows if row["wer"] is not None]
    said = [row for row in rows if row["reference"] is not None and row["transcript"] is not None]
    pairs = [(row["reference"], row["transcript"]) for row in said]
    plain = [(_plain(words, a), _plain(words, b)) for a, b in pairs]
    numbers: dict[str, Any] = {
        "n_recordings": len(rows),
        "n_with_reference": len(said),
        "seconds": sum(each.seconds for each in hearing.recordings),
        "n_skipped": len(hearing.skipped),
        "wer": word_error_rate([a for a, _ in plain], [b for _, b in plain]) if plain else None,
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


def _row(heard: Any, words: Callable[[str], str]) -> dict[str, Any]:
    wer = None
    if heard.reference is not None and heard.transcript is not None:
        found = word_error_rate([_plain(words, heard.reference)], [_plain(words, heard.transcript)])
        wer = found if found == found else None
    return vars(heard) | {"wer": wer}


def _plain(words: Callable[[str], str], text: str) -> str:
    return " ".join(words(text).split())


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
