"""Finding damage: every byte of a store against its checksum."""

from collections.abc import Iterable
from pathlib import Path

from hooked_whisper.checksums import checksum_of_file
from hooked_whisper.errors import StoreError
from hooked_whisper.store.manifest import read_manifest, read_record
from hooked_whisper.store.shards import record_name, shard_name


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
