"""What each edge does to a metric, and the circuits that are chosen by it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.circuit import Circuit, greedy, pruned
from hooked_whisper.circuits.graph import Edge, EdgeGraph, EdgeKind, receiving_node
from hooked_whisper.circuits.latents import graph_from
from hooked_whisper.errors import InterventionError, check_count
from hooked_whisper.patching.paths import Head, HeadInput
from hooked_whisper.patching.results import EffectTable

if TYPE_CHECKING:
    import matplotlib.figure

Method = Literal["exact", "eap", "eap-ig-inputs", "eap-ig-activations"]


@dataclass(eq=False, repr=False)
class EdgeScores(EffectTable):
    """The metric with each edge patched, measured or estimated. NaN where it was not done.

    `axes` names the two axes of `values`, and gives their labels:

        pair   pairs of a clean and a corrupted run, 0, 1, ...
        edge   "encoder.embed->encoder.0.attn.3.q", "decoder.3.mlp->logits", ...

    `effect()` is how far an edge by itself takes its run to the other one: 1 all the way, below
    0 away from it. So an edge that carries what the metric measures has a positive effect in
    either direction.

    Args:
        graph: All nodes and edges of the model.
        method: `"exact"`, or how the numbers were estimated.

    The others are `EffectTable`'s.
    """

    values: Float[Tensor, "pair edge"]
    graph: EdgeGraph
    method: Method

    _kind: ClassVar[str] = "edges"

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, in the order of the last axis."""
        return self.graph.edges

    def scores(self) -> Float[Tensor, " edge"]:
        """Each edge's share of the way between the two runs, by the means over the pairs.

        The mean change of the metric over its mean difference between the runs, so that a pair
        whose runs differ little does not count more than others.
        """
        base, other = self.clean, self.corrupted
        if self.direction == "denoising":
            base, other = other, base
        return (self.values - base[:, None]).mean(dim=0) / (other - base).mean()

    def top(
        self, n: int, *, absolute: bool = True, prune: bool = True, may_be_empty: bool = False
    ) -> Circuit:
        """The circuit of the `n` edges with the highest scores.

        Args:
            n: Edges to take, before dangling ones are pruned.
            absolute: Take edges that work against the metric too: the largest scores of
                either sign. Without, those that raise it most.
            prune: Take away what leads from nowhere or to nowhere; see `Circuit.pruned`.
            may_be_empty: Return a circuit without edges where pruning leaves none.

        Raises:
            InterventionError: Not so many edges, scores that are not complete, or no edge left.
        """
        scores = self._by(n, absolute)
        mask = torch.zeros(len(scores), dtype=torch.bool)
        mask[scores.argsort(descending=True, stable=True)[:n]] = True
        kept = pruned(self.graph, mask) if prune else mask
        return self._circuit(kept, n, "top", absolute, may_be_empty)

    def greedy(self, n: int, *, absolute: bool = True, may_be_empty: bool = False) -> Circuit:
        """The circuit that grows from the logits by the best edge that leads into it, `n` times.

        Each edge that is taken leads on to the logits; those that nothing leads to are pruned.
        The arguments are `top`'s.

        Raises:
            InterventionError: Not so many edges, scores that are not complete, or no edge left.

        Source: Hanna et al. 2024, section 3.
        """
        found = greedy(self.graph, self._by(n, absolute), n)
        return self._circuit(found.mask, n, "greedy", absolute, may_be_empty)

    def _by(self, n: int, absolute: bool) -> Tensor:
        """What edges are chosen by: the highest first."""
        check_count("n", n, 1, InterventionError)
        if n > len(self.edges):
            raise InterventionError(f"n is {n}; the model has {len(self.edges)} edges.")
        if not self.complete:
            raise InterventionError(
                f"{self.n_done} of {self.n_cells} scores are there; finish them with "
                "find_circuit(..., resume=result)."
            )
        scores = self.scores()
        return scores.abs() if absolute else scores

    def _circuit(
        self, mask: Tensor, n: int, how: str, absolute: bool, may_be_empty: bool
    ) -> Circuit:
        if not mask.any() and not may_be_empty:
            raise InterventionError(
                f"no edge is left of {n}: none of them lies on a way from an embedding to the "
                "logits. Take more, greedy(n) instead of top(n), or absolute=True."
            )
        about = {
            "method": self.method,
            "metric": self.metric,
            "direction": self.direction,
            "pairs": len(self.values),
            "chosen": f"{how} {n}" + ("" if absolute else ", signed"),
        }
        return Circuit(self.graph, mask, self.scores(), about)

    def _place(self, *place: int) -> dict[str, Any]:
        edge = self.edges[place[0]]
        node = receiving_node(edge.receiver)
        return {
            "edge": str(edge),
            "kind": edge.kind,
            "sender": str(edge.sender),
            "receiver": str(edge.receiver),
            "node": str(node),
            "part": edge.receiver.part if isinstance(edge.receiver, HeadInput) else None,
        }

    @classmethod
    def _from_about(cls, about: dict[str, Any]) -> dict[str, Any]:
        fields = super()._from_about(about)
        graph, method = about["conditions"]["graph"], about["conditions"]["method"]
        return {**fields, "graph": graph_from(graph), "method": method}

    def matrix(
        self, kind: EdgeKind
    ) -> tuple[Float[Tensor, "sender receiver"], list[str], list[str]]:
        """The scores of one kind of edges as a table, NaN where there is none, and its labels."""
        some = [(i, edge) for i, edge in enumerate(self.edges) if edge.kind == kind]
        rows = list(dict.fromkeys(str(edge.sender) for _, edge in some))
        columns = list(dict.fromkeys(str(edge.receiver) for _, edge in some))
        table, scores = torch.full((len(rows), len(columns)), torch.nan), self.scores()
        for i, edge in some:
            table[rows.index(str(edge.sender)), columns.index(str(edge.receiver))] = scores[i]
        return table, rows, columns

    def plot(self, effect: bool = True, title: str = "") -> "matplotlib.figure.Figure":
        """A heatmap of the nodes: how much of the way their edges of each kind carry, summed.

        Args:
            effect: Draw scores; False draws the mean change of the metric.
            title: Drawn above.
        """
        from hooked_whisper.figures import plot_patching

        scores = self.scores()
        if not effect:
            scores = (self.values - self._base()[:, None]).mean(dim=0)
        names = list(dict.fromkeys(_layer_of(edge.sender) for edge in self.edges))
        columns = list(dict.fromkeys(_layer_of(edge.receiver) for edge in self.edges))
        table = torch.zeros(len(names), len(columns))
        is_there = torch.zeros_like(table, dtype=torch.bool)
        for edge, score in zip(self.edges, scores.tolist(), strict=True):
            place = names.index(_layer_of(edge.sender)), columns.index(_layer_of(edge.receiver))
            table[place] += score
            is_there[place] = True
        return plot_patching(
            table.masked_fill(~is_there, torch.nan),
            names,
            columns,
            label=f"share of {self.metric}" if effect else f"change of {self.metric}",
            row_label="from",
            column_label="to",
            title=title or f"edges, {self.method}, {self.direction}, {len(self.values)} pair(s)",
            diverging=True,
        )

    def _base(self) -> Tensor:
        return self.clean if self.direction == "noising" else self.corrupted


def _layer_of(part: Any) -> str:
    """The layer of a sender or receiver, its heads together."""
    if isinstance(part, HeadInput):
        return f"{_layer_of(part.head)} {part.part}"
    if isinstance(part, Head):
        return f"{part.stack}.{part.layer}.{part.kind}"
    return str(part)
