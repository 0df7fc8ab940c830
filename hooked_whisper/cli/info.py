"""`hooked-whisper info`: a model's configuration, and its hooks with their shapes."""

import re
from typing import Any

import click

from hooked_whisper.cli import options as opt


@opt.command(
    opt.hooks_option(None),
    opt.flag("--switched-off", help="Also list hooks that fire only while a flag is on."),
    examples="""
    hooked-whisper info
    hooked-whisper info --hook 'encoder.blocks.0.*' --hook decoder.hook_logits
    hooked-whisper info --switched-off
    hooked-whisper info --json
    hooked-whisper info --model tiny.en
    """,
)
def info(args: opt.Options) -> None:
    """Show a model's configuration and its hook names with their shapes.

    Without --hook, the blocks' hooks are listed once, with * for the layer.
    A shape has a number for each axis, or the axis's name where its length
    depends on the input.
    """
    model = args.load_model()
    names = model.hook_names(list(args.hooks) or None)
    flags = {name: point.flag for name, point in model.hook_dict.items() if not point.enabled}
    if args.switched_off:
        names += list(flags)
    rows = [_row(model, name, flags.get(name)) for name in names]
    config = model.cfg.to_dict()
    n_parameters = sum(weights.numel() for weights in model.parameters())
    if args.as_json:
        numbers = {"model": args.source, "config": config, "n_parameters": n_parameters}
        opt.echo_json({**numbers, "hooks": rows})
        return
    for key, value in {**config, "n_parameters": f"{n_parameters:,}"}.items():
        click.echo(f"{key:24}{value}")
    click.echo()
    shown = rows if args.hooks else _by_layer(rows)
    opt.echo_table([_readable(row, with_flag=args.switched_off) for row in shown])
    if not args.switched_off and not args.hooks and flags:
        args.note(f"{len(flags)} more fire only while a flag is on: --switched-off lists them.")


def _row(model: Any, name: str, flag: str | None) -> dict[str, Any]:

    axes = model.hook_dict[name].axes
    return {"name": name, "axes": list(axes), "shape": list(model.axis_sizes(name)), "flag": flag}


def _by_layer(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with * for the layer, each once."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = re.sub(r"\.blocks\.\d+\.", ".blocks.*.", row["name"])
        entry = found.setdefault(name, {**row, "name": name, "layers": 0})
        entry["layers"] += 1
    return list(found.values())


def _readable(row: dict[str, Any], *, with_flag: bool) -> dict[str, Any]:
    sizes = zip(row["axes"], row["shape"], strict=True)
    shape = ", ".join(axis if size is None else str(size) for axis, size in sizes)
    shown = {"hook": row["name"], "axes": " ".join(row["axes"]), "shape": f"[{shape}]"}
    if "layers" in row:
        shown["layers"] = row["layers"] if ".blocks." in row["name"] else None
    if with_flag:
        shown["needs"] = row["flag"]
    return shown
