"""Where each query looks is where it is drawn, in small files of any size; all heads in order."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.figures import plot_entropy, plot_pattern, plot_patterns

TOKENS = ["<|en|>", " three", " one"]


def shown(axes: Any) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def test_a_diagonal_one_position_wide_stays_a_line() -> None:
    axes = plot_pattern(torch.eye(1500)).axes[0]
    drawn = shown(axes)
    assert len(drawn) < 450 and (drawn.diagonal() == 1).all()
    assert (drawn == 1).mean() < 3 / len(drawn)  # a line still, not a band
    assert axes.images[0].get_extent() == [0, 30, 30, 0]


def test_what_comes_after_the_sound_is_left_out() -> None:
    pattern = torch.zeros(1500, 1500)
    pattern[100, 25] = 1  # from 2 s to 0.5 s
    axes = plot_pattern(pattern, sound_s=3).axes[0]
    assert axes.images[0].get_extent() == [0, 3, 3, 0]
    assert np.argwhere(shown(axes) == 1).tolist() == [[100, 25]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("looks at time (s)", "from time (s)")


def test_tokens_are_text_and_positions_are_counted() -> None:
    axes = plot_pattern(torch.rand(3, 3), query_labels=TOKENS, key_labels=TOKENS).axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["<|en|>", "three", "one"]
    assert axes.images[0].get_extent() == [-0.5, 2.5, 2.5, -0.5]
    counted = plot_pattern(torch.rand(3, 4), position_s=None).axes[0]
    assert counted.images[0].get_extent() == [0, 4, 3, 0]
    assert counted.get_xlabel() == "looks at position"


def test_every_head_has_its_name_and_its_own_range() -> None:
    patterns = torch.stack([torch.full((3, 4), 0.25), torch.eye(3, 4)])
    figure = plot_patterns(patterns, heads=["L0H3", "L1H0"], query_labels=TOKENS)
    first, second = figure.axes[:2]
    assert [each.get_title("left") for each in (first, second)] == ["L0H3: to 0.25", "L1H0: to 1"]
    assert first.images[0].get_clim() == (0, 0.25) and second.images[0].get_clim() == (0, 1)
    np.testing.assert_array_equal(shown(second), patterns[1])


@pytest.mark.parametrize(("n", "grid"), [(1, (1, 1)), (6, (2, 3)), (8, (2, 4)), (20, (4, 5))])
def test_grids_of_heads(n: int, grid: tuple[int, int]) -> None:
    figure = plot_patterns(torch.rand(n, 5, 5))
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == grid
    assert sum(axes.get_visible() and bool(axes.images) for axes in figure.axes) == n


def test_a_layer_of_1500_by_1500_makes_a_small_file() -> None:
    # Diagonals in noise, which no file can make small; the digits model's take a third of it.
    apart = (torch.arange(1500.0)[:, None] - torch.arange(1500)).abs()
    widths = torch.tensor([1, 3, 10, 30, 100, 300])[:, None, None]
    noisy = (torch.randn(1500, 1500) + 8 * torch.exp(-apart / widths)).softmax(dim=-1)
    file = io.BytesIO()
    plot_patterns(noisy).savefig(file, format="png")
    assert len(file.getvalue()) < 250_000


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "labels": (
        lambda: plot_pattern(torch.rand(2, 2), key_labels=["a"]),
        "1 key_labels for 2 positions",
    ),
    "empty": (lambda: plot_pattern(torch.rand(0, 2)), "the pattern has no query"),
    "time": (lambda: plot_pattern(torch.rand(2, 2), position_s=0), "position_s is 0; pass seconds"),
    "sound": (lambda: plot_pattern(torch.rand(2, 2), sound_s=-1), "sound_s is -1"),
    "heads": (lambda: plot_patterns(torch.rand(2, 2, 2), heads=["a"]), "1 names for 2 heads"),
    "no heads": (lambda: plot_patterns(torch.rand(0, 2, 2)), "at least one head"),
}


@pytest.mark.parametrize(("call", "match"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        call()


def test_all_24_heads_in_their_order_with_the_mean_of_each_layer() -> None:
    table = torch.arange(24.0).view(4, 6)
    table[1, 2] = math.nan
    figure = plot_entropy({"encoder": table, "decoder": torch.ones(2, 3)}, label="entropy (nats)")
    encoder, decoder = figure.axes
    values = encoder.lines[0].get_ydata()
    assert len(values) == 24 and values[15] == 15 and math.isnan(values[8])
    bars = [collection.get_segments()[0] for collection in encoder.collections]
    assert [bar[0][1] for bar in bars] == pytest.approx([2.5, 8.6, 14.5, 20.5])
    assert [bar[:, 0].tolist() for bar in bars][1] == [5.5, 11.5]
    assert [text.get_text() for text in encoder.texts] == [f"layer {i}" for i in range(4)]
    assert (encoder.get_ylabel(), decoder.get_ylabel()) == ("encoder", "decoder")
    assert encoder.lines[0].get_linestyle() != decoder.lines[0].get_linestyle()


def test_one_table_needs_no_name() -> None:
    assert plot_entropy(torch.rand(32, 20)).axes[0].get_xlim() == (-0.5, 639.5)


def test_what_is_no_table_is_refused(without_shape_checks: None) -> None:
    with pytest.raises(InputError, match="at least one table of entropies"):
        plot_entropy({})
    with pytest.raises(InputError, match=r"the entropies 'a' are \(3,\); pass \[layer, head\]"):
        plot_entropy({"a": torch.rand(3)})
