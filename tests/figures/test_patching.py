import numpy as np
import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.figures import plot_patching


def test_every_number_stands_in_its_cell() -> None:
    effect = torch.tensor([[0.0, 0.25], [0.5, 1.0], [0.75, 0.1]])
    figure = plot_patching(effect, ["0", "1", "2"], ["a", "b"], label="probability")
    axes = figure.axes[0]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written[1, 0] == "0.25" and written[0, 2] == "0.75" and len(written) == 6
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), effect.numpy())
    assert axes.images[0].origin == "lower"


def test_the_range_of_colours_can_be_fixed() -> None:
    figure = plot_patching(torch.rand(1, 1), ["0"], ["a"], label="x", low=0.0, high=2.0)
    assert figure.axes[0].images[0].get_clim() == (0, 2)


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 rows and 1 columns are named; the table is \(1, 1\)"):
        plot_patching(torch.rand(1, 1), ["0", "1"], ["a"], label="x")
