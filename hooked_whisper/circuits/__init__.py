"""Circuits: which edges between a model's parts carry what it says, found, chosen and judged.

score every edge           find_circuit -> EdgeScores
with latents as nodes      find_latent_circuit -> EdgeScores of a LatentGraph
choose                     scores.top(n), scores.greedy(n), Circuit.random -> Circuit
run a circuit by itself    evaluate_circuits -> CircuitEvaluation; circuit_transcripts
over sizes, CPR and CMD    faithfulness_curve -> FaithfulnessCurve
complete and minimal?      judge_circuit -> CircuitJudgement
by the seconds read        edge_times -> EdgeTimes
what to compare with       word_pair -> WordPair, reference_means
look at it                 draw_circuit; reports.circuit_page; save_attribution_graph
"""

from hooked_whisper.arguments import explain_arguments
from hooked_whisper.circuits.carried import carried_seconds
from hooked_whisper.circuits.circuit import Circuit
from hooked_whisper.circuits.curve import FaithfulnessCurve, faithfulness_curve
from hooked_whisper.circuits.drawing import draw_circuit
from hooked_whisper.circuits.evaluation import (
    CircuitEvaluation,
    circuit_transcripts,
    evaluate_circuits,
)
from hooked_whisper.circuits.find import find_circuit
from hooked_whisper.circuits.graph import Edge, EdgeGraph, Embedding, Latent, ReadSite
from hooked_whisper.circuits.graph_json import attribution_graph, save_attribution_graph
from hooked_whisper.circuits.judgement import CircuitJudgement, judge_circuit
from hooked_whisper.circuits.latent_find import find_latent_circuit
from hooked_whisper.circuits.latents import LatentGraph
from hooked_whisper.circuits.pairs import WordPair, reference_means, word_pair
from hooked_whisper.circuits.scores import EdgeScores
from hooked_whisper.circuits.times import EdgeTimes, edge_times

__all__ = [
    "Circuit",
    "CircuitEvaluation",
    "CircuitJudgement",
    "Edge",
    "EdgeGraph",
    "EdgeScores",
    "EdgeTimes",
    "Embedding",
    "FaithfulnessCurve",
    "Latent",
    "LatentGraph",
    "ReadSite",
    "WordPair",
    "attribution_graph",
    "carried_seconds",
    "circuit_transcripts",
    "draw_circuit",
    "edge_times",
    "evaluate_circuits",
    "faithfulness_curve",
    "find_circuit",
    "find_latent_circuit",
    "judge_circuit",
    "reference_means",
    "save_attribution_graph",
    "word_pair",
]

explain_arguments(globals())
