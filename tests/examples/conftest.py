"""Runs an example as `python examples/NAME.py ...` does, without the seconds of a new process."""

import io
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from ..blocks import run_blocks_once

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Ran:
    """What an example left: what it printed, and its pictures' folder."""

    printed: str
    folder: Path

    def picture(self, name: str) -> Any:
        """The size `(height, width)` of a picture, after checking that something is drawn on it."""
        from matplotlib.image import imread

        pixels = imread(self.folder / name)[..., :3]
        assert pixels.std() > 0.05, f"{name} is all but blank"
        drawn = (abs(pixels - pixels[0, 0]) > 0.1).any(axis=-1)
        rows, columns = drawn.any(axis=1).nonzero()[0], drawn.any(axis=0).nonzero()[0]
        height, width = drawn.shape
        # Something right to the edges of the sheet has been cut off there.
        assert 0 < rows[0] and rows[-1] < height - 1, f"{name} is cut off above or below"
        assert 0 < columns[0] and columns[-1] < width - 1, f"{name} is cut off at a side"
        return height, width


@pytest.fixture(scope="session")
def run_example(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    """`run_example(name, *arguments, out="--out")`; {out} before the folder for the pictures."""

    def run(name: str, *arguments: str, out: str | None = "--out") -> Ran:
        folder = tmp_path_factory.mktemp(name) / "pictures"
        argv = [name, *arguments, *([out] if out else []), str(folder)]
        printed = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            torch.set_grad_enabled(True),  # what an example sets for its own process ends here
            redirect_stdout(printed),
        ):
            patch.setattr(sys, "argv", argv)
            patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
            run_blocks_once(patch)
            patch.syspath_prepend(str(EXAMPLES))  # where a script finds its neighbours
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return Ran(printed.getvalue(), folder)

    return run
