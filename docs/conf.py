"""How Sphinx builds these pages: `make docs`, into build/docs. It needs no network."""

import importlib
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import hooked_whisper

ROOT = Path(__file__).resolve().parent.parent

project = "hooked_whisper"
author = "hooked_whisper contributors"
copyright = author
release = version = hooked_whisper.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["**/_*"]
html_theme = "furo"
html_title = "hooked_whisper"
html_static_path = ["static"]
html_css_files = ["docs.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00457c", "color-brand-content": "#00457c"},
    "dark_css_variables": {"color-brand-primary": "#8fbde6", "color-brand-content": "#8fbde6"},
}
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Anchors of headings are GitHub's, so that one link serves both.
myst_heading_anchors = 4

# Docstrings have Google's sections and our `Source:`; single backticks are code, as in Markdown.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]
autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "member-order": "bysource",
    "show-inheritance": True,
}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# A reference that leads nowhere is a warning, and warnings are errors. Other projects' pages
# are not linked: that would need the network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", rf"{module}\..*")
    for module in ("torch", "jaxtyping", "collections", "pathlib", "numpy", "matplotlib", "pandas")
]

ROOMS = ["hooked_whisper"] + [
    f"hooked_whisper.{room.name}"
    for room in pkgutil.iter_modules(hooked_whisper.__path__)
    if room.name not in ("cli", "__main__")  # which docs/command_line.md is about
    and hasattr(importlib.import_module(f"hooked_whisper.{room.name}"), "__all__")
]
ELSEWHERE = {
    "model_card": "hooked_whisper/weights/digits/MODEL_CARD.md",
    "changelog": "CHANGELOG.md",
}
"""Pages whose text lies elsewhere in the repository."""


def public_names() -> dict[int, str]:
    """The documented name of each public object, by the object's id."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            found.setdefault(id(getattr(module, name)), f"{room}.{name}")
    return found


def find_public(app: Sphinx, env: Any, node: pending_xref, contnode: nodes.Element) -> Any:
    """A link from where a thing is defined, as annotations say it, to where it is documented."""
    target = node.get("reftarget", "")
    if not target.startswith("hooked_whisper."):
        return None
    path, _, name = target.rpartition(".")
    try:
        thing = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError):
        return None
    public = public_names().get(id(thing))
    if public is None or public == target:
        return None
    entry = env.domains["py"].objects.get(public)
    if entry is None:
        return None
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode)


def unnamed(env: Any) -> list[str]:
    """The public names of rooms that the reference has no entry for."""
    public = [f"{room}.{name}" for room in ROOMS for name in importlib.import_module(room).__all__]
    return [name for name in public if name not in env.domains["py"].objects]


def check_public_names(app: Sphinx, env: Any) -> None:
    for name in unnamed(env):
        logging.getLogger(__name__).warning("%s is public and has no entry in docs/api.", name)


def adapt_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Pages that lie elsewhere, and links to them; the sidebar, from the index's map."""
    if docname in ELSEWHERE:
        path = ROOT / ELSEWHERE[docname]
        folder = os.path.relpath(path.parent, ROOT / "docs")
        source[0] = re.sub(r"\]\((?!\w+:|#)", f"]({folder}/", path.read_text())
    for page, path in ELSEWHERE.items():
        source[0] = source[0].replace(f"](../{path}", f"]({page}.md")
    if docname == "index":
        for section in source[0].split("\n## ")[1:]:
            pages = re.findall(r"^- .*?\]\(([\w/]+)\.md\)", section, re.MULTILINE)
            lines = [":hidden:", f":caption: {section.splitlines()[0]}", "", *pages]
            source[0] += "\n\n```{toctree}\n" + "\n".join(lines) + "\n```\n"


def adapt_docstring(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Drawings in the docstrings of modules keep their shape; sources stand out."""
    for number in reversed(range(len(lines))):
        line = lines[number]
        if line.startswith("Source: "):
            lines[number] = f"**Source:** {line[8:]}"
        elif what == "module" and line.startswith("    ") and not lines[number - 1]:
            lines.insert(number, "")
            lines.insert(number, "::")


def setup(app: Sphinx) -> None:
    app.connect("source-read", adapt_source)
    app.connect("autodoc-process-docstring", adapt_docstring)
    app.connect("missing-reference", find_public)
    app.connect("env-check-consistency", check_public_names)
