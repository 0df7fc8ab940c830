"""What lies beside the rows, as JSON: the manifest of a store, and a record of each shard.

`manifest.json` is written when a harvest begins, with what makes it the one
that it is, and again when it is complete, with every shard's size, checksum
and row counts, all skipped recordings, and the totals. `shard-000000.json`
tells whose rows are in a shard; a shard without it does not count.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta
from typing_extensions import NotRequired, TypedDict

from hooked_whisper.data.hook_rows import RowKind
from hooked_whisper.data.loading import Loaded
from hooked_whisper.errors import StoreDamagedError, StoreError, StoreMismatchError
from hooked_whisper.io import (
    as_path,
    check_json,
    checksum_of_file,
    checksum_of_json,
    read_json,
    write_json,
)
from hooked_whisper.store.fingerprint import FORMAT, check_same
from hooked_whisper.store.shards import file_size, record_name, shard_name

MANIFEST_FILE = "manifest.json"

Json = dict[str, Any]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0)]


class Identity(TypedDict):
    """What makes a store the one that it is; see `make_identity`."""

    format: str
    hooks: list[str]
    kinds: dict[str, RowKind]
    dtype: Literal["float32", "float16", "bfloat16"]
    recordings_per_shard: Annotated[int, Meta(ge=1)]


class WindowEntry(TypedDict):
    """A window of a recording, and how many rows it has."""

    start_s: Seconds
    n_frames: Count
    rows: dict[RowKind, Count]
    text: NotRequired[str]


class RecordingRecord(TypedDict):
    """A recording in the record of its shard."""

    index: Count
    id: str
    xxh3_128: str
    seconds: Seconds
    labels: dict[str, Any]
    windows: list[WindowEntry]


class Skipped(TypedDict):
    """A recording that could not be used."""

    index: Count
    id: str
    reason: str


class ShardRecord(TypedDict):
    """The record of a shard."""

    file: str
    bytes: Count
    xxh3_128: str
    rows: dict[RowKind, Count]
    recordings: list[RecordingRecord]
    skipped: list[Skipped]


class ShardEntry(TypedDict):
    """A shard in the manifest."""

    file: str
    bytes: Count
    xxh3_128: str
    rows: dict[RowKind, Count]
    record_xxh3_128: str


class Manifest(TypedDict):
    """The manifest; what counts the store stands in that of a complete one alone."""

    identity: Identity
    complete: bool
    n_recordings: NotRequired[Count]
    n_skipped: NotRequired[Count]
    seconds: NotRequired[Seconds]
    rows: NotRequired[dict[RowKind, Count]]
    skipped: NotRequired[list[Skipped]]
    shards: NotRequired[list[ShardEntry]]
    xxh3_128: NotRequired[str]


def read_manifest(folder: Path) -> Json | None:
    """A folder's manifest; None where there is none.

    Raises:
        StoreDamagedError: It cannot be read, or its parts contradict each other.
        StoreMismatchError: It is of a later format, or of something else.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    found = read_json(path, dict[str, Any], StoreDamagedError, _REMEDY)
    identity = found.get("identity", {})
    if not isinstance(identity, dict) or identity.get("format") != FORMAT:
        raise StoreMismatchError(
            f"{path} is no manifest of an activation store that this release reads ({FORMAT})."
        )
    check_json(found, Manifest, StoreDamagedError, str(path), _REMEDY)
    if wrong := _contradiction(found):
        raise StoreDamagedError(f"{path} contradicts itself: {wrong}. {_REMEDY}")
    return found


_REMEDY = "Remove it and run the same harvest again: the shards that are whole are kept."


