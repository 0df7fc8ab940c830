"""`hooked-whisper store`: looking at an activation store."""

import sys
from pathlib import Path

import click

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def store() -> None:
    """Look at an activation store."""


@store.command()
@click.argument("folder", type=_FOLDER)
def verify(folder: Path) -> None:
    """Compare every file of the store in FOLDER with its checksum; exit code 1 on damage."""
    from hooked_whisper.harvest import verify_store

    damaged = verify_store(folder)
    for name, what in damaged.items():
        click.echo(f"{name} {what}")
    if damaged:
        click.echo("Run the same harvest again with --verify: it makes only these again.", err=True)
        sys.exit(1)
    click.echo("every file is as its checksum says")


@store.command()
@click.argument("folder", type=_FOLDER)
def info(folder: Path) -> None:
    """Say what the store in FOLDER holds, and what made it."""
    from hooked_whisper.harvest import ActivationStore

    found = ActivationStore(folder)
    identity = found.identity
    n_bytes = sum(shard["bytes"] for shard in found.manifest["shards"])
    lines = {
        "model": f"{identity['model']['name']} ({identity['model']['xxh3_128']})",
        "recordings": f"{found.n_recordings}, {found.manifest['seconds'] / 3600:.3f} hours",
        "skipped": str(len(found.skipped)),
        "dtype": identity["dtype"],
        "frames": identity["frames"],
        "size": f"{n_bytes / 2**20:.1f} MiB in {len(found.manifest['shards'])} shards",
        "made by": f"hooked_whisper {identity['package']} on {identity['device']}",
    }
    if identity["note"]:
        lines["note"] = identity["note"]
    for name, value in lines.items():
        click.echo(f"{name:12}{value}")
    for hook in found.hook_names:
        click.echo(f"{hook}  {found.n_rows(hook)} {found.kind(hook)} rows {found.row_shape(hook)}")
    for each in found.skipped:
        click.echo(f"skipped {each['id']}: {each['reason']}")
