"""`hooked-whisper store`: looking at an activation store."""

import sys
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command, Group
from hooked_whisper.cli.options import FILE, json_option, note
from hooked_whisper.cli.output import echo_json, echo_table


@click.group(
    cls=Group,
    lazy={"info": "hooked_whisper.cli.store:info", "verify": "hooked_whisper.cli.store:verify"},
)
def store() -> None:
    """Look at an activation store."""


@click.command(
    cls=Command,
    examples="""
    hooked-whisper store verify digits-store
    """,
)
@click.argument("folder", type=FILE)
@json_option
def verify(folder: Path, as_json: bool) -> None:
    """Compare every file of the store in FOLDER with its checksum; exit code 1 on damage."""
    from hooked_whisper.store import verify_store

    damaged = verify_store(folder)
    if as_json:
        echo_json({"folder": folder, "damaged": damaged})
    else:
        for name, what in damaged.items():
            click.echo(f"{name} {what}")
    if damaged:
        note("Run the same harvest again with --verify: it makes only these again.", False)
        sys.exit(1)
    if not as_json:
        click.echo("every file is as its checksum says")


@click.command(
    cls=Command,
    examples="""
    hooked-whisper store info digits-store
    hooked-whisper store info digits-store --json
    """,
)
@click.argument("folder", type=FILE)
@json_option
def info(folder: Path, as_json: bool) -> None:
    """Say what the store in FOLDER holds, and what made it."""
    from hooked_whisper.store import ActivationStore

    told = summary(ActivationStore(folder))
    if as_json:
        echo_json(told)
        return
    lines = {
        "model": f"{told['model']} ({told['model_xxh3_128']})",
        "recordings": f"{told['n_recordings']}, {told['hours']:.3f} hours",
        "skipped": str(len(told["skipped"])),
        "dtype": told["dtype"],
        "frames": told["frames"],
        "size": f"{told['bytes'] / 2**20:.1f} MiB in {told['n_shards']} shards",
        "made by": f"hooked_whisper {told['package']} on {told['device']}",
    }
    if told["note"]:
        lines["note"] = told["note"]
    for name, value in lines.items():
        click.echo(f"{name:12}{value}")
    click.echo()
    echo_table(told["hooks"])
    for each in told["skipped"]:
        click.echo(f"skipped {each['id']}: {each['reason']}")


def summary(found: Any) -> dict[str, Any]:
    """What a store holds and what made it, for JSON."""
    identity, shards = found.identity, found.manifest["shards"]
    return {
        "model": identity["model"]["name"],
        "model_xxh3_128": identity["model"]["xxh3_128"],
        "n_recordings": found.n_recordings,
        "hours": found.manifest["seconds"] / 3600,
        "dtype": identity["dtype"],
        "frames": identity["frames"],
        "bytes": sum(shard["bytes"] for shard in shards),
        "n_shards": len(shards),
        "package": identity["package"],
        "device": identity["device"],
        "note": identity["note"],
        "hooks": [
            {
                "hook": hook,
                "rows": found.n_rows(hook),
                "kind": found.kind(hook),
                "shape": found.row_shape(hook),
            }
            for hook in found.hook_names
        ],
        "skipped": list(found.skipped),
    }
