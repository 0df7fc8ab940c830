"""What people get from `pip install`: the wheel, built from what git tracks."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_BYTES = 6_000_000
"""The shipped digits model may take 4 MB, the code far less."""


def _run(*command: str, cwd: Path, **env: str) -> str:
    run = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def _tracked() -> list[str]:
    return [name for name in _run("git", "ls-files", "-z", cwd=ROOT).split("\0") if name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline in a copy so that the working tree stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in _tracked():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target)]
    _run(sys.executable, "-m", "pip", "wheel", *options, str(source), cwd=source)
    (built,) = target.glob("*.whl")
    return built


def test_everything_of_the_package_is_in_it(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {name for name in _tracked() if name.startswith("hooked_whisper/")}


def test_the_licence_and_the_type_marker_are_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "hooked_whisper/py.typed" in names


def test_the_digits_model_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "hooked_whisper/weights/digits/model.safetensors" in names
    assert any(name.startswith("hooked_whisper/weights/digits/recordings/") for name in names)


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES


def test_a_package_index_would_take_it(wheel: Path) -> None:
    assert "PASSED" in _run(
        sys.executable, "-m", "twine", "check", "--strict", str(wheel), cwd=ROOT
    )


def test_the_autoencoders_pages_and_study_are_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("weights/digits/saes/", "pages/static/", "pages/templates/", "study/templates/"):
        assert any(name.startswith(f"hooked_whisper/{folder}") for name in names), folder


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone in a folder: no file of the clone helps it."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--target", str(folder)]
    _run(sys.executable, "-m", "pip", "install", *options, str(wheel), cwd=folder)
    return folder


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
assert {"pytest", "playwright", "sphinx", "mypy"} <= hidden, hidden
"""
"""Before a program: hides what is installed here and would not be in an empty environment."""

FIRST_STEPS = """
from click.testing import CliRunner
import hooked_whisper as h
from hooked_whisper.cli import main
from hooked_whisper.digits import recordings
from hooked_whisper.sae import load_suite

model = h.HookedWhisper.from_pretrained("digits")
said = recordings()[0]
assert model.transcribe(said.path)["text"].strip() == said.text, said
name, sae = next(iter(load_suite("digits").items()))
model.run_with_saes(model.to_mel(said.path), saes={name: sae}) if "encoder" in name else None
answer = CliRunner().invoke(main, ["attention", str(said.path), "--out", "page.html"])
assert answer.exit_code == 0, answer.output
print(h.__file__)
"""


def test_it_works_in_an_empty_environment(installed: Path, tmp_path: Path) -> None:
    """Only what it declares to need can be imported: the model, an autoencoder, a page."""
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    program = EMPTY + FIRST_STEPS
    file = _run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=path).split()[-1]
    assert Path(file).is_relative_to(installed)
    assert (tmp_path / "page.html").stat().st_size > 100_000


@pytest.mark.slow
def test_it_installs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With everything that it needs, as `pip install` does it for a user (minutes)."""
    _run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    options = ["--quiet", "--constraint", constraints]
    _run(python, "-m", "pip", "install", *options, str(wheel), cwd=tmp_path, PYTHONPATH="")
    file = _run(python, "-c", FIRST_STEPS, cwd=tmp_path, PYTHONPATH="").split()[-1]
    assert Path(file).is_relative_to(tmp_path)
