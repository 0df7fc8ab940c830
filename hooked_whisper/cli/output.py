"""What commands print: tables for people, JSON for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click


def echo_json(document: Any) -> None:
    """One JSON document; what is no finite number becomes null."""
    click.echo(json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False))


def echo_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a line of names above; the columns are those of the first row."""
    if not rows:
        return
    names = list(rows[0])
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    is_number = [
        all(isinstance(row.get(name), int | float) or row.get(name) is None for row in rows)
        for name in names
    ]
    for line in lines:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _plain(value: Any) -> Any:
    """Values as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's numbers and tensors
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
