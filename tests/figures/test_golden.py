"""Each figure looks as it did when somebody last looked at it, and nothing of it is cut off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from hooked_whisper import figures
from hooked_whisper.figures import look

from .cases import CASES

GOLDEN = Path(__file__).parent / "golden"
DPI = 45
TOLERANCE = 4.0
"""Root mean square of the difference, of 255. Another look of one line gives over 5."""


def pixels(figure: Any) -> Any:
    return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def difference(figure: Any, name: str) -> float:
    """How far a figure is from its golden image; infinite where their sizes differ."""
    mine = pixels(figure).astype(float)
    golden = np.asarray(Image.open(GOLDEN / f"{name}.png").convert("RGB")).astype(float)
    if mine.shape != golden.shape:
        return float("inf")
    return float(np.sqrt(np.square(mine - golden).mean()))


def draw(make: Callable[[], Any], dpi: int = DPI) -> Any:
    figure = make()
    figure.set_dpi(dpi)
    FigureCanvasAgg(figure).draw()
    return figure


def cut_off(figure: Any) -> float:
    """By how many inches something of the figure reaches over its edge."""
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return float(max(-box.x0, -box.y0, box.x1 - width, box.y1 - height))


@pytest.mark.parametrize("name", CASES)
def test_golden_images(name: str, makes_golden: bool, tmp_path: Path) -> None:
    figure = draw(CASES[name])
    assert cut_off(figure) < 0.01
    if makes_golden:
        Image.fromarray(pixels(figure)).save(GOLDEN / f"{name}.png", optimize=True)
        return
    found = difference(figure, name)
    figure.savefig(tmp_path / f"{name}.png")
    assert found <= TOLERANCE, (
        f"{tmp_path / name}.png is {found:.1f} from {GOLDEN / name}.png. Look at both; if the new "
        "one is right, make it anew with: pytest tests/figures --golden"
    )


def test_every_figure_has_its_golden_image() -> None:
    assert set(CASES) == set(figures.__all__) == {path.stem for path in GOLDEN.glob("*.png")}
    assert max(path.stat().st_size for path in GOLDEN.glob("*.png")) < 40_000


@pytest.mark.parametrize(
    ("name", "attribute", "other"),
    [
        ("plot_patching", "COLORS", "viridis"),
        ("plot_by_layer", "DASHES", (":", "-", "--", "-.")),
        ("plot_by_layer", "LINES", ("#00457c", "#009e73") * 4),
        ("plot_attribution", "SMALL", 10.0),
    ],
)
def test_another_look_is_noticed(
    name: str, attribute: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, attribute, other)
    assert difference(draw(CASES[name]), name) > TOLERANCE
