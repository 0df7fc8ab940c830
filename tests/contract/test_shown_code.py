"""Blocks of the documentation that are shown and not run name what is there.

They need other weights, many recordings, or minutes. What they import, what they call on a
model, and the keywords of these calls are looked up.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper import HookedWhisper

DOCS = Path(__file__).parents[2] / "docs"
ROOMS = [
    f"hooked_whisper.{room}"
    for room in (
        "circuits",
        "data",
        "interventions",
        "lenses",
        "metrics",
        "patching",
        "sae",
        "store",
        "study",
    )
]


def public() -> dict[str, Any]:
    """What a block may call without importing it again."""
    rooms = map(importlib.import_module, ["hooked_whisper", *ROOMS])
    return {name: getattr(room, name) for room in rooms for name in room.__all__}


def shown() -> Iterator[Any]:
    for page in sorted(DOCS.glob("*.md")):
        found = re.findall(r"^```python no-run\n(.*?)^```$", page.read_text(), re.S | re.M)
        for number, code in enumerate(found):
            yield pytest.param(code, id=f"{page.stem}-{number}")


def callee(call: ast.Call, names: dict[str, Any]) -> Any:
    """What is called, where it is a public name or of a model; None where it is not ours."""
    match call.func:
        case ast.Name(id="model"):
            return HookedWhisper.forward
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=ast.Name(id="model" | "HookedWhisper"), attr=name):
            return getattr(HookedWhisper, name)
    return None


def look_up(code: str) -> int:
    """Raise for a name or a keyword that is not there; how many were looked up."""
    names, n_found = public(), 0
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hooked_whisper"):
            for alias in node.names:
                getattr(importlib.import_module(str(node.module)), alias.name)
                n_found += 1
        elif isinstance(node, ast.Call) and (called := callee(node, names)) is not None:
            keywords = [keyword.arg for keyword in node.keywords if keyword.arg]
            inspect.signature(called).bind_partial(**dict.fromkeys(keywords))
            n_found += 1
    return n_found


@pytest.mark.parametrize("code", list(shown()))
def test_names_and_keywords_are_there(code: str) -> None:
    assert look_up(code) > 0


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("from hooked_whisper.study import studies", "studies"),
        ("model.add_saes(transcoder)", "add_saes"),
        ("patch_sweep(model, clean, corrupted, sites, every='window')", "every"),
    ],
    ids=["import", "method", "keyword"],
)
def test_a_slip_is_seen(code: str, missing: str) -> None:
    with pytest.raises((AttributeError, TypeError), match=missing):
        look_up(code)
