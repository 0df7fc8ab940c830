"""A word is corrupted at its own time only; means are what nodes write on average."""

from typing import Any

import pytest
import torch

from hooked_whisper.circuits import (
    Circuit,
    EdgeGraph,
    evaluate_circuits,
    find_circuit,
    reference_means,
    word_pair,
)
from hooked_whisper.digits import recordings
from hooked_whisper.errors import InputError, InterventionError, MetricError
from hooked_whisper.interventions import Example

from .conftest import example_of
from .test_find import DIFFERENCE, QUIET


@pytest.fixture(scope="module")
def spoken(digits_model: Any) -> Example:
    said = recordings()[0]
    return Example.from_audio(digits_model, said.path, f" {said.text}")


@pytest.mark.parametrize(
    "corruption",
    [
        "silence",
        "swap",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("noise", "another")),
    ],
)
def test_one_word_at_its_own_time(digits_model: Any, spoken: Example, corruption: Any) -> None:
    word = recordings()[0].words[1]
    options = {"swap_with": recordings()[0].words[0].word} if corruption == "swap" else {}
    other = Example.from_audio(digits_model, recordings()[1].path, " one")
    found = word_pair(
        digits_model, spoken, word.word, other if corruption == "another" else corruption, **options
    )
    # The model's own alignment, beside the known times.
    assert abs(sum(found.window_s) / 2 - (word.start_s + word.end_s) / 2) < 0.35
    changed = (found.clean.mel.values != found.corrupted.mel.values).any(dim=1)[0].nonzero()
    outside = [frame for frame in changed.flatten().tolist() if not in_window(frame, found)]
    assert len(changed) > 10 and (outside == [] or corruption == "swap")
    with torch.no_grad():
        clean, corrupted = (
            float(found.metric(digits_model(run.mel, run.tokens))) for run in found.pair
        )
    assert clean > corrupted and corrupted <= 0
    assert found.clean.n_pos == found.corrupted.n_pos == digits_model.to_tokens("").shape[1] + 1


def in_window(frame: int, found: Any) -> bool:
    start_s, end_s = found.window_s
    return round(100 * start_s) <= frame < round(100 * end_s)


def test_refuses(digits_model: Any, spoken: Example) -> None:
    with pytest.raises(InputError, match="the clean text has no word 'seventeen'"):
        word_pair(digits_model, spoken, "seventeen")
    word = recordings()[0].words[1].word
    with pytest.raises(InterventionError, match="name the other word"):
        word_pair(digits_model, spoken, word, "swap")
    with pytest.raises(MetricError, match="is predicted where it is corrupted too"):
        word_pair(digits_model, spoken, word, spoken)


@pytest.mark.usefixtures("without_shape_checks")
def test_refuses_another_corruption(digits_model: Any, spoken: Example) -> None:
    with pytest.raises(InterventionError, match="corruption is 'hum'; it can be"):
        word_pair(digits_model, spoken, recordings()[0].words[1].word, "hum")


def test_means_of_one_run_are_that_run(small_model: Any, pair: Any) -> None:
    clean, corrupted = pair
    means = reference_means(small_model, [corrupted], **QUIET)
    with_means, with_run = (
        find_circuit(small_model, (clean, each), DIFFERENCE, **QUIET) for each in (means, corrupted)
    )
    torch.testing.assert_close(with_means.values, with_run.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(with_means.corrupted, with_run.corrupted, atol=1e-5, rtol=0)


def test_means_of_several_runs(small_model: Any, pair: Any, short_pair: Any) -> None:
    others = [example_of(small_model, seed) for seed in (20, 21, 22)]
    means = reference_means(small_model, others, **QUIET)
    pairs = [(pair[0], means), (short_pair[0], means)]
    found = find_circuit(small_model, pairs, DIFFERENCE, "eap-ig-inputs", **QUIET)
    full = Circuit.full(EdgeGraph.of(small_model.cfg))
    circuits = [full, full.complement()]
    judged = evaluate_circuits(small_model, circuits, pairs, DIFFERENCE, **QUIET)
    torch.testing.assert_close(judged.values[:, 0], found.clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(judged.values[:, 1], found.corrupted, atol=1e-5, rtol=0)
    with pytest.raises(InterventionError, match='pass direction="noising"'):
        find_circuit(small_model, pairs, DIFFERENCE, direction="denoising", **QUIET)
