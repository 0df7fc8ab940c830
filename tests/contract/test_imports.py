"""The direction of imports: a room may import from below, never from above or beside.

Every import counts: under TYPE_CHECKING, inside a function, relative.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hooked_whisper"

LINES = [
    {"__init__", "__main__"},
    {"cli"},
    {"study"},
    {"reports"},
    {"circuits"},
    {"patching", "sae", "store", "lenses"},
    {"interventions"},
    {"metrics", "data"},
    {"model"},
    {"weights", "hooks", "speech", "analysis", "figures", "digits"},
    {"distributed", "io", "display", "device", "interrupts"},
    {"config", "arguments"},
    {"errors", "harvest", "pages"},  # the latter two are former names, whose names are elsewhere
    {"moved"},
]
"""The rooms of the package, from the top line down."""

AS_USERS_DO = {"study"}
"""Rooms that take the package's own names from the package itself, as a user would write it."""

HEIGHT = {room: -line for line, rooms in enumerate(LINES) for room in rooms}

Imports = dict[str, set[str]]
"""Module of the package -> modules of the package that it imports; names without the package's."""


def modules_of(package: Path) -> dict[str, Path]:
    """Every module by its dotted name inside the package; the package itself is `__init__`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def imported_names(path: Path, package: Path) -> Iterator[str]:
    """The absolute dotted names that a file imports, `from a import b` as `a.b`."""
    folder = (package.name, *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = folder[: len(folder) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(package: Path) -> Imports:
    """Which module of the package imports which other."""
    modules = modules_of(package)
    graph: Imports = {}
    for name, path in modules.items():
        graph[name] = set()
        for target in imported_names(path, package):
            root, _, inner = target.partition(".")
            if root != package.name:
                continue
            # `from hooked_whisper.config import Stack` names an attribute: drop it.
            while inner and inner not in modules:
                inner = inner.rpartition(".")[0]
            graph[name].add(inner or "__init__")
    return graph


def wrong_arrows(graph: Imports) -> list[str]:
    """The imports that go up or sideways, each as one line."""
    found = []
    for name, targets in graph.items():
        room = name.split(".")[0]
        for target in sorted(targets):
            other = target.split(".")[0]
            if other == "__init__" and room in AS_USERS_DO:
                continue
            if room != other and HEIGHT[other] >= HEIGHT[room]:
                found.append(f"{name} imports {target}")
    return found


def circle(graph: Imports) -> list[str]:
    """The modules of one circle of imports, the first also last; empty if there is none."""
    done: set[str] = set()

    def follow(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        done.add(name)
        for target in sorted(graph[name]):
            if found := follow(target, [*trail, name]):
                return found
        return []

    return next((found for name in sorted(graph) if (found := follow(name, []))), [])


def folders_of(graph: Imports) -> Imports:
    """The same with every folder inside a room as one module: `sae.training` for its files."""

    def folder(name: str) -> str:
        return ".".join(name.split(".")[:2])

    folded: Imports = {folder(name): set() for name in graph}
    for name, targets in graph.items():
        folded[folder(name)] |= {folder(target) for target in targets} - {folder(name)}
    return folded


def test_every_module_is_in_a_room_of_the_house() -> None:
    rooms = {name.split(".")[0] for name in modules_of(PACKAGE)}
    assert rooms <= set(HEIGHT), "a new room needs its line in LINES and in CONTRIBUTING.md"


def test_no_import_goes_up_or_sideways() -> None:
    assert wrong_arrows(import_graph(PACKAGE)) == []


def test_no_imports_in_a_circle() -> None:
    assert circle(import_graph(PACKAGE)) == []


def test_no_folders_in_a_circle() -> None:
    """Files need not import each other in a circle for their folders to."""
    assert circle(folders_of(import_graph(PACKAGE))) == []


def test_only_hooks_imports_transformer_lens() -> None:
    importers = {
        name
        for name, path in modules_of(PACKAGE).items()
        for target in imported_names(path, PACKAGE)
        if target.split(".")[0] == "transformer_lens"
    }
    assert {name.split(".")[0] for name in importers} <= {"hooks"}


CASES = {
    "down": ("model/blocks.py", "from hooked_whisper.hooks import points", []),
    "inside a room": ("hooks/root.py", "from hooked_whisper.hooks import points", []),
    "up": (
        "hooks/points.py",
        "import hooked_whisper.model.blocks",
        ["hooks.points imports model.blocks"],
    ),
    "sideways": (
        "hooks/points.py",
        "from hooked_whisper.speech.mel import Mel",
        ["hooks.points imports speech.mel"],
    ),
    "up to the top": (
        "errors.py",
        "from hooked_whisper import Anything",
        ["errors imports __init__"],
    ),
    "up for types only": (
        "config.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .model import blocks",
        ["config imports model.blocks"],
    ),
    "up in a function": (
        "speech/mel.py",
        "def f():\n    from ..model.blocks import Block",
        ["speech.mel imports model.blocks"],
    ),
}


@pytest.mark.parametrize(("file", "code", "wrong"), CASES.values(), ids=CASES.keys())
def test_an_arrow_is_seen(tmp_path: Path, file: str, code: str, wrong: list[str]) -> None:
    assert wrong_arrows(import_graph(_package(tmp_path, {file: code}))) == wrong


def test_a_circle_is_seen(tmp_path: Path) -> None:
    package = _package(
        tmp_path,
        {
            "hooks/root.py": "from .points import HookPoint",
            "hooks/points.py": "def f():\n    from hooked_whisper.hooks.names import match",
            "hooks/names.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    import hooked_whisper.hooks.root",
        },
    )
    assert wrong_arrows(import_graph(package)) == []
    assert circle(import_graph(package)) == [
        "hooks.names",
        "hooks.root",
        "hooks.points",
        "hooks.names",
    ]


def test_a_circle_of_folders_is_seen(tmp_path: Path) -> None:
    package = _package(
        tmp_path,
        {
            "model/inner/__init__.py": "",
            "model/inner/one.py": "from hooked_whisper.model.outer import two",
            "model/inner/three.py": "",
            "model/outer/__init__.py": "",
            "model/outer/two.py": "def f():\n    from ..inner.three import g",
        },
    )
    graph = import_graph(package)
    assert circle(graph) == []
    assert circle(folders_of(graph)) == ["model.inner", "model.outer", "model.inner"]


def _package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "hooked_whisper"
    rooms = ("hooks", "model", "speech")
    empty = ["config.py", "errors.py", "hooks/points.py", "model/blocks.py", "speech/mel.py"]
    inits = ["__init__.py", *(f"{room}/__init__.py" for room in rooms)]
    for name, code in {**dict.fromkeys(empty + inits, ""), **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return package
