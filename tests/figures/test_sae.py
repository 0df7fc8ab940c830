"""Latents over time, densities and training curves: what is drawn is what was given."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.figures import plot_density, plot_latents, plot_training
from hooked_whisper.sae import TopKConfig, TrainingConfig, train_sae


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


def test_density_counts_latents_and_names_the_dead() -> None:
    density = torch.tensor([0.0, 0.0, 0.001, 0.01, 0.01, 0.2, 1.0])
    axes = plot_density({"k = 8": density}).axes[0]
    counts, edges, _ = axes.patches[0].get_data()
    assert counts.sum() == 5 and axes.get_xscale() == "log"
    place = np.searchsorted(edges, 0.0101) - 1
    assert counts[place - 1 : place + 2].sum() == 2
    (label,) = axes.figure.legends[0].get_texts()
    assert label.get_text() == "k = 8: 2 of 7 dead, median 1 %"


def test_the_log_of_a_real_training_is_drawn() -> None:
    log: list[dict[str, Any]] = []
    cfg = TrainingConfig(sae=TopKConfig(d_in=8, d_sae=16, k=2), n_vectors=256, batch_size=32,
                         log_every=2)  # fmt: skip
    train_sae(cfg, [torch.randn(32, 8) for _ in range(8)], progress=False, on_log=log.append)
    figure = plot_training(log)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[:3] == ["loss", "fraction of variance unexplained", "latents active (L0)"]
    x, y = figure.axes[1].lines[0].get_data()
    assert list(x) == [line["n_vectors"] for line in log] and len(log) > 2
    assert list(y) == [line["fvu"] for line in log]


def test_autoencoders_of_one_log_are_told_apart() -> None:
    log = [{"sae": name, "n_vectors": n, "loss": 1.0, "l0": 2.0, "fvu": None}
           for n in (1, 2) for name in ("a", "b")]  # fmt: skip
    figure = plot_training({"run": log})
    assert [axes.get_title("left") for axes in figure.axes] == ["loss", "latents active (L0)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["run a", "run b"]
    looks = {(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 2


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "no density": (lambda: plot_density({}), "at least one autoencoder"),
    "shares": (lambda: plot_density(torch.tensor([0.1, 2.0])), "go from 0.1 to 2; they are shares"),
    "nan": (lambda: plot_density({"a": torch.tensor([math.nan])}), "'a' go from nan"),
    "no log": (lambda: plot_training([]), "no line with a number"),
    "line": (lambda: plot_training([{"loss": 1}]), "no line of a training's log: .*'n_vectors'"),
}


@pytest.mark.parametrize(("call", "match"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        call()
