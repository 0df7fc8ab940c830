"""How Sphinx builds these pages: `make docs`, into build/docs. It needs no network."""

import importlib
import inspect
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

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

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
    # Up to, and without, these: what is ours belongs to the class that people use.
    "inherited-members": "Module, HookedRootModule, HookPoint, tuple, Mapping, Exception, object",
}
autodoc_typehints_format = "short"
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# A reference that leads nowhere is a warning, and warnings are errors. Other projects' pages
# are not linked: that would need the network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"[^.]*"),  # names without a module: Tensor inside of a shape
    ("py:.*", r"(torch|jaxtyping|numpy|pandas|matplotlib|transformer_lens|collections|os|abc)\..*"),
    ("py:.*", r"(pathlib|contextlib|typing|typing_extensions|markupsafe)\..*"),
    ("py:.*", r"hooked_whisper\.([a-z_]+\.)*(GenerateOptions|TranscribeOptions|LoggedTraining)"),
    (
        "py:.*",
        r"hooked_whisper\.([a-z_]+\.)*"
        r"(_\w+|Part|Labels|Model|Recordings|ProcessGroup|KVCache)",
    ),
    (
        "py:.*",
        r"hooked_whisper\.([a-z_]+\.)*(Weights|HookedModel|Temporarily|Scope|PartedSource|BestF1)",
    ),
    ("py:.*", r"tuple\[~.*"),  # what Sphinx makes of tuple[X, ...] | None
    ("py:.*", r"hooked_whisper\.weights\.files\.StoredTensor"),
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


def identity(thing: Any) -> int:
    """What tells an object from others: a function that explains its arguments is the function."""
    return id(inspect.unwrap(thing))


def public_names() -> dict[int, str]:
    """The documented name of each public object, by its identity."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            found.setdefault(identity(getattr(module, name)), f"{room}.{name}")
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
    public = public_names().get(identity(thing))
    if public is None or public == target:
        return None
    entry = env.domains["py"].objects.get(public)
    if entry is None:
        return None
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode)


def unnamed(env: Any) -> list[str]:
    """The public names of rooms that the reference has no entry for, under any of their names."""
    documented = env.domains["py"].objects
    missing, found = {}, set()
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            key = identity(getattr(module, name))
            if f"{room}.{name}" in documented:
                found.add(key)
            missing[f"{room}.{name}"] = key
    return [name for name, key in missing.items() if key not in found]


def check_public_names(app: Sphinx, env: Any) -> None:
    for name in unnamed(env):
        logging.getLogger(__name__).warning("%s is public and has no entry in docs/api.", name)


def adapt_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Pages that lie elsewhere, and links to them; the sidebar, from the index's map."""
    if docname in ELSEWHERE:
        path = ROOT / ELSEWHERE[docname]
        folder = os.path.relpath(path.parent, DOCS)
        source[0] = re.sub(r"\]\((?!\w+:|#)", f"]({folder}/", path.read_text())
    for page, path in ELSEWHERE.items():
        source[0] = source[0].replace(f"](../{path}", f"]({page}.md")
    here = (DOCS / docname).parent

    def outside(link: re.Match[str]) -> str:
        return link[0] if DOCS in (here / link[1]).resolve().parents else f"](path:{link[1]})"

    source[0] = re.sub(r"\]\(((?:\.\./)+[\w/.-]+\.md)\)", outside, source[0])
    if docname == "index":
        for section in source[0].split("\n## ")[1:]:
            pages = re.findall(r"^- .*?\]\(([\w/]+)\.md\)", section, re.MULTILINE)
            lines = [":hidden:", f":caption: {section.splitlines()[0]}", "", *pages]
            source[0] += "\n\n```{toctree}\n" + "\n".join(lines) + "\n```\n"


def adapt_docstring(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Our docstrings as reStructuredText, before napoleon reads their sections.

    Drawings and tables, which are indented, keep their shape; a bar or a letter
    behind code means nothing; neither `Returns` nor attributes begin with a type.
    """
    adapted: list[str] = []
    inside = ""
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if (
            line.startswith("    ")
            and number
            and not before
            and not lines[number - 2][:1].isspace()
        ):
            inside = "drawing"
            adapted += ["::", ""]
        elif line.startswith(">>>"):
            inside = "doctest"
        elif (inside == "drawing" and line[:1].strip()) or (inside == "doctest" and not line):
            inside = ""
        if not inside:
            parts = line.split("`")
            parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
            line = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "`".join(parts))
            line = re.sub(r"^Source: ", "**Source:** ", line)
            if before == "Returns:" and ":" in line:
                line = re.sub(r"^ +", r"\g<0>: ", line)
        adapted.append(line)
    if what in ("attribute", "property", "data") and ":" in adapted[0]:
        adapted[0] = f": {adapted[0]}"
    lines[:] = adapted


def drop_inner_bases(app: Sphinx, name: str, thing: Any, options: Any, bases: list[Any]) -> None:
    """A class's bases, without those of ours that are nobody's business."""
    public = public_names()
    bases[:] = [
        base
        for base in bases
        if id(base) in public
        or not getattr(base, "__module__", "").startswith("hooked_whisper")
        or base.__module__ == "hooked_whisper.errors"
    ] or [object]


def keep_signatures() -> None:
    """Leave the runs' signatures as they tell them: their defaults are not those of one source."""
    for each in vars(hooked_whisper.HookedWhisper).values():
        if "__signature__" in getattr(each, "__dict__", {}):
            del each.__wrapped__


def setup(app: Sphinx) -> None:
    keep_signatures()
    app.connect("source-read", adapt_source)
    app.connect("autodoc-process-docstring", adapt_docstring, priority=100)
    app.connect("autodoc-process-bases", drop_inner_bases)
    app.connect("missing-reference", find_public)
    app.connect("env-check-consistency", check_public_names)
