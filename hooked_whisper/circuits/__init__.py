"""Circuits: which edges between a model's parts carry what it says, found, chosen and judged.

score every edge           find_circuit -> EdgeScores
choose                     scores.top(n), scores.greedy(n), Circuit.random -> Circuit
run a circuit by itself    evaluate_circuits -> CircuitEvaluation; circuit_transcripts
over sizes, CPR and CMD    faithfulness_curve -> FaithfulnessCurve
"""

from hooked_whisper.circuits.circuit import Circuit
from hooked_whisper.circuits.curve import FaithfulnessCurve, faithfulness_curve
from hooked_whisper.circuits.evaluation import (
    CircuitEvaluation,
    circuit_transcripts,
    evaluate_circuits,
)
from hooked_whisper.circuits.find import find_circuit
from hooked_whisper.circuits.graph import Edge, EdgeGraph, Embedding
from hooked_whisper.circuits.scores import EdgeScores

__all__ = [
    "Circuit",
    "CircuitEvaluation",
    "Edge",
    "EdgeGraph",
    "EdgeScores",
    "Embedding",
    "FaithfulnessCurve",
    "circuit_transcripts",
    "evaluate_circuits",
    "faithfulness_curve",
    "find_circuit",
]
