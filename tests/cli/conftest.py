"""The command line in this process, on one shared model, in a folder of the test's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from click.testing import CliRunner, Result

from hooked_whisper import HookedWhisper
from hooked_whisper.cli import main
from hooked_whisper.digits import FOLDER

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Run:
    """`run("info", "--json")`: what the command line `hooked-whisper info --json` does."""
    return lambda *arguments: CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="session")
def clip() -> Path:
    """A short recording: "seven"."""
    return FOLDER / "george-7.flac"


@pytest.fixture(autouse=True)
def _shared_model(
    digits_model: HookedWhisper, monkeypatch: pytest.MonkeyPatch, blocks_run_once: None
) -> None:
    """Commands on the digits model get the shared one instead of loading their own."""
    load = HookedWhisper.from_pretrained

    def from_pretrained(source: Any, **options: Any) -> HookedWhisper:
        plain = str(options.get("dtype", "torch.float32")) == "torch.float32"
        if source == "digits" and plain and str(options.get("device") or "cpu") == "cpu":
            return digits_model
        return load(source, **options)

    monkeypatch.setattr(HookedWhisper, "from_pretrained", from_pretrained)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run them


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which default outputs go to."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
