"""Whether a circuit is all there is to it, and whether all of it is needed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.circuit import Circuit
from hooked_whisper.circuits.evaluation import CircuitEvaluation, bootstrap, evaluate_circuits
from hooked_whisper.circuits.graph import Edge
from hooked_whisper.errors import InterventionError, check_count
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.saved import FilePath

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class CircuitJudgement:
    """How a circuit does by itself, beside what is left without it and beside random ones.

    Args:
        circuit: The circuit.
        evaluation: Of the circuit, of all edges but its own, of random circuits, of pairs of
            circuits less some edges, and of the circuit less one edge.
        n_random: Random circuits.
        n_subsets: Random subsets whose loss is compared in the circuit and in the model.
        tried: The edges that were taken away one by one.
    """

    circuit: Circuit
    evaluation: CircuitEvaluation
    n_random: int
    n_subsets: int
    tried: tuple[Edge, ...]

    def faithfulness(self) -> float:
        """What the circuit keeps of the metric; 1 is all of it."""
        return float(self._parts()[0])

    def rest(self) -> float:
        """What all other edges keep; near 0 where the circuit is complete."""
        return float(self._parts()[1])

    def random(self) -> Float[Tensor, " draw"]:
        """What random circuits of the same size keep."""
        return self._parts()[2 : 2 + self.n_random]

    def incompleteness(self) -> Float[Tensor, " subset"]:
        """How differently circuit and model lose, without the same edges of the circuit.

        For each random subset K the distance of what is kept by the circuit less K and by the
        model less K. Near 0 where nothing outside the circuit steps in.

        Source: Wang et al. 2022, section 4.1.
        """
        first = 2 + self.n_random
        both = self._parts()[first : first + 2 * self.n_subsets].view(-1, 2)
        return (both[:, 0] - both[:, 1]).abs()

    def minimality(self) -> Float[Tensor, " tried"]:
        """What the circuit loses of the metric without each of the edges that were tried.

        Source: Wang et al. 2022, section 4.2, with no other edges taken away.
        """
        return self._parts()[0] - self._parts()[2 + self.n_random + 2 * self.n_subsets :]

    def interval(self, level: float | int = 0.95, seed: int = 0) -> tuple[float, float]:
        """Where the faithfulness lies, by the bootstrap's percentiles over pairs."""
        low, high = bootstrap(self.evaluation, lambda parts: parts[0], level, seed=seed)
        return float(low), float(high)

    def _parts(self) -> Tensor:
        return self.evaluation.faithfulness()

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each edge that was tried, with what is lost without it; most first."""
        import pandas as pd

        frame = pd.DataFrame(
            {"edge": [str(edge) for edge in self.tried], "loss": self.minimality().tolist()}
        )
        return frame.sort_values("loss", ascending=False, ignore_index=True)


def judge_circuit(
    model: HookedWhisper,
    circuit: Circuit,
    pairs: Any,
    metric: Any,
    *,
    n_random: int = 10,
    n_subsets: int = 5,
    n_tried: int | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    progress: bool = True,
    save_to: FilePath | None = None,
) -> CircuitJudgement:
    """Faithfulness, completeness and minimality of a circuit, beside random ones of its size.

    Args:
        model: The model, without hooks.
        circuit: The circuit.
        pairs: What to judge on, best of other speakers than those that it was chosen on.
        metric: Of logits or transcripts; see `evaluate_circuits`.
        n_random: Random circuits of the same size.
        n_subsets: Random halves of the circuit for `incompleteness`.
        n_tried: Edges to take away one by one, drawn at random; None is all.
        seed: Of all that is drawn.
        save_to: A file for the runs; see `evaluate_circuits`.

    Raises:
        InterventionError: A circuit without edges.

    Source: Wang et al. 2022 "Interpretability in the Wild", section 4.
    """
    for name, n in (("n_random", n_random), ("n_subsets", n_subsets), ("n_tried", n_tried)):
        if n is not None:
            check_count(name, n, 0, InterventionError)
    edges = list(circuit)
    if not edges:
        raise InterventionError("no edge is left in the circuit; choose one with scores.greedy(n).")
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[Edge]:
        return [edges[i] for i in torch.randperm(len(edges), generator=generator)[:n].tolist()]

    tried = edges if n_tried is None else draw(n_tried)
    full = Circuit.full(circuit.graph)
    circuits = [circuit, circuit.complement()]
    circuits += [Circuit.random(circuit.graph, len(edges), seed + i) for i in range(n_random)]
    for _ in range(n_subsets):
        some = draw(max(1, len(edges) // 2))
        circuits += [circuit.without(some), full.without(some)]
    circuits += [circuit.without([edge]) for edge in tried]
    evaluation = evaluate_circuits(
        model,
        circuits,
        pairs,
        metric,
        max_new_tokens=max_new_tokens,
        progress=progress,
        save_to=save_to,
    )
    return CircuitJudgement(circuit, evaluation, n_random, n_subsets, tuple(tried))
