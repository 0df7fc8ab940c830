import numpy as np
import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.figures import plot_cross_attention


@pytest.fixture
def mel() -> torch.Tensor:
    return torch.rand(80, 3000)


def test_mel_and_attention_share_a_time_axis_in_seconds(mel: torch.Tensor) -> None:
    pattern = torch.zeros(2, 1500)
    pattern[0, 50], pattern[1, 100] = 1, 1  # at 1 s and at 2 s
    figure = plot_cross_attention(mel, pattern, [" one", " two"], sound_s=3.0)
    above, below, *_ = figure.axes
    assert above.get_xlim() == below.get_xlim() == (0, 3)
    for row, second in enumerate((1.0, 2.0)):
        shown = np.asarray(below.images[0].get_array())[row]
        assert shown.argmax() * 3 / len(shown) == pytest.approx(second, abs=0.02)
    assert [label.get_text() for label in below.get_yticklabels()] == ["one", "two"]


def test_the_whole_window_is_shown_where_no_length_is_given(mel: torch.Tensor) -> None:
    figure = plot_cross_attention(mel, torch.rand(1, 1500), ["x"])
    assert figure.axes[0].get_xlim() == (0, 30)
    image = figure.axes[0].images[0]
    n_bands, n_columns = np.asarray(image.get_array()).shape
    assert n_bands == 80 and n_columns <= 1500 and image.get_extent()[:2] == [0, 30]


def test_spoken_words_are_written_over_their_time(mel: torch.Tensor) -> None:
    figure = plot_cross_attention(mel, torch.rand(1, 1500), ["x"], spans_s=[(1.0, 2.0, "seven")])
    (text,) = figure.axes[0].texts
    assert (text.get_text(), text.xy[0]) == ("seven", 1.5)
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [1.0, 2.0]


def test_labels_that_do_not_match_are_refused(mel: torch.Tensor) -> None:
    with pytest.raises(InputError, match="1 labels for 2 queries"):
        plot_cross_attention(mel, torch.rand(2, 1500), ["x"])
