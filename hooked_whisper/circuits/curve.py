"""Faithfulness over the sizes of circuits, and what MIB makes of it: CPR and CMD."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.circuit import Circuit
from hooked_whisper.circuits.evaluation import CircuitEvaluation, bootstrap, evaluate_circuits
from hooked_whisper.circuits.scores import EdgeScores
from hooked_whisper.errors import InterventionError
from hooked_whisper.model.whisper import HookedWhisper

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of circuits, as shares of all edges, over which MIB integrates."""
Choice = Literal["greedy", "top"]


@dataclass(frozen=True, eq=False)
class FaithfulnessCurve:
    """How faithful the circuits of one ranking are, from few edges to all.

    Args:
        shares: Edges that were taken, as shares of all, before pruning.
        circuits: The circuits.
        evaluation: What they do by themselves; of each circuit, then of random ones.
        n_random: Random circuits of each size.
    """

    shares: tuple[float, ...]
    circuits: tuple[Circuit, ...]
    evaluation: CircuitEvaluation
    n_random: int = 0

    def faithfulness(self) -> Float[Tensor, " size"]:
        """Of the circuit of each size; see `CircuitEvaluation.faithfulness`."""
        return self.evaluation.faithfulness()[: len(self.shares)]

    def random(self) -> Float[Tensor, "draw size"]:
        """The same of circuits drawn at random, with as many edges."""
        return self.evaluation.faithfulness()[len(self.shares) :].view(-1, len(self.shares))

    def cpr(self) -> float:
        """Circuit performance ratio: the area under the curve; higher is better.

        Source: Mueller et al. 2025 "MIB", section 3.1; trapezoids over the shares.
        """
        return float(self._cpr(self.faithfulness()))

    def cmd(self) -> float:
        """Circuit-model distance: the area between the curve and 1; 0 is best.

        Source: as `cpr`.
        """
        return float(self._cmd(self.faithfulness()))

    def interval(
        self,
        of: Literal["faithfulness", "cpr", "cmd"] = "faithfulness",
        level: float | int = 0.95,
        *,
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Where one of them lies, by the bootstrap's percentiles over the pairs."""
        make: dict[str, Callable[[Tensor], Tensor]] = {
            "faithfulness": lambda f: f,
            "cpr": self._cpr,
            "cmd": self._cmd,
        }
        if of not in make:
            raise InterventionError(f"no interval of {of!r}; it can be {', '.join(make)}.")
        n = len(self.shares)
        return bootstrap(self.evaluation, lambda f: make[of](f[:n]), level, n_resamples, seed)

    def _cpr(self, faithfulness: Tensor) -> Tensor:
        return torch.trapezoid(faithfulness.double(), torch.tensor(self.shares).double())

    def _cmd(self, faithfulness: Tensor) -> Tensor:
        return torch.trapezoid(
            (1 - faithfulness.double()).abs(), torch.tensor(self.shares).double()
        )

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each size, with intervals where there are pairs, and random circuits."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "share": self.shares,
                "edges": [len(each) for each in self.circuits],
                "faithfulness": self.faithfulness().tolist(),
            }
        )
        if len(self.evaluation.values) > 1:
            low, high = self.interval()
            frame["low"], frame["high"] = low.tolist(), high.tolist()
        if self.n_random:
            frame["random"] = self.random().mean(dim=0).tolist()
            frame["random_max"] = self.random().max(dim=0).values.tolist()
        return frame

    def plot(self, title: str = "") -> "matplotlib.figure.Figure":
        """The curve over the number of edges, and that of random circuits."""
        from hooked_whisper.figures import plot_by_layer

        lines = {"circuits": self.faithfulness()}
        if self.n_random:
            lines["random circuits"] = self.random().mean(dim=0)
        figure = plot_by_layer(
            {f"faithfulness ({self.evaluation.metric})": lines},
            layers=[f"{100 * share:g}" for share in self.shares],
            title=title,
        )
        figure.axes[0].set_xlabel("edges taken, in % of all")
        return figure


def faithfulness_curve(
    model: HookedWhisper,
    scores: EdgeScores,
    pairs: Any,
    metric: Any,
    *,
    shares: Sequence[float] = SHARES,
    choice: Choice = "greedy",
    absolute: bool = True,
    n_random: int = 0,
    seed: int = 0,
    max_new_tokens: int | None = None,
    progress: bool = True,
    save_to: str | os.PathLike[str] | None = None,
) -> FaithfulnessCurve:
    """How faithful the circuits of a ranking are, over their sizes.

    Args:
        model: The model, without hooks.
        scores: The ranking.
        pairs: What to judge on: of other speakers than those that were scored, best of all.
        metric: Of logits or of transcripts; see `evaluate_circuits`.
        shares: Sizes, as shares of all edges, rising.
        choice: How edges are taken, `scores.greedy` or `scores.top`.
        absolute: Take edges that work against the metric too, as MIB does for CMD; for CPR it
            takes those that raise the metric most.
        n_random: Random circuits of each size, to compare with.
        seed: Of the first of them.
        save_to: A file for the evaluation; see `evaluate_circuits`.

    A size of which no edge is left once dangling ones are pruned has the empty circuit.

    Source: Mueller et al. 2025 "MIB: A Mechanistic Interpretability Benchmark", section 3, and
    `evaluate_area_under_curve` of its code.
    """
    if choice not in get_args(Choice):
        raise InterventionError(f'choice is {choice!r}; it can be "greedy" or "top".')
    sizes = tuple(float(each) for each in shares)
    if len(sizes) < 2 or any(not 0 < each <= 1 for each in sizes) or list(sizes) != sorted(sizes):
        raise InterventionError(
            f"shares are {list(sizes)}; give at least two between 0 and 1 that rise."
        )
    graph = scores.graph
    n_edges = [max(1, int(share * len(graph.edges))) for share in sizes]
    circuits = [_choose(scores, n, choice, absolute) for n in n_edges]
    drawn = [
        Circuit.random(graph, max(1, len(each)), seed + draw)
        for draw in range(n_random)
        for each in circuits
    ]
    evaluation = evaluate_circuits(
        model,
        [*circuits, *drawn],
        pairs,
        metric,
        max_new_tokens=max_new_tokens,
        progress=progress,
        save_to=save_to,
    )
    return FaithfulnessCurve(sizes, tuple(circuits), evaluation, n_random)


def _choose(scores: EdgeScores, n: int, choice: Choice, absolute: bool) -> Circuit:
    """The circuit of a size; an empty one where no edge is left."""
    found: Circuit = getattr(scores, choice)(n, absolute=absolute, may_be_empty=True)
    return found
