"""The look of all figures: greyscale, colour blindness, sizes, titles, and nothing global."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hooked_whisper.figures import plot_head_scores, plot_patching, style

from .cases import CASES


def luminance(colors: np.ndarray) -> np.ndarray:
    """Relative luminance (WCAG 2) of sRGB colours."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


# How red-blind and green-blind people see sRGB, linear: Machado, Oliveira and Fernandes 2009.
COLOR_BLIND = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def test_more_is_lighter_without_a_break() -> None:
    shades = luminance(style.color_map()(np.linspace(0, 1, style.N_SHADES))[:, :3])
    assert (np.diff(shades) > 0).all() and shades[-1] - shades[0] > 0.7


def test_around_zero_it_is_white_and_both_sides_darken() -> None:
    map_ = style.color_map(diverging=True)
    shades = luminance(map_(np.linspace(0, 1, map_.N))[:, :3])
    middle = map_.N // 2
    assert shades[middle] == shades.max() > 0.9
    assert (np.diff(shades[: middle + 1]) > 0).all() and (np.diff(shades[middle:]) < 0).all()


@pytest.mark.parametrize("eyes", COLOR_BLIND)
def test_both_sides_of_zero_differ_for_the_color_blind(eyes: str) -> None:
    map_ = style.color_map(diverging=True)
    seen = [np.clip(np.array(COLOR_BLIND[eyes]) @ map_(place)[:3], 0, 1) for place in (0.1, 0.9)]
    assert np.abs(seen[0] - seen[1]).max() > 0.25


def test_lines_differ_without_their_colour() -> None:
    styles = [style.line_style(i) for i in range(32)]
    assert len({(each["linestyle"], each["marker"]) for each in styles}) == 32
    assert len({(each["color"], each["linestyle"]) for each in styles}) == 32
    for one, two in itertools.pairwise(styles):
        assert one["linestyle"] != two["linestyle"] or one["marker"] != two["marker"]


def test_no_number_is_hatched_grey() -> None:
    values = torch.tensor([[0.5, math.nan], [1.0, 0.0]])
    for figure in (plot_patching(values, ["a", "b"], ["c", "d"], label="x"),
                   plot_head_scores(values, label="x")):  # fmt: skip
        figure.set_dpi(60)
        FigureCanvasAgg(figure).draw()
        axes = figure.axes[0]
        x, y = (round(each) for each in axes.transData.transform((1, 0)))
        height = figure.canvas.get_width_height()[1]
        around = np.asarray(figure.canvas.buffer_rgba())[
            height - y - 4 : height - y + 4, x - 4 : x + 4
        ]
        red, green, blue = (around[..., i] for i in range(3))
        assert (red == green).all() and (green == blue).all()  # grey
        assert red.min() > 190 and np.ptp(red) > 10  # light, and hatched
        assert len(axes.texts) == 3


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_numbers_can_be_read_on_every_colour(value: float) -> None:
    image = (
        plot_patching(torch.tensor([[0.0, 1.0]]), ["a"], ["b", "c"], label="x").axes[0].images[0]
    )
    paper = float(luminance(np.array(image.cmap(image.norm(value))[:3])))
    ink = {"black": 0.0, "white": 1.0}[style.ink_on(image, value)]
    light, dark = max(paper, ink), min(paper, ink)
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # what WCAG asks of small letters


def test_long_titles_are_wrapped_and_formulas_are_not_made() -> None:
    title = "Where all heads of layer 3 look, costs $5 or $6: " + "verylongword" * 12
    figure = plot_head_scores(torch.rand(1, 2), label="x", title=title)
    FigureCanvasAgg(figure).draw()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    shown = figure.get_suptitle()
    assert shown.count("\n") >= 3 and shown.replace("\n", "").count(r"\$") == 2


@pytest.mark.parametrize("text", ["three one four", "<|startoftranscript|>", "W i l M"])
def test_texts_are_as_wide_as_is_told(text: str) -> None:
    figure = style.new_figure(4.0, 2.0)
    FigureCanvasAgg(figure)
    drawn = figure.text(0, 0, text, fontsize=10, family="DejaVu Sans").get_window_extent().width
    assert style.width_in(text, 10) == pytest.approx(drawn / style.DPI, rel=0.06)


def test_settings_of_the_user_neither_matter_nor_change() -> None:
    import matplotlib

    def draw() -> bytes:
        figure = CASES["plot_by_layer"]()
        figure.set_dpi(40)
        FigureCanvasAgg(figure).draw()
        return bytes(figure.canvas.buffer_rgba())

    plain = draw()
    user = {"font.size": 20, "axes.facecolor": "black", "lines.linewidth": 5, "xtick.labelsize": 3}
    with matplotlib.rc_context(user):
        before = dict(matplotlib.rcParams)
        assert draw() == plain
        assert dict(matplotlib.rcParams) == before


def test_nothing_uses_pyplot_which_is_global() -> None:
    for path in Path(style.__file__).parent.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert "pyplot" not in source and "rcParams[" not in source, path.name
