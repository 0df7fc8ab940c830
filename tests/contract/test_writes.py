"""Nothing is written in place: what is written in the package has another name at first."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hooked_whisper

ROOT = Path(hooked_whisper.__file__).parent
WRITING = {"write_text": "self", "write_bytes": "self", "savefig": "0", "to_csv": "0"}
WRITING |= {"save_file": "1", "torch.save": "1", "json.dump": "1", "open": "self"}
"""Calls that write into what has a name, and which of their arguments has it."""


def asides(tree: ast.AST) -> set[str]:
    """Names of what is aside, or open or in memory already, where it is written."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            if re.search(r"replacing\(|TemporaryDirectory\(", ast.unparse(node.context_expr)):
                found.add(node.optional_vars.id)
        elif isinstance(node, ast.Lambda):
            found |= {each.arg for each in node.args.args}
        elif isinstance(node, ast.Assign) and "BytesIO()" in ast.unparse(node.value):
            found |= {each.id for each in ast.walk(node.targets[0]) if isinstance(each, ast.Name)}
    return found


def in_place(text: str) -> Iterator[str]:
    """Calls that write into a file by its own name."""
    tree = ast.parse(text)
    aside = asides(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        where = WRITING.get(called) or WRITING.get(called.rpartition(".")[2])
        values = [each for each in (*node.args, *(key.value for key in node.keywords))]
        if where is None or (where == "0" and not node.args):
            continue
        if called.endswith("open"):
            modes = [v.value for v in values if isinstance(v, ast.Constant)]
            if not any(isinstance(m, str) and set(m) & set("wx") and len(m) < 4 for m in modes):
                continue
        if where == "self" and isinstance(node.func, ast.Attribute):
            target = node.func.value
        else:
            target = node.args[0 if where == "self" else int(where)]
        if not aside & {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}:
            yield f"line {node.lineno}: {ast.unparse(node)[:100]}"


def test_every_file_is_written_aside() -> None:
    found = [
        f"{path.relative_to(ROOT)}, {each}"
        for path in sorted(ROOT.rglob("*.py"))
        for each in in_place(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "Path(path).write_text('x')",
        "figure.savefig(out.with_suffix('.png'))",
        "torch.save(values, path)",
        "save_file(tensors, path)",
        "open(path, 'w')",
        "path.open('wb')",
        "frame.to_csv(path)",
    ],
)
def test_it_finds_what_is_written_in_place(line: str) -> None:
    assert list(in_place(line))
