"""What a user may call recordings, made into `Recording`s: files, manifests, data sets, arrays."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hooked_whisper import digits
from hooked_whisper.data.recordings import Recording, Recordings
from hooked_whisper.errors import RecordingsError, shown
from hooked_whisper.io import checksum_of_json
from hooked_whisper.speech.mel import Mel

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aiff .aif .au "
    ".m4a .m4b .aac .webm .mka .amr .wma "
    ".mp4 .m4v .mov .mkv .3gp .avi .flv .wmv .mpg .mpeg .ogv".split()  # .ts may be TypeScript
)
"""What is taken from a folder; a file that is named itself may end in anything."""
MANIFESTS = (".csv", ".tsv", ".jsonl")
AUDIO_COLUMNS = ("path", "audio", "file", "filename", "file_name")
"""Where a manifest's or a data set's row may keep its audio, the first that is there."""


def as_recordings(
    source: Any, *, text_column: str = "text", audio_column: str | None = None
) -> Recordings:
    """What a user calls recordings, as `Recording`s: the one meaning of the word.

    Args:
        source: A file, a folder (searched to its depths), a CSV, TSV or
            JSONL manifest, a `datasets.Dataset` or `IterableDataset`, a `Mel` of one or more,
            one recording, or a list of files, `Recording`s, the package's own digits,
            rows, `Mel`s of one recording, pairs of samples and rate, or anything
            with a `.path` or `.audio` (and `.text`, `.words`, `.speaker`). Any
            other iterable is read as a stream.
        text_column: Where rows keep what is said.
        audio_column: Where rows keep their audio; None looks for the usual names.

    Raises:
        RecordingsError: There are none, or a manifest that cannot be read.
    """
    columns = (text_column, audio_column)
    if isinstance(source, Recordings):
        return source
    if isinstance(source, str | Path):
        if not os.path.exists(_expanded(Path(source))):
            raise RecordingsError(
                f"there is no file or folder {str(source)!r} (from '{Path.cwd()}')."
            )
        return _listed(list(_from_path(Path(source), columns)), str(source))
    if isinstance(source, Mel):
        return _by_number(lambda number: Recording(f"{number:08d}", source[number]), len(source))
    if type(source).__module__.split(".")[0] == "datasets":
        return _from_dataset(source, columns)
    if _is_pair(source) or hasattr(source, "path") or hasattr(source, "audio"):
        source = [source]
    if isinstance(source, list | tuple | set):
        items = sorted(source) if isinstance(source, set) else source
        return _listed(list(_from_items(items, columns)), "the list")
    is_listing = not isinstance(source, Tensor | np.ndarray | Mapping | bytes | bytearray)
    if is_listing and hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return _by_number(lambda number: _item(number, source[number], columns), len(source))
    if is_listing and isinstance(source, Iterable):
        return Recordings(lambda: _from_items(source, columns))
    if isinstance(source, Tensor):
        raise RecordingsError(
            "recordings are a tensor, which does not say where speech ends. Pass the Mel that "
            "model.to_mel(audio) makes, pairs of samples and rate, or paths."
        )
    raise RecordingsError(
        f"a {type(source).__name__} holds no recordings. Pass a file, a folder, a CSV or JSONL "
        "manifest, a datasets.Dataset, a Mel, or a list."
    )


def _listed(found: list[Recording], where: str) -> Recordings:
    if not found:
        raise RecordingsError(
            f"there are no recordings in {where}. A folder is searched for "
            f"{', '.join(sorted(SUFFIXES))}."
        )
    digest = checksum_of_json(
        [[each.id, _named(each.labels), each.text, each.tokens] for each in found]
    )
    return Recordings(found.__iter__, len(found), digest, is_in_memory=True, get=found.__getitem__)


def _named(labels: Any) -> Any:
    """Labels with strings as names, which can be sorted; what is none is judged when it is read."""
    if not isinstance(labels, Mapping):
        return repr(labels)
    return {str(name): label for name, label in labels.items()}


def _by_number(get: Callable[[int], Recording], n: int) -> Recordings:
    """Recordings that are made when they are asked for."""
    if not n:
        raise RecordingsError("there are no recordings: the sequence is empty.")
    return Recordings(lambda: map(get, range(n)), n, get=get)


_Columns = tuple[str, str | None]


def _from_items(items: Iterable[Any], columns: _Columns) -> Iterator[Recording]:
    for number, item in enumerate(items):
        if isinstance(item, str | Path):
            yield from _from_path(Path(item), columns)
        else:
            yield _item(number, item, columns)


def _item(number: int, item: Any, columns: _Columns) -> Recording:
    """One recording, whatever stands for it; not a folder or manifest, which may hold many."""
    if isinstance(item, Recording):
        return item
    if isinstance(item, digits.SpokenDigits):
        words = [[word.start_s, word.end_s, word.word] for word in item.words]
        labels = {"speaker": item.speaker, "text": item.text, "digit": words}
        return Recording(item.path.name, str(item.path), labels, item.text)
    if isinstance(item, str | Path):
        return Recording(Path(item).as_posix(), str(item))
    if isinstance(item, Mapping):
        return _from_row(item, columns, Path(), f"item {number}")
    if (isinstance(item, Mel) and len(item) == 1) or _is_pair(item):
        return Recording(f"{number:08d}", item)
    if hasattr(item, "path") or hasattr(item, "audio"):
        return _from_attributes(number, item)
    if isinstance(item, Mel):
        raise RecordingsError(f"item {number} is {item!r}: pass Mel.cat(mels) for a batch of them.")
    if isinstance(item, Tensor | np.ndarray):
        raise RecordingsError(
            f"item {number} is an array, which tells neither its rate nor how much of it is "
            "padding. Pass a pair of samples and rate, or a Mel."
        )
    raise RecordingsError(
        f"item {number} is a {type(item).__name__}, no recording. Pass paths, Recordings, "
        "rows as dictionaries, or pairs of samples and rate."
    )


def _is_pair(item: Any) -> bool:
    """Whether it is samples with their rate in Hz."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], Tensor | np.ndarray | list | tuple)
        and not isinstance(item[1], str | Path | tuple | list)
    )


