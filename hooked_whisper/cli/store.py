"""`hooked-whisper store`: looking at an activation store."""

import sys
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import Group


@click.group(
    cls=Group,
    lazy={"info": "hooked_whisper.cli.store:info", "verify": "hooked_whisper.cli.store:verify"},
)
def store() -> None:
    """Look at an activation store."""


@opt.command(
    opt.file_argument("folder"),
    model=False,
    quiet=False,
    examples="""
    hooked-whisper store verify digits-store
    """,
)
def verify(args: opt.Options) -> None:
    """Compare every file of the store in FOLDER with its checksum; exit code 1 on damage."""
    from hooked_whisper.store import verify_store

    damaged = verify_store(args.folder)
    if args.as_json:
        opt.echo_json({"folder": args.folder, "damaged": damaged})
    else:
        for name, what in damaged.items():
            click.echo(f"{name} {what}")
    if damaged:
        opt.note("Run the same harvest again with --verify: it makes only these again.")
        sys.exit(1)
    if not args.as_json:
        click.echo("every file is as its checksum says")


@opt.command(
    opt.file_argument("folder"),
    model=False,
    quiet=False,
    examples="""
    hooked-whisper store info digits-store
    hooked-whisper store info digits-store --json
    """,
)
def info(args: opt.Options) -> None:
    """Say what the store in FOLDER holds, and what made it."""
    from hooked_whisper.store import ActivationStore

    found = summary(ActivationStore(args.folder))
    if args.as_json:
        opt.echo_json(found)
        return
    lines = {
        "model": f"{found['model']} ({found['model_xxh3_128']})",
        "recordings": f"{found['n_recordings']}, {found['hours']:.3f} hours",
        "skipped": str(len(found["skipped"])),
        "dtype": found["dtype"],
        "frames": found["frames"],
        "size": f"{found['bytes'] / 2**20:.1f} MiB in {found['n_shards']} shards",
        "made by": f"hooked_whisper {found['package']} on {found['device']}",
    }
    if found["note"]:
        lines["note"] = found["note"]
    for name, value in lines.items():
        click.echo(f"{name:12}{value}")
    click.echo()
    opt.echo_table(found["hooks"])
    for skipped in found["skipped"]:
        click.echo(f"skipped {skipped['id']}: {skipped['reason']}")


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
