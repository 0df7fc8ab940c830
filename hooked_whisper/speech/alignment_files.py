"""Files of words and phones with their times: Praat's TextGrid, NIST's CTM, tables."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_whisper.errors import LabelError, shown
from hooked_whisper.speech.phones import MANNER, is_silence, plain_phone

if TYPE_CHECKING:
    import pandas

TimedRows = list[list[Any]]
"""Rows of `[start_s, end_s, value]`, as a recording's labels have them."""

SUFFIXES = (".TextGrid", ".csv", ".tsv", ".ctm")
_NAMES = {
    "start": ("start", "start_s", "begin", "start_time", "xmin", "tmin", "onset"),
    "end": ("end", "end_s", "stop", "end_time", "xmax", "tmax", "offset"),
    "value": ("label", "value", "word", "phone", "text", "name", "mark", "segment"),
    "tier": ("tier", "type", "level"),
}
"""How the columns of a table may be called, the first that is there."""
_CTM = ("recording", "channel", "start", "duration", "value")


def read_alignment(path: str | Path) -> dict[str, dict[str, TimedRows]]:
    """What a file says is said when: for each recording that it names, its tiers.

    Tiers called `words` or `phones`, also behind a speaker's name as the Montreal Forced Aligner
    writes them, are `word` and `phone`. Silences are left out, and phones that are all of ARPAbet
    have no stress.

    Args:
        path: A Praat TextGrid; a CTM (recording, channel, start, duration, value); or a CSV or TSV
            table with the columns start, end, label and perhaps tier. A table's and a TextGrid's
            recording is the file's own name.

    Raises:
        LabelError: It cannot be read, or has a stretch that ends before it begins; praatio, of the
            extra `labels`, which reads TextGrids, cannot be imported.

    Source: the formats of Praat's manual and of NIST's SCTK.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".textgrid":
        found = {path.stem: _textgrid(path)}
    elif suffix in (".csv", ".tsv"):
        found = {path.stem: _table(path, "\t" if suffix == ".tsv" else ",")}
    elif suffix == ".ctm":
        found = _ctm(path)
    else:
        raise LabelError(
            f"{shown(str(path))} ends in none of {', '.join(SUFFIXES)}, so that nobody knows its "
            "format."
        )
    return {
        name: {tier: _checked(rows, tier, path) for tier, rows in tiers.items()}
        for name, tiers in found.items()
    }


def _textgrid(path: Path) -> dict[str, TimedRows]:
    try:
        from praatio import textgrid
    except ImportError as error:
        raise LabelError(
            f"TextGrids are read by praatio, which cannot be imported ({error}). Install it: "
            "pip install 'hooked-whisper[labels]'"
        ) from error
    try:
        grid = textgrid.openTextgrid(
            str(path), includeEmptyIntervals=False, duplicateNamesMode="rename"
        )
    except Exception as error:  # praatio raises what its parsing stumbles over
        raise LabelError(f"{shown(str(path))} cannot be read as a TextGrid: {error}.") from error
    return {
        _tier_name(tier.name): [[each.start, each.end, each.label] for each in tier.entries]
        for tier in grid.tiers
        if type(tier).__name__ == "IntervalTier"
    }


def _table(path: Path, separator: str) -> dict[str, TimedRows]:
    frame = _read(path, sep=separator)
    names = {str(name).lower().strip(): name for name in frame.columns}
    columns = {
        role: next((names[name] for name in known if name in names), None)
        for role, known in _NAMES.items()
    }
    missing = [role for role in ("start", "end", "value") if columns[role] is None]
    if missing:
        raise LabelError(
            f"{shown(str(path))} has the columns {shown(list(frame.columns))}, none of which is "
            f"the {' or the '.join(missing)}: call them start, end, label and, for several, tier."
        )
    value = str(columns["value"]).lower()
    tier = columns["tier"]
    tiers = frame[tier] if tier is not None else [value if value in ("word", "phone") else "label"]
    tiers = list(tiers) * (1 if tier is not None else len(frame))
    found: dict[str, TimedRows] = {}
    chosen = (columns["start"], columns["end"], columns["value"])
    for row, each in zip(frame[list(chosen)].itertuples(index=False), tiers, strict=True):
        found.setdefault(_tier_name(str(each)), []).append(list(row))
    return found


def _ctm(path: Path) -> dict[str, dict[str, TimedRows]]:
    frame = _read(path, sep=r"\s+", header=None, comment=";", usecols=range(5), names=_CTM)
    found: dict[str, dict[str, TimedRows]] = {}
    for name, _, start, duration, value in frame.itertuples(index=False):
        rows = found.setdefault(name, {"": []})[""]
        try:
            rows.append([start, float(start) + float(duration), value])
        except ValueError as error:
            raise LabelError(f"{shown(str(path))} is no CTM: {error}.") from error
    for tiers in found.values():
        rows = tiers.pop("")
        is_phone = all(plain_phone(row[2]) in MANNER or is_silence(row[2]) for row in rows)
        tiers["phone" if is_phone else "word"] = rows
    return found


def _read(path: Path, **options: Any) -> "pandas.DataFrame":
    import pandas

    try:
        return pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8", **options)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise LabelError(f"{shown(str(path))} cannot be read: {error}.") from error


def _tier_name(name: str) -> str:
    """`speaker - words` and `Words` are `word`."""
    last = re.split(r"\s+-\s+", name.strip())[-1].lower()
    kind = {"phoneme": "phone"}.get(last.removesuffix("s"), last.removesuffix("s"))
    return kind if kind in ("word", "phone") else name.strip()


def _checked(rows: Sequence[Sequence[Any]], tier: str, path: Path) -> TimedRows:
    """The rows with numbers as times, without silences, in time's order."""
    found = []
    for start, end, value in rows:
        try:
            start_s, end_s = float(start), float(end)
        except (TypeError, ValueError) as error:
            raise LabelError(
                f"{shown(str(path))}, tier {tier!r}: {shown(start)} to {shown(end)} are no times "
                "in seconds."
            ) from error
        if not 0 <= start_s <= end_s < float("inf"):
            raise LabelError(
                f"{shown(str(path))}, tier {tier!r}: {shown(value)} is from {start_s} to {end_s} "
                "s, which is no stretch of time."
            )
        if not is_silence(value) and start_s < end_s:
            found.append([start_s, end_s, value])
    if tier == "phone" and all(plain_phone(value) in MANNER for *_, value in found):
        found = [[start_s, end_s, plain_phone(value)] for start_s, end_s, value in found]
    return sorted(found, key=lambda row: (row[0], row[1]))
