"""The documentation is true: its Python runs, and its links lead somewhere.

A block fenced as `python` is run, the blocks of a page one after the other in
one session; one fenced as `python no-run` is looked up by test_shown_code.py, and one
with the name of another package (docs/coming_from) is run by test_coming_from.py.
"""

import doctest
import re
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
}
pages = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())

FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)[^)]*\)")
REPOSITORY = "hooked-whisper/hooked_whisper"
OURS = re.compile(
    rf"https://(github\.com/{REPOSITORY}/(blob|tree)|raw\.githubusercontent\.com/{REPOSITORY})/main/"
)
"""How a page that is shown elsewhere, such as the README on a package index, names our files."""


def python_blocks(text: str) -> list[tuple[int, str]]:
    """The blocks that are to run, each with the line that its code starts on."""
    return [
        (text.count("\n", 0, found.start("code")) + 1, found["code"])
        for found in FENCE.finditer(text)
        if found["kind"].strip() == "python"
    ]


def heading_anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run_block(code: str, name: str, line: int, namespace: dict[str, object]) -> None:
    """Run a block in the page's session; lines with `>>>` are compared with their output."""
    if not code.lstrip().startswith(">>>"):
        exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)
        return
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    test = doctest.DocTestParser().get_doctest(code, namespace, name, name, line - 1)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(test, out=report.append, clear_globs=False)
    namespace.update(test.globs)
    assert not report, "".join(report)


def dead_links(page: Path) -> list[str]:
    """The links of a page to files or headings that are not there; the web is not asked."""
    dead = []
    for found in LINK.finditer(FENCE.sub("", page.read_text())):
        target, _, anchor = found["target"].partition("#")
        inside = OURS.sub("", target)
        if "://" in inside or target.startswith("mailto:"):
            continue
        folder = page.parent if inside == target else ROOT
        path = (folder / inside).resolve() if target else page
        if not path.exists() or (
            anchor and path.suffix == ".md" and anchor not in heading_anchors(path.read_text())
        ):
            dead.append(found["target"])
    return dead


@pages
def test_its_python_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trim_memory: Callable[[], None],
    blocks_run_once: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as readers run it
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in python_blocks(page.read_text()):
        run_block(code, str(page), line, namespace)
        trim_memory()
    namespace.clear()  # a function of the page and its caches would keep each other


@pages
def test_its_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](gone.md) [y](#a-b) [z](page.md#c) [w](https://example.org)\n")
    assert dead_links(page) == ["gone.md", "page.md#c"]


def test_a_dead_link_that_names_the_repository_is_seen(tmp_path: Path) -> None:
    page, blob = tmp_path / "page.md", f"https://github.com/{REPOSITORY}/blob/main/"
    raw = f"https://raw.githubusercontent.com/{REPOSITORY}/main/"
    dead = [f"{blob}docs/gone.md", f"{blob}docs/index.md#gone", f"{raw}docs/pictures/gone.png"]
    live = [f"{blob}docs/index.md#guides", f"{raw}docs/pictures/mel.png"]
    page.write_text(" ".join(f"[![a](page.md)]({target})" for target in dead + live))
    assert dead_links(page) == dead


def test_the_readme_holds_on_a_package_index() -> None:
    targets = [found["target"] for found in LINK.finditer(PAGES["README.md"].read_text())]
    pictures = [each for each in targets if each.endswith(".png")]
    assert pictures and all(each.startswith("https://raw.") for each in pictures)
    assert [each for each in targets if not each.startswith("https://")] == []


def test_the_first_example_of_the_readme_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    line, code = python_blocks(PAGES["README.md"].read_text())[0]
    run_block(code, "README.md", line, {})
    said = re.findall(r"print\(.*# (.+)$", code, re.MULTILINE)
    assert [each.strip() for each in capsys.readouterr().out.splitlines()] == said
    assert len(said) == 2


def test_a_wrong_output_is_seen() -> None:
    (block,) = python_blocks("a\n```python\n>>> 1 + 1\n3\n```\n```python no-run\n1/0\n```\n")
    assert block == (3, ">>> 1 + 1\n3\n")
    with pytest.raises(AssertionError, match=r"Got:\n *2"):
        run_block(block[1], "page.md", block[0], {})