def _contradiction(manifest: Json) -> str | None:
    """What in a manifest cannot all be true; None where all can."""
    identity = manifest["identity"]
    if set(identity["hooks"]) != set(identity["kinds"]):
        return "its hooks and their kinds differ"
    if not manifest["complete"]:
        return None
    if "xxh3_128" in manifest and manifest["xxh3_128"] != _own_checksum(manifest):
        return "its checksum is of other content"
    missing = {"n_recordings", "n_skipped", "seconds", "rows", "skipped", "shards"} - {*manifest}
    if missing:
        return f"it is complete and has no {min(missing)}"
    kinds = set(identity["kinds"].values())
    for number, shard in enumerate(manifest["shards"]):
        if shard["file"] != shard_name(number) or set(shard["rows"]) != kinds:
            return (
                f"shard {number} is called {shard['file']} and has rows of {sorted(shard['rows'])}"
            )
    totals = {kind: sum(shard["rows"][kind] for shard in manifest["shards"]) for kind in kinds}
    if totals != manifest["rows"]:
        return f"it has {manifest['rows']} rows, and its shards {totals}"
    if len(manifest["skipped"]) != manifest["n_skipped"]:
        return f"n_skipped is {manifest['n_skipped']}, and {len(manifest['skipped'])} are listed"
    n_given = manifest["n_recordings"] + manifest["n_skipped"]
    if -(-n_given // identity["recordings_per_shard"]) != len(manifest["shards"]):
        return f"{n_given} recordings do not fill {len(manifest['shards'])} shards"
    return None


def begin(folder: Path, identity: Json) -> None:
    """Write the manifest of a harvest that begins, or check that it is the one that goes on.

    Raises:
        StoreMismatchError: The folder holds another harvest, or other files.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        check_same(manifest["identity"], identity, folder)
        return
    if found := sorted(each.name for each in folder.iterdir() if not each.name.startswith(".")):
        raise StoreMismatchError(
            f"{folder} holds other files ({', '.join(found[:3])}) and no {MANIFEST_FILE}. Name a "
            "new or empty folder."
        )
    write_json(folder / MANIFEST_FILE, {"identity": identity, "complete": False})


def finish(folder: Path, identity: Json, n_recordings: int) -> Json:
    """Write the manifest of a complete store.

    Raises:
        StoreMismatchError: The folder holds shards of more recordings.
        StoreDamagedError: A shard is missing.
    """
    n_shards = -(-n_recordings // identity["recordings_per_shard"])
    records = []
    for number in range(n_shards):
        record = read_record(folder, number)
        if record is None:
            raise StoreDamagedError(
                f"{folder / record_name(number)} is missing at the end of the harvest: was it "
                "removed meanwhile? Run the same harvest again."
            )
        records.append(record)
    if (folder / record_name(n_shards)).exists():
        raise StoreMismatchError(
            f"{folder} holds shards of more than the {n_recordings} recordings of this harvest. "
            "Name another folder."
        )
    manifest = _totals(identity, folder, records, n_recordings)
    if read_manifest(folder) != manifest:
        write_json(folder / MANIFEST_FILE, manifest)
    return manifest


def _totals(identity: Json, folder: Path, records: list[Json], n_recordings: int) -> Json:
    """The manifest of a complete store, from the records of its shards."""
    shards, skipped, totals, seconds = [], [], dict[str, int](), 0.0
    for number, record in enumerate(records):
        own = {"record_xxh3_128": checksum_of_file(folder / record_name(number))}
        shards.append({key: record[key] for key in ("file", "bytes", "xxh3_128", "rows")} | own)
        skipped += record["skipped"]
        seconds += sum(each["seconds"] for each in record["recordings"])
        for kind, n_rows in record["rows"].items():
            totals[kind] = totals.get(kind, 0) + n_rows
    manifest = {
        "identity": identity,
        "complete": True,
        "n_recordings": n_recordings - len(skipped),
        "n_skipped": len(skipped),
        "seconds": round(seconds, 3),
        "rows": totals,
        "skipped": skipped,
        "shards": shards,
    }
    return manifest | {"xxh3_128": _own_checksum(manifest)}


def _own_checksum(manifest: Json) -> str:
    return checksum_of_json({key: value for key, value in manifest.items() if key != "xxh3_128"})


def read_record(folder: Path, number: int) -> Json | None:
    """The record of a shard that is complete; None where either is missing, cut or unreadable."""
    try:
        record = load_record(folder, number)
    except StoreDamagedError:
        return None
    whole = file_size(folder / shard_name(number)) == record["bytes"]
    return record if whole else None


def load_record(folder: Path, number: int) -> Json:
    """The record of a shard, checked.

    Raises:
        StoreDamagedError: It is missing, or no record, or its parts contradict each other.
    """
    path = folder / record_name(number)
    remedy = "Run the same harvest again with verify=True."
    record: Json = dict(read_json(path, ShardRecord, StoreDamagedError, remedy))
    windows = [window for one in record["recordings"] for window in one["windows"]]
    for kind, n_rows in record["rows"].items():
        found = sum(window["rows"].get(kind, 0) for window in windows)
        if found != n_rows or any(kind not in window["rows"] for window in windows):
            raise StoreDamagedError(
                f"{path} counts {n_rows} {kind} rows, and its recordings {found}. {remedy}"
            )
    return record


def check_recordings(record: Json, group: list[Loaded], folder: Path) -> None:
    """Refuse a shard that was made of other recordings.

    A recording that was skipped, or has vanished since, stays as it was.

    Raises:
        StoreMismatchError: Names the first recording that differs.
    """
    known = {each["index"]: each for each in [*record["recordings"], *record["skipped"]]}
    for loaded in group:
        index, recording = loaded.job.index, loaded.job.recording
        entry = known.pop(index, None)
        if entry is None or entry["id"] != str(recording.id):
            what = "not in it" if entry is None else f"{entry['id']!r} there"
        elif "reason" in entry or loaded.checksum is None:
            continue
        elif entry["xxh3_128"] != loaded.checksum:
            what = "another file than when the shard was made"
        elif entry["labels"] != dict(recording.labels):
            what = f"labelled {entry['labels']} there and {dict(recording.labels)} here"
        else:
            continue
        raise StoreMismatchError(
            f"recording {index}, {recording.id!r}, is {what}: {folder} holds another harvest. "
            "Name another folder."
        )
    if known:
        raise StoreMismatchError(
            f"{folder} holds recordings that are not in this harvest: "
            f"{', '.join(repr(each['id']) for each in known.values())}. Name another folder."
        )


def verify_store(folder: str | Path) -> dict[str, str]:
    """What is damaged in a complete store, by file; nothing where all is well.

    Args:
        folder: The store's.

    Returns:
        The names of files that are missing, cut short or changed, each with
        what is wrong. The same harvest, run again with `verify=True`, makes
        these shards again, and no others.

    Raises:
        StoreError: There is no store, or one that is not complete.
    """
    folder = as_path(folder, StoreError)
    manifest = read_manifest(folder)
    if manifest is None or not manifest["complete"]:
        what = "no store" if manifest is None else "a store that is not complete"
        raise StoreError(f"{folder} holds {what}. Run the harvest to its end.")
    found = {}
    n_given = manifest["n_recordings"] + manifest["n_skipped"]
    records = [read_record(folder, number) for number in range(len(manifest["shards"]))]
    whole = [record for record in records if record is not None]
    if (
        len(whole) == len(records)
        and _totals(manifest["identity"], folder, whole, n_given) != manifest
    ):
        found[MANIFEST_FILE] = "does not say what the shards' records say"
    for number, shard in enumerate(manifest["shards"]):
        for name, checksum in (
            (record_name(number), shard["record_xxh3_128"]),
            (shard_name(number), shard["xxh3_128"]),
        ):
            if wrong := _damage(folder / name, checksum):
                found[name] = wrong
    return found


def damaged_shards(folder: Path, numbers: Iterable[int]) -> list[int]:
    """The shards whose rows are not what their records, or the manifest, say."""
    manifest = read_manifest(folder) or {}
    listed = manifest.get("shards", [])
    found = []
    for number in sorted(numbers):
        record = read_record(folder, number)
        if record is None or _damage(folder / shard_name(number), record["xxh3_128"]):
            found.append(number)
        elif number < len(listed) and _damage(
            folder / record_name(number), listed[number]["record_xxh3_128"]
        ):
            found.append(number)
    return found


def _damage(path: Path, checksum: str) -> str | None:
    try:
        found = checksum_of_file(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error}"
    return None if found == checksum else f"has the checksum {found}, not {checksum}"
