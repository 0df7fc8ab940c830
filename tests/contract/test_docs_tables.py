"""The tables in the documentation that come from the code say what the code says."""

import fnmatch
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.config import FLAGS
from hooked_whisper.digits import recordings

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `((?:encoder|decoder)\.[\w.*]+)` \| ([\w ]+) \| `\[([\w, ]+)\]` \|", re.M)


def load(script: str) -> ModuleType:
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{script}", DOCS / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load("tables")


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_page_holds_what_the_code_says(name: str) -> None:
    page, make = tables.TABLES[name]
    text = (DOCS / page).read_text()
    assert tables.with_table(text, name, make()) == text, "run python docs/tables.py"


@pytest.fixture(scope="module")
def shown() -> dict[str, tuple[str, list[str]]]:
    """The hooks that the page names: by glob the axes, and their lengths in Tiny."""
    found = ROW.findall((DOCS / "hooks.md").read_text())
    return {glob: (axes, shape.split(", ")) for glob, axes, shape in found}


def test_every_hook_of_the_model_is_shown_once(shown: dict[str, Any]) -> None:
    names = list(HookedWhisper.from_pretrained("digits").hook_dict)
    for name in names:
        assert len([glob for glob in shown if fnmatch.fnmatch(name, glob)]) == 1, name
    assert all(fnmatch.filter(names, glob) for glob in shown)


def test_the_shapes_shown_are_those_that_hooks_see(shown: dict[str, Any]) -> None:
    model = HookedWhisper.from_pretrained("digits")
    mel, tokens = model.to_mel(recordings()[0].path), model.to_tokens(" three one four")
    seen: dict[str, tuple[int, ...]] = {}

    def note(value: torch.Tensor, hook: Any) -> None:
        seen.setdefault(hook.name, tuple(value.shape))

    for switched_on in (False, True):  # some switches widen what a LayerNorm gives
        for flag in FLAGS:
            getattr(model, f"set_{flag}")(switched_on)
        with torch.no_grad():
            model.run_with_hooks(mel, tokens, fwd_hooks=[(None, note)])
    assert set(seen) == set(model.hook_dict)
    of_digits = {"384": 96, "64": 16, "1536": 384, "batch": 1, "pos": 7, "query": 7, "key": 7}
    for name, shape in seen.items():
        _, sizes = shown[re.sub(r"\.\d+\.", ".*.", name)]
        assert shape == tuple(of_digits.get(size) or int(size) for size in sizes), name


def test_the_build_complains_of_a_public_name_without_an_entry() -> None:
    conf = load("conf")
    named = {
        f"{room}.{name}": None
        for room in conf.ROOMS
        for name in importlib.import_module(room).__all__
    }
    py = SimpleNamespace(objects=named)
    assert conf.unnamed(SimpleNamespace(domains={"py": py})) == []
    del named["hooked_whisper.sae.train_sae"]
    assert conf.unnamed(SimpleNamespace(domains={"py": py})) == ["hooked_whisper.sae.train_sae"]


def test_every_room_has_its_page_in_the_reference() -> None:
    pages = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    documented = re.findall(r"^\.\. automodule:: (\S+)$", pages, re.M)
    assert set(load("conf").ROOMS) <= set(documented)
