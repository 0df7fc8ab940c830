"""What lies beside the rows, as JSON: the manifest of a store, and a record of each shard.

`manifest.json` is written when a harvest begins, with what makes it the one
that it is, and again when it is complete, with every shard's size, checksum
and row counts, all skipped recordings, and the totals. `shard-000000.json`
tells whose rows are in a shard; a shard without it does not count.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hooked_whisper.data.loading import Loaded
from hooked_whisper.errors import StoreDamagedError, StoreError, StoreMismatchError
from hooked_whisper.io import checksum_of_file, write_json
from hooked_whisper.store.fingerprint import FORMAT, check_same
from hooked_whisper.store.shards import file_size, record_name, shard_name

MANIFEST_FILE = "manifest.json"

Json = dict[str, Any]


def read_manifest(folder: Path) -> Json | None:
    """A folder's manifest; None where there is none.

    Raises:
        StoreDamagedError: It cannot be read.
        StoreMismatchError: It is of a later format, or of something else.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    manifest = _read_json(path)
    found = manifest.get("identity", {})
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreMismatchError(
            f"{path} is no manifest of an activation store that this release reads ({FORMAT})."
        )
    return manifest


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
    shards, skipped, totals, seconds = [], [], dict[str, int](), 0.0
    for number in range(n_shards):
        record = read_record(folder, number)
        if record is None:
            raise StoreDamagedError(
                f"{folder / record_name(number)} is missing at the end of the harvest: was it "
                "removed meanwhile? Run the same harvest again."
            )
        own = {"record_xxh3_128": checksum_of_file(folder / record_name(number))}
        shards.append({key: record[key] for key in ("file", "bytes", "xxh3_128", "rows")} | own)
        skipped += record["skipped"]
        seconds += sum(each["seconds"] for each in record["recordings"])
        for kind, n_rows in record["rows"].items():
            totals[kind] = totals.get(kind, 0) + n_rows
    if (folder / record_name(n_shards)).exists():
        raise StoreMismatchError(
            f"{folder} holds shards of more than the {n_recordings} recordings of this harvest. "
            "Name another folder."
        )
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
    if read_manifest(folder) != manifest:
        write_json(folder / MANIFEST_FILE, manifest)
    return manifest


def read_record(folder: Path, number: int) -> Json | None:
    """The record of a shard that is complete; None where either is missing, cut or unreadable."""
    try:
        record = _read_json(folder / record_name(number))
    except StoreDamagedError:
        return None
    whole = file_size(folder / shard_name(number)) == record.get("bytes")
    return record if whole else None


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
        if entry is None or entry["id"] != recording.id:
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
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    if manifest is None or not manifest["complete"]:
        what = "no store" if manifest is None else "a store that is not complete"
        raise StoreError(f"{folder} holds {what}. Run the harvest to its end.")
    found = {}
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


def _read_json(path: Path) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreDamagedError(
            f"{path} cannot be read ({error}). Remove it and run the same harvest again."
        ) from error
    if not isinstance(value, dict):
        raise StoreDamagedError(f"{path} holds no object. Remove it and harvest again.")
    return value
