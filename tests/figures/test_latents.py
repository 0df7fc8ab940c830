"""Latents over time: what is drawn is what was given, where it was."""

import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.figures import plot_latents


@pytest.mark.parametrize("with_peaks", [False, True])
def test_what_is_drawn(with_peaks: bool) -> None:
    latents = torch.rand(50, 3)
    peaks = torch.tensor([2.0, 1.0, 4.0])
    figure = plot_latents(
        latents,
        ["a: 1", "b: 2", "c: 3"],
        words=[("one", 0.2, 0.5), ("two", 0.6, 0.9)],
        peaks=peaks if with_peaks else None,
        title="A title",
    )
    axes, bar = figure.axes
    image = axes.images[0]
    want = latents.T / peaks[:, None] if with_peaks else latents.T
    torch.testing.assert_close(torch.tensor(image.get_array().data), want)
    assert image.get_extent() == [0, 1.0, 2.5, -0.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a: 1", "b: 2", "c: 3"]
    assert [text.get_text() for text in axes.texts] == ["one", "two"]
    assert bar.get_ylabel() == ("share of the latent's peak" if with_peaks else "activation")


def test_labels_that_do_not_match() -> None:
    with pytest.raises(InputError, match="2 labels for 3 latents over 50 positions"):
        plot_latents(torch.rand(50, 3), ["a", "b"])