def _from_attributes(number: int, item: Any) -> Recording:
    """A recording of somebody else's class, by the names that they have in this package."""
    audio = getattr(item, "audio", None)
    audio = item.path if audio is None else audio
    labels: dict[str, Any] = {}
    if getattr(item, "speaker", None) is not None:
        labels["speaker"] = item.speaker
    if getattr(item, "words", None) is not None:
        labels["words"] = [[word.start_s, word.end_s, word.word] for word in item.words]
    is_path = isinstance(audio, str | Path)
    name = Path(audio).as_posix() if is_path else f"{number:08d}"
    text = getattr(item, "text", None)
    return Recording(name, str(audio) if is_path else audio, labels, text)


def _from_path(path: Path, columns: _Columns) -> Iterator[Recording]:
    path = _expanded(path)
    if os.path.isdir(path):
        files = (each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
        for each in sorted(files, key=lambda each: each.relative_to(path).as_posix()):
            yield Recording(each.relative_to(path).as_posix(), str(each))
    elif path.suffix.lower() in MANIFESTS:
        yield from _from_manifest(path, columns)
    else:  # a file that is missing is one bad recording among others
        yield Recording(path.as_posix(), str(path))


def _expanded(path: Path) -> Path:
    """A path with `~` replaced; one of a user whom nobody knows leads nowhere as it is."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _from_manifest(path: Path, columns: _Columns) -> Iterator[Recording]:
    """The rows of a CSV, TSV or JSONL file; their paths are relative to it."""
    read = _json_rows if path.suffix.lower() == ".jsonl" else _table_rows
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in read(path, file):
                yield _from_row(row, columns, path.parent, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordingsError(f"{path} cannot be read as a list of recordings: {error}.") from error


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordingsError(f"{path}, line {number} is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise RecordingsError(
                f"{path}, line {number} is {shown(row, 200)}; each line is an object."
            )
        yield number, row


def _table_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    for row in reader:
        if None in row or None in row.values():
            raise RecordingsError(
                f"{path}, line {reader.line_num} has more or fewer fields than the first line, "
                f"{reader.fieldnames}."
            )
        yield reader.line_num, row


def _from_row(row: Mapping[str, Any], columns: _Columns, root: Path, where: str) -> Recording:
    text_column, audio_column = columns
    allowed = [audio_column] if audio_column else AUDIO_COLUMNS
    column = next((name for name in allowed if row.get(name) is not None), None)
    if column is None:
        raise RecordingsError(
            f"{where} has {shown(sorted(map(str, row)), 200)}, none of which holds the audio. "
            f"Name the column one of {', '.join(AUDIO_COLUMNS)}, or pass audio_column."
        )
    audio, name = _audio_of(row[column], root, where)
    text, tokens = row.get(text_column), row.get("tokens")
    if text is not None and not isinstance(text, str):
        raise RecordingsError(f"{where}: the text is {shown(text, 200)}; it must be a string.")
    if isinstance(tokens, str):  # a table's field
        tokens = [int(each) if each.isdecimal() else each for each in tokens.split()]
    is_listed = isinstance(tokens, Iterable) and not isinstance(tokens, Mapping)
    if tokens is not None and not (is_listed and all(type(each) is int for each in tokens)):
        raise RecordingsError(
            f"{where}: the tokens are {shown(tokens, 200)}; they must be integers."
        )
    labels = {
        str(key): plain
        for key, value in row.items()
        if key not in (column, "tokens", "id") and (plain := _as_json(value)) is not None
    }
    found = str(row.get("id") or name or where.rpartition(" ")[2])
    return Recording(found, audio, labels, text, None if tokens is None else tuple(tokens))


def _audio_of(value: Any, root: Path, where: str) -> tuple[Any, str | None]:
    """The audio of a row's field, and its name where it has one."""
    if isinstance(value, str | Path):
        return str(root / _expanded(Path(value))), Path(value).as_posix()
    if isinstance(value, tuple) and len(value) == 2:
        return value, None
    if isinstance(value, Mapping):
        path, data, array = (value.get(key) for key in ("path", "bytes", "array"))
        if path is not None and not isinstance(path, str | Path):
            raise RecordingsError(f"{where}: the audio's path is {shown(path, 200)}.")
        name = Path(path).name if path else None
        if isinstance(data, bytes | bytearray | memoryview | list):
            try:
                return bytes(data), name
            except (TypeError, ValueError) as error:
                raise RecordingsError(f"{where}: the audio's bytes are none: {error}.") from error
        if array is not None and "sampling_rate" in value:
            return (array, value["sampling_rate"]), name
        if path:
            return str(root / _expanded(Path(path))), name
    raise RecordingsError(
        f"{where}: the audio is a {type(value).__name__}. A path, a pair of samples and rate, or "
        "the audio of a datasets.Dataset can be read."
    )


def _as_json(value: Any) -> Any:
    """A value as JSON has it; None where it cannot."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return None


def _from_dataset(dataset: Any, columns: _Columns) -> Recordings:
    """A Hugging Face data set, or a stream of one; its audio is decoded by our own workers."""
    from datasets import Audio

    if isinstance(dataset, dict):
        raise RecordingsError(
            f"a data set with the splits {sorted(dataset)} was given. Choose one: dataset[...]."
        )
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, Audio):
            columns = (columns[0], columns[1] or name)
            dataset = dataset.cast_column(name, Audio(decode=False))
    n = len(dataset) if hasattr(dataset, "__len__") else None
    if n == 0:
        raise RecordingsError("the data set is empty.")
    digest = None if n is None else str(dataset._fingerprint)

    def recording(number: int, row: Mapping[str, Any]) -> Recording:
        found = _from_row(row, columns, Path(), f"row {number}")
        return found if row.get("id") else replace(found, id=f"{number:08d}")

    return Recordings(
        lambda: (recording(number, row) for number, row in enumerate(dataset)),
        n,
        digest,
        get=None if n is None else lambda number: recording(number, dataset[number]),
    )
