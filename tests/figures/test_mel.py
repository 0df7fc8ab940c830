"""The mel spectrogram, what lies on it and under it, and attention to it, all in seconds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.digits import recordings
from hooked_whisper.errors import InputError
from hooked_whisper.figures import plot_cross_attention, plot_mel

MEL = torch.rand(80, 3000)


def test_everything_is_in_step() -> None:
    line = torch.zeros(1500)
    line[50] = 1  # from 1.00 to 1.02 s
    figure = plot_mel(MEL, sound_s=3.2, overlay=line, activations={"a": line, "b": -line})
    above, below, beside = figure.axes
    assert above.get_xlim() == below.get_xlim() == beside.get_xlim() == (0, 3.2)
    assert above.images[0].get_extent()[:2] == [0, 3.2]
    for drawn in (below.lines[0], beside.lines[0]):
        x, y = (np.asarray(each) for each in drawn.get_data())
        assert x[y > 0].tolist() == [1.0] and x[np.flatnonzero(y > 0) + 1].tolist() == [1.02]
        assert drawn.get_drawstyle() == "steps-post"
    assert below.get_xlabel() == "time (s)" and beside.get_ylabel() == "attention"
    assert [text.get_text() for text in below.get_legend().get_texts()] == ["a", "b"]


def test_padding_is_left_out_or_shaded_and_labelled() -> None:
    assert plot_mel(MEL, sound_s=1.0).axes[0].get_xlim() == (0, 1)
    shown = plot_mel(MEL, sound_s=1.0, show_padding=True).axes[0]
    assert shown.get_xlim() == (0, 30) and [each.get_text() for each in shown.texts] == ["padding"]
    (patch,) = shown.patches
    assert patch.get_x() == 1.0 and patch.get_width() == 29.0 and patch.get_hatch()
    assert not plot_mel(MEL).axes[0].texts


def test_words_of_a_shipped_recording_are_written_above() -> None:
    recording = recordings()[0]
    axes = plot_mel(MEL, sound_s=recording.duration_s, words=recording.words).axes[0]
    assert [text.get_text() for text in axes.texts] == recording.text.split()


def test_frequencies_stand_at_their_bands() -> None:
    axes = plot_mel(MEL).axes[0]
    at = {label.get_text(): place for label, place in
          zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)}  # fmt: skip
    # Whisper's 80 filters: the 26th (index 26) is centred on 1,000 Hz, as librosa has them.
    assert at["1"] == pytest.approx(26.4, abs=0.5) and at["0.5"] == pytest.approx(12.9, abs=0.6)
    assert 0 < at["0.25"] < at["0.5"] < at["1"] < at["2"] < at["4"] < 80


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "short": (
        lambda: plot_mel(MEL, overlay=torch.rand(10)),
        r"'attention' is \(10,\); .* \[1500\]",
    ),
    "long": (lambda: plot_mel(MEL, activations={"x": torch.rand(3000)}), r"'x' is \(3000,\)"),
    "no sound": (lambda: plot_mel(MEL, sound_s=0), "sound_s is 0; pass the seconds"),
    "nan": (lambda: plot_mel(MEL, sound_s=float("nan")), "sound_s is nan"),
    "words": (lambda: plot_mel(MEL, words=["one"]), "'one' is no word with its times"),
}


@pytest.mark.parametrize(("call", "match"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        call()


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
