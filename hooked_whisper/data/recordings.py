"""Where recordings come from: files, folders, manifests, data sets, or arrays in memory."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hooked_whisper import digits
from hooked_whisper.checksums import checksum_of_json
from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.display import box, facts, note, player
from hooked_whisper.errors import AudioError, AudioFileError, RecordingsError
from hooked_whisper.speech.audio import encode_audio, load_audio

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au"})
"""What is taken from a folder; a file that is named itself may end in anything."""
MANIFESTS = (".csv", ".tsv", ".jsonl")
AUDIO_COLUMNS = ("path", "audio", "file", "filename", "file_name")
"""Where a manifest's or a data set's row may keep its audio, the first that is there."""
_PLAYED_S = 60
"""Seconds that a notebook's player has, at 5 kB each."""


@dataclass(frozen=True)
class Recording:
    """One recording, with what is known about it.

    Args:
        id: Its name in the store: a path relative to its folder or manifest.
        audio: A path, the bytes of an audio file, or a pair of samples and rate in Hz.
        labels: What JSON can hold, by name. A list of `[start_s, end_s,
            value]` is a label that changes in time.
        text: What is said, for the decoder's hooks.
        tokens: Token ids for the decoder, in place of a text.
    """

    id: str
    audio: Any = field(repr=False)
    labels: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    tokens: tuple[int, ...] | None = None

    def _repr_html_(self) -> str:
        """What is said and known of it, and a player of its beginning."""
        about = facts({"text": self.text, "tokens": self.tokens, **self.labels})
        try:
            samples = load_audio(readable(self.audio))
        except AudioError as error:
            return box(self.id, "", note(f"It cannot be played: {error}"), about)
        seconds = len(samples) / SAMPLE_RATE_HZ
        heard = player(encode_audio(samples[: _PLAYED_S * SAMPLE_RATE_HZ]))
        cut = f", of which the first {_PLAYED_S} s can be played" if seconds > _PLAYED_S else ""
        return box(self.id, f"{seconds:.2f} s{cut}", heard, about)


def readable(audio: Any) -> Any:
    """Audio as `load_audio` takes it: the bytes of a file become samples."""
    if not isinstance(audio, bytes):
        return audio
    import soundfile

    try:
        samples, rate_hz = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise AudioFileError(f"{len(audio)} bytes cannot be read as audio ({error}).") from error
    if samples.shape[1] > 2:
        samples = samples.mean(axis=1, dtype=np.float32, keepdims=True)
    if not samples.size:
        raise AudioError("it is empty: it has no samples.")
    return samples.T, rate_hz


@dataclass(frozen=True)
class Recordings:
    """Recordings in their order, which may be read one by one.

    Args:
        make: Begins at the first one, each time.
        n: How many; None for a stream that does not know.
        digest: Of names, labels and texts; None for such a stream.
        is_in_memory: Whether going through them costs nothing.
    """

    make: Callable[[], Iterator[Recording]]
    n: int | None = None
    digest: str | None = None
    is_in_memory: bool = False

    def __iter__(self) -> Iterator[Recording]:
        return self.make()


def as_recordings(
    source: Any, *, text_column: str = "text", audio_column: str | None = None
) -> Recordings:
    """What a user calls recordings, as `Recording`s.

    Args:
        source: A file, a folder (searched to its depths), a CSV, TSV or
            JSONL manifest, a `datasets.Dataset` or `IterableDataset`, or a list of
            files, `Recording`s, the package's own digits, rows, or pairs of
            samples and rate. Any other iterable is read as a stream.
        text_column: Where rows keep what is said.
        audio_column: Where rows keep their audio; None looks for the usual names.

    Raises:
        RecordingsError: There are none, or a manifest that cannot be read.
    """
    columns = (text_column, audio_column)
    if isinstance(source, Recordings):
        return source
    if isinstance(source, str | Path):
        if not os.path.exists(Path(source).expanduser()):
            raise RecordingsError(
                f"there is no file or folder {str(source)!r} (from '{Path.cwd()}')."
            )
        return _listed(list(_from_path(Path(source), columns)), str(source))
    if type(source).__module__.split(".")[0] == "datasets":
        return _from_dataset(source, columns)
    if isinstance(source, Sequence) or isinstance(source, set):
        items = sorted(source) if isinstance(source, set) else source
        return _listed(list(_from_items(items, columns)), "the list")
    if isinstance(source, Iterable):
        return Recordings(lambda: _from_items(source, columns))
    raise RecordingsError(
        f"a {type(source).__name__} holds no recordings. Pass a file, a folder, a CSV or JSONL "
        "manifest, a datasets.Dataset, or a list."
    )


