"""What people get from `pip install`: the wheel, built from what git tracks."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

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


def test_it_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Installed alone in a folder in front of the environment: no file of the clone helps it."""
    installed = tmp_path / "installed"
    options = ["--quiet", "--no-deps", "--target", str(installed)]
    _run(sys.executable, "-m", "pip", "install", *options, str(wheel), cwd=tmp_path)
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    code = (
        "import hooked_whisper as h\n"
        "print(h.__file__, h.HookedWhisper.from_pretrained('digits').cfg.d_model)"
    )
    file, d_model = _run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=path).split()
    assert Path(file).is_relative_to(installed)
    assert int(d_model) == 96
