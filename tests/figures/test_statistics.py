import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.figures.statistics import (
    plot_by_layer,
    plot_cosine_matrix,
    plot_head_scores,
    plot_histograms,
    plot_offsets,
)


def test_every_head_has_its_number_in_its_place() -> None:
    scores = torch.tensor([[0.0, 0.25, 0.5], [0.75, math.nan, 1.0]])
    axes = plot_head_scores(scores, label="score").axes[0]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {
        (0, 0): "0.00",
        (1, 0): "0.25",
        (2, 0): "0.50",
        (0, 1): "0.75",
        (2, 1): "1.00",
    }
    assert axes.images[0].origin == "lower"


def test_tables_side_by_side_share_their_colours() -> None:
    tables = {"encoder": torch.tensor([[1.0, 2.0]]), "decoder": torch.tensor([[3.0], [7.0]])}
    figure = plot_head_scores(tables, label="entropy (nats)", title="digits")
    first, second = figure.axes[:2]
    assert [axes.get_title("left") for axes in (first, second)] == ["encoder", "decoder"]
    assert first.images[0].get_clim() == second.images[0].get_clim() == (1, 7)
    assert figure.get_suptitle() == "digits"
    assert figure.axes[2].get_ylabel() == "entropy (nats)"


def test_the_range_of_colours_can_be_fixed_or_even_around_zero() -> None:
    scores = torch.tensor([[-0.2, 0.6]])
    fixed = plot_head_scores(scores, label="x", low=-1, high=1)
    assert fixed.axes[0].images[0].get_clim() == (-1, 1)
    even = plot_head_scores(scores, label="x", diverging=True).axes[0].images[0].get_clim()
    assert even == pytest.approx((-0.6, 0.6))


def test_small_negatives_are_not_written_as_minus_zero() -> None:
    (text,) = plot_head_scores(torch.tensor([[-0.001]]), label="x").axes[0].texts
    assert text.get_text() == "0.00"


def test_numbers_can_be_read_on_their_colour() -> None:
    texts = plot_head_scores(torch.tensor([[0.0, 1.0]]), label="x").axes[0].texts
    assert [text.get_color() for text in texts] == ["white", "black"]


def test_a_large_model_has_all_its_numbers() -> None:
    axes = plot_head_scores(torch.rand(32, 20), label="x").axes[0]
    assert len(axes.texts) == 640 and len(axes.get_yticks()) == 32


def test_lines_by_layer() -> None:
    figure = plot_by_layer(
        {
            "norm": {"encoder": torch.tensor([1.0, 2.0]), "decoder": torch.tensor([3.0, 4.0, 5.0])},
            "kurtosis": {"encoder": torch.tensor([0.0, 9.0])},
        },
        layers=["embed", "0", "1"],
    )
    norm, kurtosis = figure.axes
    assert [line.get_label() for line in norm.lines] == ["encoder", "decoder"]
    np.testing.assert_allclose(norm.lines[1].get_ydata(), [3, 4, 5])
    assert [label.get_text() for label in norm.get_xticklabels()] == ["embed", "0", "1"]
    assert norm.get_legend() is not None and kurtosis.get_legend() is None


@pytest.mark.parametrize(
    ("least", "limits"), [(0.2, (0, 1)), (-0.2, (-1, 1))], ids=["positive", "signed"]
)
def test_the_cosine_matrix(least: float, limits: tuple[int, int]) -> None:
    cosines = torch.tensor([[1.0, least], [least, 1.0]])
    axes = plot_cosine_matrix(cosines, ["embed", "block 0"]).axes[0]
    assert axes.images[0].get_clim() == limits
    assert {text.get_text() for text in axes.texts} == {"1.00", f"{least:.2f}"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["embed", "block 0"]


def test_histograms_are_densities() -> None:
    counts, edges = torch.tensor([1, 3]), torch.tensor([0.0, 2.0, 4.0])
    axes = plot_histograms({"layer 0": (counts, edges)}, label="value", log=False).axes[0]
    (steps,) = axes.patches
    np.testing.assert_allclose(steps.get_data().values, [0.125, 0.375])
    np.testing.assert_allclose(steps.get_data().edges, [0, 2, 4])
    assert plot_histograms({"a": (counts, edges)}).axes[0].get_yscale() == "log"


def test_distances_are_seconds_from_the_query() -> None:
    line = torch.tensor([0.1, 0.7, 0.2])
    axes = plot_offsets({"layer 0": line}, position_s=0.5).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[-0.5, 0.1], [0, 0.7], [0.5, 0.2]])
    assert axes.get_yscale() == "log"


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "no distances": (lambda: plot_offsets({}), "at least one line"),
    "no middle": (lambda: plot_offsets({"a": torch.ones(4)}), "an odd number of distances"),
    "no tables": (lambda: plot_head_scores({}, label="x"), "at least one table of scores"),
    "axes": (
        lambda: plot_head_scores({"a": torch.zeros(3)}, label="x"),
        r"the scores 'a' are \(3,\); pass \[layer, head\]",
    ),
    "no panels": (lambda: plot_by_layer({}), "at least one line for each panel"),
    "no lines": (lambda: plot_by_layer({"norm": {}}), "at least one line for each panel"),
    "layer names": (
        lambda: plot_by_layer({"norm": {"a": torch.zeros(3)}}, layers=["0"]),
        "1 names for 3 layers",
    ),
    "matrix": (lambda: plot_cosine_matrix(torch.zeros(2, 3)), r"the matrix is \(2, 3\)"),
    "matrix names": (lambda: plot_cosine_matrix(torch.eye(2), ["a"]), "1 layers are named"),
    "no histograms": (lambda: plot_histograms({}), "at least one histogram"),
    "edges": (
        lambda: plot_histograms({"a": (torch.ones(3), torch.ones(3))}),
        "'a' has 3 counts and 3 edges; edges are one more",
    ),
}


@pytest.mark.parametrize(("call", "match"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        call()
