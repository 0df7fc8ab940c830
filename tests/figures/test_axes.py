"""What stands along the axes: words with times, names, padding."""

from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hooked_whisper.errors import InputError
from hooked_whisper.figures import style
from hooked_whisper.figures.axes import mark_words, name_x, name_y, read_words


@pytest.fixture
def axes() -> Any:
    figure = style.new_figure(5.0, 2.0)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlim(0, 2)
    return axes


def test_words_are_read_in_every_form() -> None:
    forms = [("one", 0.5, 1), (0.5, 1, "one"), SimpleNamespace(word="one", start_s=0.5, end_s=1)]
    assert read_words(forms) == [("one", 0.5, 1.0)] * 3


@pytest.mark.parametrize("word", [("one",), ("one", "two", "three"), (1, 2, 3), "abc"])
def test_what_is_no_word_is_refused(word: Any) -> None:
    with pytest.raises(InputError, match=r"no word with its times; pass \(word, start, end\)"):
        read_words([word])


@pytest.mark.parametrize(("n", "turned"), [(3, 0), (12, 0), (40, 90)])
def test_names_of_words_never_overlap(axes: Any, n: int, turned: int) -> None:
    mark_words(axes, [(f"word{i}", 2 * i / n, 2 * (i + 1) / n) for i in range(n)], 4.5, 2.0)
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == n and {text.get_rotation() for text in axes.texts} == {turned}
    for i, one in enumerate(boxes):
        for two in boxes[i + 1 :]:
            across = min(one.x1, two.x1) - max(one.x0, two.x0)
            up = min(one.y1, two.y1) - max(one.y0, two.y0)
            assert across < 2 or up < 2, "two names overlap"


def test_words_after_the_end_are_left_out(axes: Any) -> None:
    mark_words(axes, [("in", 1, 1.5), ("out", 2.5, 3)], 4.5, 2.0)
    assert [text.get_text() for text in axes.texts] == ["in"]
    assert [line.get_xdata()[0] for line in axes.lines] == [1.0, 1.5]


@pytest.mark.parametrize(
    ("names", "shown", "turned"),
    [
        (["a", "b", "c"], ["a", "b", "c"], 0),
        ([f"token{i}" for i in range(20)], [f"token{i}" for i in range(20)], 90),
        ([str(i) for i in range(100)], [str(i) for i in range(0, 100, 10)], 0),
        ([f"token{i}" for i in range(448)], [f"token{i}" for i in range(0, 448, 20)], 90),
    ],
    ids=["few", "upright", "numbers", "many"],
)
def test_names_along_the_bottom(axes: Any, names: list[str], shown: list[str], turned: int) -> None:
    assert name_x(axes, names, 4.0) == turned
    assert [label.get_text() for label in axes.get_xticklabels()] == shown


def test_names_along_the_side(axes: Any) -> None:
    name_y(axes, [f"$ {i}" for i in range(30)], 1.5)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        rf"\$ {i}" for i in range(0, 30, 5)
    ]
