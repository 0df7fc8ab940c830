"""The study is written as a user could write it: on public names only.

It imports names of `hooked_whisper` and of its rooms that stand in their `__all__`. Besides
these it may use modules that are no rooms and have no `__all__`: `errors`, which users catch;
`config`, which has the constants of time; `display` and `io`, which write numbers, tables, progress
bars, files and checksums, as any program has to that writes a report, and know nothing of Whisper.
"""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import hooked_whisper

STUDY = Path(hooked_whisper.__file__).parent / "study"
SUPPORT = {"arguments", "config", "display", "errors", "io"}
ROOMS = {module.name for module in pkgutil.iter_modules(hooked_whisper.__path__) if module.ispkg}


def private_imports(code: str) -> Iterator[str]:
    """What a file imports from the package that is not public, each as one line."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hooked_whisper":
                    yield f"import {alias.name}: import names from rooms instead"
        elif isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            if node.level:
                yield f"from {'.' * node.level}{node.module or ''}: write the whole name"
            elif path[0] == "hooked_whisper" and path[1:2] != ["study"]:
                for alias in node.names:
                    if not is_public(path[1:], alias.name):
                        yield f"from {node.module} import {alias.name}"


def is_public(path: list[str], name: str) -> bool:
    """Whether a name is public in the package, in a room, or in a module of support."""
    if len(path) == 1 and path[0] in SUPPORT:
        return not name.startswith("_")
    if len(path) > 1 or not ROOMS.issuperset(path):
        return False
    module = importlib.import_module(".".join(["hooked_whisper", *path]))
    return name in module.__all__


@pytest.mark.parametrize("file", sorted(STUDY.glob("**/*.py")), ids=lambda file: file.name)
def test_the_study_imports_public_names_only(file: Path) -> None:
    assert list(private_imports(file.read_text(encoding="utf-8"))) == []


CASES = {
    "a name of the package": ("from hooked_whisper import HookedWhisper", True),
    "a name of a room": ("from hooked_whisper.analysis import head_table", True),
    "support": ("from hooked_whisper.errors import InputError", True),
    "its own": ("from hooked_whisper.study.report import Section", True),
    "another package": ("import torch.nn", True),
    "a module of a room": ("from hooked_whisper.analysis.tables import head_table", False),
    "a name that is not public": ("from hooked_whisper.analysis import pearson", False),
    "a module as a name": ("from hooked_whisper.analysis import tables", False),
    "a room as a name": ("from hooked_whisper import analysis", False),
    "no room": ("from hooked_whisper.moved import moved_names", False),
    "a private name of support": ("from hooked_whisper.io import _explain", False),
    "the module itself": ("import hooked_whisper.model.whisper", False),
    "relative": ("from ..model.whisper import HookedWhisper", False),
    "in a function": ("def f():\n    from hooked_whisper.hooks.points import HookPoint", False),
}


@pytest.mark.parametrize(("code", "allowed"), CASES.values(), ids=CASES.keys())
def test_what_is_public_is_told_from_what_is_not(code: str, allowed: bool) -> None:
    assert (list(private_imports(code)) == []) == allowed
