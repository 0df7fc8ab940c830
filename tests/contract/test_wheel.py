"""What people get from `pip install`: the wheel and the source distribution of what is in git."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_BYTES = 6_000_000
"""The shipped digits model may take 4 MB, the code far less."""
LICENCES = {"LICENSE": "MIT", "hooked_whisper/weights/digits/LICENSE": "CC-BY-SA-4.0"}

BUILD = """
import sys
from setuptools import build_meta

getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2])
"""
"""What `python -m build` and pip call, without an environment of its own for it."""


def _run(*command: str, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _tracked() -> set[str]:
    """The files that git has, or would take as new ones."""
    kinds = ("--cached", "--others", "--exclude-standard")
    listed = _run("git", "ls-files", "-z", *kinds, cwd=ROOT).stdout.split("\0")
    return {name for name in listed if name and (ROOT / name).exists()}


def _build(kind: str, source: Path, target: Path) -> Path:
    """A distribution, built offline and without a word of complaint."""
    done = _run(sys.executable, "-c", BUILD, kind, str(target), cwd=source)
    said = f"{done.stdout}\n{done.stderr}"
    assert not re.search(r"warning: (?!.*byte-compiling)|deprecat|ignored", said, re.I), said
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone, so that the working tree stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in _tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution: that needs nothing else."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return _build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone in a folder, as pip unpacks it: no file of the clone helps it."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(packed.read(name))


# Files


def test_the_wheel_has_everything_of_the_package_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {name for name in _tracked() if name.startswith("hooked_whisper/")}
    assert "hooked_whisper/py.typed" in packed


def test_the_source_distribution_has_what_the_wheel_needs_and_no_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    own = {name for name in names & _tracked() if not name.startswith("hooked_whisper/")}
    assert own == {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}


def test_an_editable_install_is_a_path_which_type_checkers_follow(
    source: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(_build("editable", source, tmp_path)) as packed:
        (name,) = (name for name in packed.namelist() if ".dist-info/" not in name)
        assert name.endswith(".pth")
        assert Path(packed.read(name).decode().strip()).samefile(source)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_is_small(kind: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(kind).stat().st_size < MOST_BYTES


# Metadata


def test_both_licences_are_named_and_inside(wheel: Path, metadata: Message) -> None:
    assert metadata["License-Expression"] == " AND ".join(LICENCES.values())
    assert metadata.get_all("License-File") == list(LICENCES)
    names = zipfile.ZipFile(wheel).namelist()
    for file in LICENCES:
        assert any(name.endswith(f".dist-info/licenses/{file}") for name in names), file


def test_links_lead_to_the_code_the_pages_and_the_issues(metadata: Message) -> None:
    links = dict(line.split(", ") for line in metadata.get_all("Project-URL") or [])
    assert set(links) == {"Homepage", "Documentation", "Changelog", "Issues"}
    home = links["Homepage"]
    for link in links.values():
        assert link.startswith(home)
        file = link.removeprefix(home).partition("/blob/main/")[2]
        assert (ROOT / file).exists(), link


def test_pythons_are_named_from_the_oldest_that_is_allowed(metadata: Message) -> None:
    named = re.findall(
        r"Python :: (3\.\d+)$", "\n".join(metadata.get_all("Classifier") or []), re.M
    )
    oldest = metadata["Requires-Python"].removeprefix(">=")
    assert named[0] == oldest == "3.10"
    minors = [int(version.partition(".")[2]) for version in named]
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_every_link_and_picture_of_the_description_holds_on_a_package_index(
    metadata: Message,
) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload()
    assert isinstance(description, str)
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", description)
    links = [link or attribute for link, attribute in targets]
    assert any(link.endswith((".png", ".svg", ".gif")) for link in links)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


# Use


EMPTY = """
import importlib.abc, importlib.metadata, re, sys

def required(name, extras=()):
    \"\"\"What a distribution needs where nothing else is installed, itself included.\"\"\"
    from packaging.requirements import Requirement
    found, waiting = set(), [(name, tuple(extras))]
    while waiting:
        name, extras = waiting.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        for need in map(Requirement, lines):
            if need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            ):
                waiting.append((need.name, tuple(sorted(need.extras))))
    return {name for name, _ in found}

there = required("hooked-whisper")
normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
hidden = {
    module
    for module, owners in importlib.metadata.packages_distributions().items()
    if not {normal(each) for each in owners} & there
}

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {fullname!r} (hidden)", name=fullname)

for module in [each for each in sys.modules if each.partition(".")[0] in hidden]:
    del sys.modules[module]
sys.meta_path.insert(0, Hide())
assert {"pytest", "playwright"} <= hidden, hidden
"""
"""Before a program: hides what is installed here and would not be in an empty environment."""

FIRST_STEPS = """
import importlib.metadata

from click.testing import CliRunner
from hooked_whisper.sae import load_suite

name, sae = next((name, sae) for name, sae in load_suite("digits").items() if "encoder" in name)
model.run_with_saes(model.to_mel(heard), saes={name: sae})

(command,) = importlib.metadata.entry_points(group="console_scripts", name="hooked-whisper")
main = command.load()
version = CliRunner().invoke(main, ["--version"]).output.split()[-1]
assert version == importlib.metadata.version("hooked-whisper")
answer = CliRunner().invoke(main, ["attention", str(heard), "--out", "page.html"])
assert answer.exit_code == 0, answer.output
print(main.__module__, __import__("hooked_whisper").__file__)
"""
"""Behind the README's first example: an autoencoder, the command, a page."""


def _first_example(metadata: Message) -> str:
    found = re.search(r"```python\n(.*?)```", str(metadata.get_payload()), re.S)
    assert found
    return found[1]


def test_the_first_example_runs_in_an_empty_environment(
    installed: Path, metadata: Message, tmp_path: Path
) -> None:
    """Only what it declares to need can be imported: the model, an autoencoder, a page."""
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    program = EMPTY + _first_example(metadata) + FIRST_STEPS
    *printed, last = _run(
        sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=path, OMP_NUM_THREADS="1"
    ).stdout.splitlines()
    assert [line.strip() for line in printed] == ["three one four", "three five four"]
    assert Path(last.split()[-1]).is_relative_to(installed)
    assert (tmp_path / "page.html").stat().st_size > 100_000


@pytest.mark.slow
def test_it_installs_in_an_empty_environment(
    wheel: Path, metadata: Message, tmp_path: Path
) -> None:
    """With everything that it needs, as `pip install` does it for a user (minutes)."""
    _run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    options = ["--quiet", "--no-compile", "--constraint", constraints]
    _run(python, "-m", "pip", "install", *options, str(wheel), cwd=tmp_path, PYTHONPATH="")
    program = _first_example(metadata) + FIRST_STEPS
    printed = _run(python, "-c", program, cwd=tmp_path, PYTHONPATH="").stdout
    assert Path(printed.split()[-1]).is_relative_to(tmp_path)
