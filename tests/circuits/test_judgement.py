"""Faithful, complete, minimal: numbers that follow from runs of circuits, and from them alone."""

from typing import Any

import pytest
import torch

from hooked_whisper.circuits import Circuit, evaluate_circuits, find_circuit, judge_circuit
from hooked_whisper.errors import InterventionError

from .test_find import DIFFERENCE, QUIET


def test_a_judgement_is_made_of_runs(small_model: Any, pair: Any, short_pair: Any) -> None:
    pairs = [pair, short_pair]
    circuit = find_circuit(small_model, pairs, DIFFERENCE, "eap", **QUIET).greedy(60)
    options: dict[str, Any] = {"n_random": 3, "n_subsets": 2, "n_tried": 4, **QUIET}
    found = judge_circuit(small_model, circuit, pairs, DIFFERENCE, **options)
    less = [circuit.without([edge]) for edge in found.tried]
    by_hand = evaluate_circuits(
        small_model, [circuit, circuit.complement(), *less], pairs, DIFFERENCE, **QUIET
    ).faithfulness()
    assert found.faithfulness() == pytest.approx(float(by_hand[0]), abs=1e-5)
    assert found.rest() == pytest.approx(float(by_hand[1]), abs=1e-5)
    torch.testing.assert_close(found.minimality(), by_hand[0] - by_hand[2:], atol=1e-4, rtol=0)
    assert found.random().shape == (3,) and found.incompleteness().shape == (2,)
    low, high = found.interval()
    assert low <= found.faithfulness() + 1e-6 and found.faithfulness() - 1e-6 <= high
    losses = found.to_dataframe()["loss"].tolist()
    assert losses == sorted(losses, reverse=True)


def test_all_edges_leave_nothing(small_model: Any, pair: Any) -> None:
    full = Circuit.full(find_circuit(small_model, pair, DIFFERENCE, "eap", **QUIET).graph)
    options: dict[str, Any] = {"n_random": 0, "n_subsets": 2, "n_tried": 0, **QUIET}
    found = judge_circuit(small_model, full, pair, DIFFERENCE, **options)
    assert found.faithfulness() == pytest.approx(1, abs=1e-4)
    assert found.rest() == pytest.approx(0, abs=1e-4)
    assert found.incompleteness().tolist() == pytest.approx([0, 0], abs=1e-4)
    with pytest.raises(InterventionError, match="no edge is left in the circuit"):
        judge_circuit(small_model, full.complement(), pair, DIFFERENCE, **options)