def _listed(found: list[Recording], where: str) -> Recordings:
    if not found:
        raise RecordingsError(
            f"there are no recordings in {where}. A folder is searched for "
            f"{', '.join(sorted(SUFFIXES))}."
        )
    digest = checksum_of_json(
        [[each.id, dict(each.labels), each.text, each.tokens] for each in found]
    )
    return Recordings(lambda: iter(found), len(found), digest, is_in_memory=True)


_Columns = tuple[str, str | None]


def _from_items(items: Iterable[Any], columns: _Columns) -> Iterator[Recording]:
    for number, item in enumerate(items):
        if isinstance(item, Recording):
            yield item
        elif isinstance(item, digits.Recording):
            yield _from_digits(item)
        elif isinstance(item, str | Path):
            yield from _from_path(Path(item), columns)
        elif isinstance(item, Mapping):
            yield _from_row(item, columns, Path(), f"item {number}")
        elif isinstance(item, tuple) and len(item) == 2:
            yield Recording(f"{number:08d}", item)
        else:
            raise RecordingsError(
                f"item {number} is a {type(item).__name__}, no recording. Pass paths, Recordings, "
                "rows as dictionaries, or pairs of samples and rate."
            )


def _from_digits(item: digits.Recording) -> Recording:
    words = [[word.start_s, word.end_s, word.word] for word in item.words]
    labels = {"speaker": item.speaker, "text": item.text, "digit": words}
    return Recording(item.path.name, str(item.path), labels, item.text)


def _from_path(path: Path, columns: _Columns) -> Iterator[Recording]:
    path = path.expanduser()
    if os.path.isdir(path):
        files = (each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
        for each in sorted(files, key=lambda each: each.relative_to(path).as_posix()):
            yield Recording(each.relative_to(path).as_posix(), str(each))
    elif path.suffix.lower() in MANIFESTS:
        yield from _from_manifest(path, columns)
    else:  # a file that is missing is one bad recording among others
        yield Recording(path.as_posix(), str(path))


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
        except ValueError as error:
            raise RecordingsError(f"{path}, line {number} is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise RecordingsError(f"{path}, line {number} is {row!r}; each line is an object.")
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
            f"{where} has {sorted(map(str, row))}, none of which holds the audio. Name the column "
            f"one of {', '.join(AUDIO_COLUMNS)}, or pass audio_column."
        )
    audio, name = _audio_of(row[column], root, where)
    text, tokens = row.get(text_column), row.get("tokens")
    if text is not None and not isinstance(text, str):
        raise RecordingsError(f"{where}: the text is {text!r}; it must be a string.")
    if isinstance(tokens, str):  # a table's field
        tokens = [int(each) if each.isdigit() else each for each in tokens.split()]
    if tokens is not None and not all(type(each) is int for each in tokens):
        raise RecordingsError(f"{where}: the tokens are {tokens!r}; they must be integers.")
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
        return str(root / Path(value).expanduser()), Path(value).as_posix()
    if isinstance(value, tuple) and len(value) == 2:
        return value, None
    if isinstance(value, Mapping):
        name = Path(value["path"]).name if value.get("path") else None
        if value.get("bytes") is not None:
            return bytes(value["bytes"]), name
        if value.get("array") is not None:
            return (value["array"], value["sampling_rate"]), name
        if value.get("path"):
            return str(root / Path(value["path"]).expanduser()), name
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
    except (TypeError, ValueError):
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

    def make() -> Iterator[Recording]:
        for number, row in enumerate(dataset):
            found = _from_row(row, columns, Path(), f"row {number}")
            yield (
                found
                if row.get("id")
                else Recording(f"{number:08d}", found.audio, found.labels, found.text, found.tokens)
            )

    return Recordings(make, n, digest)
