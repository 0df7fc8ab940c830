"""Each figure shows what it did when somebody last looked at it, and nothing of it is cut off.

Its lines, colours and words are compared with any version of matplotlib; its pixels with the
one that drew the golden image, as letters and all beside them move with the version.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from hooked_whisper import figures
from hooked_whisper.figures import style

from .cases import CASES
from .description import describe, differences

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


@functools.cache
def drawn(name: str) -> Any:
    """A case, to be looked at only."""
    return draw(CASES[name])


def cut_off(figure: Any) -> float:
    """By how many inches something of the figure reaches over its edge."""
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return float(max(-box.x0, -box.y0, box.x1 - width, box.y1 - height))


def golden(name: str) -> dict[str, Any]:
    """What a figure showed, and the version of matplotlib that drew it."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_figures_show_what_they_did(name: str, makes_golden: bool) -> None:
    figure = drawn(name)
    assert cut_off(figure) < 0.01
    shown = describe(figure)
    if makes_golden:
        text = json.dumps({"matplotlib": matplotlib.__version__, "shown": shown})
        (GOLDEN / f"{name}.json").write_text(text + "\n")
        Image.fromarray(pixels(figure)).save(GOLDEN / f"{name}.png", optimize=True)
    assert differences(shown, golden(name)["shown"]) == []


@pytest.mark.parametrize("name", CASES)
def test_golden_images(name: str, tmp_path: Path) -> None:
    if matplotlib.__version__ != (version := golden(name)["matplotlib"]):
        pytest.skip(f"drawn by matplotlib {version}; letters of others lie elsewhere")
    figure = drawn(name)
    found = difference(figure, name)
    if found > TOLERANCE:
        figure.savefig(tmp_path / f"{name}.png")
    assert found <= TOLERANCE, (
        f"{tmp_path / name}.png is {found:.1f} from {GOLDEN / name}.png. Look at both; if the new "
        "one is right, make it anew with: pytest tests/figures --golden"
    )


def test_every_figure_has_its_golden_image() -> None:
    assert set(CASES) == {name for name in figures.__all__ if name.startswith("plot_")}
    for ending in ("png", "json"):
        assert set(CASES) == {path.stem for path in GOLDEN.glob(f"*.{ending}")}
    assert max(path.stat().st_size for path in GOLDEN.iterdir()) < 40_000


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
    monkeypatch.setattr(style, attribute, other)
    assert differences(describe(draw(CASES[name])), golden(name)["shown"])


def test_a_moved_line_is_noticed() -> None:
    figure = draw(CASES["plot_by_layer"])
    line = figure.axes[0].lines[0]
    line.set_ydata(1.01 * np.asarray(line.get_ydata()))
    [found] = differences(describe(figure), golden("plot_by_layer")["shown"])[:1]
    assert found.startswith("figure, axes 0, lines 0, points")


def test_other_colors_of_cells_are_noticed() -> None:
    figure = draw(CASES["plot_sweep"])
    figure.axes[0].images[0].set_data(np.zeros((3, 4)))
    assert any(
        "rgba" in each for each in differences(describe(figure), golden("plot_sweep")["shown"])
    )


EXTREMES: dict[str, Callable[[], Any]] = {
    "448 tokens": lambda: figures.plot_cross_attention(
        torch.rand(80, 3000), torch.rand(448, 1500), [f" token {i}" for i in range(448)]
    ),
    "a lens of 448 tokens": lambda: figures.plot_logit_lens(
        torch.rand(33, 448), [["token"] * 448] * 33, ["site"] * 33, ["1\n token"] * 448
    ),
    "85 words": lambda: figures.plot_mel(
        torch.rand(80, 3000), words=[(f"word{i}", 0.35 * i, 0.35 * i + 0.3) for i in range(85)]
    ),
    "0.3 s, one token": lambda: figures.plot_cross_attention(
        torch.rand(80, 3000), torch.rand(1, 1500), ["x"], sound_s=0.3, spans_s=[("seven", 0, 0.3)]
    ),
    "1 head, 1 layer": lambda: figures.plot_entropy(torch.rand(1, 1), title="A title " * 30),
    "20 heads, 32 layers": lambda: figures.plot_entropy({"encoder": torch.rand(32, 20)}),
    "one number": lambda: figures.plot_head_scores(torch.rand(1, 1), label="entropy (nats)"),
    "nothing but NaN": lambda: figures.plot_patching(
        torch.full((1, 1), torch.nan), ["a"], ["b"], label="a long label of the colours of it all"
    ),
    "40 columns": lambda: figures.plot_patching(
        torch.rand(3, 40), ["a row " * 9] * 3, [f"column {i}" for i in range(40)], label="x"
    ),
    "one line of a log": lambda: figures.plot_training([{"n_vectors": 0, "l0": 3.0}]),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_nothing_is_cut_off_and_no_picture_is_huge(name: str) -> None:
    figure = draw(EXTREMES[name])
    assert cut_off(figure) < 0.02
    assert figure.get_size_inches().max() <= style.MOST_IN + 1  # and its title's lines
