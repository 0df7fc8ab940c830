"""Exact scores are the plain loop's on openai-whisper; estimates go to them as steps get small."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.circuits import EdgeGraph, EdgeScores, find_circuit
from hooked_whisper.errors import AlignmentError, InterventionError, MetricError, SweepError
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics import LogitDifference, WordErrorRate
from hooked_whisper.speech.mel import Mel

from .conftest import difference, example_of
from .plain import contributions, patched_logits, plain_scores

DIFFERENCE = LogitDifference(right=3, wrong=5, pos=-2)
ESTIMATES = ["eap", "eap-ig-inputs", "eap-ig-activations"]
QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def exact(small_model: Any, pair: Any) -> EdgeScores:
    return find_circuit(small_model, pair, DIFFERENCE, **QUIET)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_exact_is_the_plain_loop(
    small_model: Any, make_reference: Any, pair: Any, short_pair: Any, direction: Any
) -> None:
    whisper = make_reference(small_model)
    pairs = [pair, short_pair] if direction == "noising" else [short_pair]
    found = find_circuit(small_model, pairs, difference, direction=direction, **QUIET)
    for number, (clean, corrupted) in enumerate(pairs):
        base, source = (clean, corrupted) if direction == "noising" else (corrupted, clean)
        plain = plain_scores(whisper, base, source, list(found.edges), difference)
        torch.testing.assert_close(found.values[number], plain, atol=1e-5, rtol=0)
        moved = (plain - float(found._base()[number])).abs() > 1e-4
        assert moved.float().mean() > 0.5  # something was patched at all


@pytest.mark.parametrize("max_bytes", [1, 200_000])
def test_memory_does_not_change_the_numbers(
    small_model: Any, pair: Any, exact: EdgeScores, max_bytes: int
) -> None:
    few = find_circuit(small_model, pair, DIFFERENCE, max_bytes=max_bytes, **QUIET)
    torch.testing.assert_close(few.values, exact.values, atol=1e-5, rtol=0)
    few, many = (
        find_circuit(small_model, pair, DIFFERENCE, "eap", max_bytes=n, **QUIET)
        for n in (max_bytes, 2**28)
    )
    torch.testing.assert_close(few.values, many.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ESTIMATES)
def test_estimates_are_exact_for_small_changes(small_model: Any, pair: Any, method: Any) -> None:
    clean = pair[0]
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(clean.mel.values.shape, generator=generator)
    near = Example(Mel(clean.mel.values + 3e-2 * noise, clean.mel.n_frames), clean.tokens)
    exact = find_circuit(small_model, (clean, near), DIFFERENCE, **QUIET)
    found = find_circuit(small_model, (clean, near), DIFFERENCE, method, **QUIET)
    changes = torch.stack([each.values[0] - exact.clean for each in (exact, found)])
    assert torch.corrcoef(changes)[0, 1] > 0.99
    slope = (changes[0] * changes[1]).sum() / changes[0].square().sum()
    assert abs(slope - 1) < 0.1


def test_the_gradients_are_those_of_the_plain_loop(
    small_model: Any, make_reference: Any, pair: Any
) -> None:
    """EAP of each edge is the slope of the metric as the change is put in bit by bit."""
    whisper, (clean, corrupted) = make_reference(small_model), pair
    ours, theirs = contributions(whisper, clean), contributions(whisper, corrupted)
    found = find_circuit(small_model, pair, DIFFERENCE, "eap", **QUIET)
    for number in range(0, len(found.edges), 7):
        edge, share = found.edges[number], torch.tensor(0.0, requires_grad=True)
        change = theirs[edge.sender] - ours[edge.sender]
        value = difference(patched_logits(whisper, clean, edge, share * change))
        slope = float(torch.autograd.grad(value.sum(), share)[0])
        estimate = float(found.values[0, number] - found.clean[0])
        assert estimate == pytest.approx(slope, abs=1e-5, rel=1e-3), str(edge)


def test_saved_scores_are_read_back_and_gone_on_with(
    small_model: Any, pair: Any, exact: EdgeScores, tmp_path: Path
) -> None:
    path = tmp_path / "edges.safetensors"
    exact.save(path)
    loaded = EdgeScores.load(path)
    assert torch.equal(loaded.values, exact.values) and loaded.graph == exact.graph
    assert loaded.method == "exact" and loaded.edges == exact.edges
    loaded.values[0, 100:] = torch.nan
    again = find_circuit(small_model, pair, DIFFERENCE, resume=loaded, **QUIET)
    torch.testing.assert_close(again.values, exact.values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["exact", "eap-ig-activations"])
def test_what_was_done_is_kept_and_gone_on_with(
    small_model: Any, pair: Any, method: Any, tmp_path: Path
) -> None:
    path = tmp_path / "edges.safetensors"

    class Stop:
        left = 8

        def __call__(self, logits: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return difference(logits)

    stop = Stop()
    options: dict[str, Any] = {"max_bytes": 1, "save_to": path, **QUIET}
    partial = find_circuit(small_model, pair, stop, method, **options)
    assert 0 < partial.n_done < partial.n_cells
    stop.left = 10**6
    whole = find_circuit(small_model, pair, stop, method, **options)
    assert whole.complete
    fresh = find_circuit(small_model, pair, difference, method, **QUIET)
    torch.testing.assert_close(whole.values, fresh.values, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("without_shape_checks")
class TestRefuses:
    def test_unequal_lengths(self, small_model: Any, pair: Any) -> None:
        longer = example_of(small_model, 9, n_pos=8)
        with pytest.raises(AlignmentError, match=r"pair 1: the clean run has 7 tokens.*8"):
            find_circuit(small_model, [pair, (pair[0], longer)], DIFFERENCE, **QUIET)

    def test_a_metric_that_does_not_differ(self, small_model: Any, pair: Any) -> None:
        with pytest.raises(MetricError, match="in both runs of pair 0, so that no edge"):
            find_circuit(small_model, (pair[0], pair[0]), DIFFERENCE, **QUIET)

    def test_a_metric_without_gradients(self, small_model: Any, pair: Any) -> None:
        def rank(logits: Any) -> Any:
            return logits[:, -1].detach()[:, 3]

        with pytest.raises(MetricError, match=r'has no gradient.*method="exact"'):
            find_circuit(small_model, pair, rank, "eap", **QUIET)

    def test_a_metric_of_transcripts(self, small_model: Any, pair: Any) -> None:
        with pytest.raises(MetricError, match="judges a text, and edges are scored by logits"):
            find_circuit(small_model, pair, WordErrorRate("one"), **QUIET)

    def test_a_model_with_hooks(self, small_model: Any, pair: Any) -> None:
        hooks = [("decoder.hook_logits", lambda value, hook: None)]
        with (
            small_model.hooks(fwd_hooks=hooks),
            pytest.raises(InterventionError, match=r"the model has hooks.*reset_hooks"),
        ):
            find_circuit(small_model, pair, DIFFERENCE, **QUIET)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"method": "acdc"}, "method is 'acdc'; it can be 'exact'"),
            ({"direction": "up"}, "direction is 'up'"),
            ({"n_steps": 0}, "n_steps is 0; it must be an integer of at least 1"),
            ({"max_bytes": 0}, "max_bytes is 0"),
            ({"pairs": []}, "pass pairs of a clean and a corrupted Example"),
            ({"pairs": [1]}, "pair 0 is 1; each is a clean and a corrupted Example"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_arguments(self, small_model: Any, pair: Any, change: Any, message: str) -> None:
        options = {"pairs": pair, "metric": DIFFERENCE, **QUIET, **change}
        with pytest.raises(InterventionError, match=message):
            find_circuit(small_model, **options)


def test_an_error_on_the_way_holds_what_was_done(small_model: Any, pair: Any) -> None:
    calls = iter(range(1000))

    def metric(logits: Any) -> Any:
        if next(calls) > 8:
            raise ValueError("enough")
        return difference(logits)

    with pytest.raises(SweepError, match="edges: ValueError: enough") as caught:
        find_circuit(small_model, pair, metric, max_bytes=1, **QUIET)
    assert caught.value.result.n_done > 0
    assert caught.value.result.graph == EdgeGraph.of(small_model.cfg)
