"""A circuit: some edges of a model's graph, as a set to be pruned, kept and tried out."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import TypedDict

from hooked_whisper.circuits.graph import Edge, EdgeGraph, EdgeKind
from hooked_whisper.circuits.latents import graph_from
from hooked_whisper.errors import InterventionError
from hooked_whisper.io import as_path, check_json, read_json, write_json

_FORMAT = "hooked_whisper.circuit/1"


class _File(TypedDict):
    """What a circuit's file holds."""

    format: str
    graph: dict[str, Any]
    edges: list[str]
    scores: list[float] | None
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some edges of a model.

    Args:
        graph: All nodes and edges of the model.
        mask: Which of its edges are in the circuit.
        scores: A number for each edge of the graph, by which they were chosen, if any.
        about: What is worth knowing of it: how it was found, the metric, ...
    """

    graph: EdgeGraph
    mask: Bool[Tensor, " edge"]
    scores: Float[Tensor, " edge"] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.mask) != len(self.graph.edges):
            raise InterventionError(
                f"{len(self.mask)} edges for a graph of {len(self.graph.edges)}. Make circuits "
                "with scores.top(n), or Circuit.of(graph, edges)."
            )

    @classmethod
    def of(cls, graph: EdgeGraph, edges: Iterable[Edge | str], **about: Any) -> "Circuit":
        """The circuit of these edges, given as such or by name.

        Raises:
            InterventionError: An edge that the graph does not have.
        """
        mask = torch.zeros(len(graph.edges), dtype=torch.bool)
        mask[graph.numbers_of(edges)] = True
        return cls(graph, mask, about=about)

    @classmethod
    def full(cls, graph: EdgeGraph) -> "Circuit":
        """All edges."""
        return cls(graph, torch.ones(len(graph.edges), dtype=torch.bool))

    @classmethod
    def random(cls, graph: EdgeGraph, n: int, seed: int = 0) -> "Circuit":
        """A circuit of `n` edges that hangs together, drawn from the logits on.

        Each next edge is drawn from those that lead to a node which is in already, so that
        pruning takes away little. Compare with it circuits that were chosen.
        """
        generator = torch.Generator().manual_seed(seed)
        return greedy(graph, torch.rand(len(graph.edges), generator=generator), n)

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __iter__(self) -> Iterator[Edge]:
        return (self.graph.edges[i] for i in self.mask.nonzero().flatten().tolist())

    def __contains__(self, edge: object) -> bool:
        number = self.graph.numbers.get(edge) if isinstance(edge, Edge) else None
        return number is not None and bool(self.mask[number])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.graph == other.graph and torch.equal(self.mask, other.mask)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(kind)} {kind}" for kind in ("encoder", "cross", "decoder"))
        return f"Circuit({len(self)} of {len(self.graph.edges)} edges: {counts})"

    def count(self, kind: EdgeKind) -> int:
        """Edges of one kind."""
        return int(self.mask[self.graph.of_kind(kind)].sum())

    @cached_property
    def nodes(self) -> tuple[Any, ...]:
        """The nodes at the ends of its edges, in the order in which they run; "logits" last."""
        ends = {int(number[i]) for number in self.graph.ends for i in self.mask.nonzero()}
        nodes = (*self.graph.senders, "logits")
        return tuple(nodes[number] for number in sorted(ends))

    def complement(self) -> "Circuit":
        """All edges that are not in it."""
        return Circuit(self.graph, ~self.mask, about={"complement of": self.about})

    def without(self, edges: Iterable[Edge | str]) -> "Circuit":
        """The circuit less some of its edges."""
        mask = self.mask.clone()
        mask[self.graph.numbers_of(edges)] = False
        return Circuit(self.graph, mask, self.scores, self.about)

    def pruned(self) -> "Circuit":
        """The circuit without dangling edges: all that are left lead from an embedding to the end.

        An edge dangles if nothing leads to its sender, which then only says what the corrupted
        run says, or if nothing leads on from its receiver. No metric changes with it.
        """
        return Circuit(self.graph, pruned(self.graph, self.mask), self.scores, self.about)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the circuit as JSON: its graph, its edges by name, and their scores.

        Raises:
            InterventionError: No path.
            StoreWriteError: It cannot be written.
        """
        scores = None if self.scores is None else self.scores[self.mask].tolist()
        found: dict[str, Any] = {
            "format": _FORMAT,
            "graph": asdict(self.graph),
            "edges": [str(edge) for edge in self],
            "scores": scores,
            "about": self.about,
        }
        write_json(as_path(path, InterventionError), found)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Circuit":
        """Read what `save` wrote; edges outside have the score 0 then.

        Raises:
            InterventionError: It cannot be read, or is something else.
        """
        remedy = "Write one with circuit.save(path)."
        where = as_path(path, InterventionError)
        found = dict(read_json(where, dict[str, Any], InterventionError, remedy))
        check_json(found, _File, InterventionError, str(where), remedy)
        sizes = dict.fromkeys(EdgeGraph.__annotations__)
        if found["format"] != _FORMAT or set(found["graph"]) - {"latents"} != set(sizes):
            raise InterventionError(f"{where} is no circuit of this release. {remedy}")
        graph = graph_from(found["graph"][name] for name in (sizes | found["graph"]))
        circuit = cls.of(graph, found["edges"], **found["about"])
        scores = None
        if found["scores"] is not None:
            if len(found["scores"]) != len(circuit):
                raise InterventionError(f"{where} has other scores than edges. {remedy}")
            scores = torch.zeros(len(circuit.mask))
            scores[circuit.graph.numbers_of(found["edges"])] = torch.tensor(found["scores"])
        return cls(circuit.graph, circuit.mask, scores, circuit.about)


def pruned(graph: EdgeGraph, mask: Bool[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
    """The edges of a mask that lie on a way from an embedding to the logits."""
    senders, nodes = graph.ends
    logits = len(graph.senders)
    is_start = torch.zeros(logits + 1, dtype=torch.bool)
    is_start[[i for i, node in enumerate(graph.senders) if str(node).endswith(".embed")]] = True
    mask = mask.clone()
    while True:
        is_told, tells = is_start.clone(), torch.zeros(logits + 1, dtype=torch.bool)
        is_told[nodes[mask]] = True
        tells[senders[mask]] = True
        tells[logits] = True
        kept = mask & is_told[senders] & tells[nodes]
        if torch.equal(kept, mask):
            return mask
        mask = kept


def greedy(graph: EdgeGraph, scores: Float[Tensor, " edge"], n: int) -> Circuit:
    """The circuit that grows from the logits by the best edge into a node that is in already.

    Args:
        graph: The graph.
        scores: What is best: the highest.
        n: Edges to take, before dangling ones are pruned.

    Source: Hanna et al. 2024, section 3; `apply_greedy` of EAP-IG.
    """
    senders, nodes = graph.ends
    logits = len(graph.senders)
    is_in = torch.zeros(logits + 1, dtype=torch.bool)
    is_in[logits] = True
    left = scores.double().clone()
    mask = torch.zeros(len(left), dtype=torch.bool)
    open_scores = torch.where(is_in[nodes], left, -torch.inf)
    for _ in range(min(n, len(left))):
        best = int(open_scores.argmax())
        if open_scores[best] == -torch.inf:
            break
        mask[best] = True
        open_scores[best] = -torch.inf
        sender = int(senders[best])
        if not is_in[sender]:
            is_in[sender] = True
            leads_there = (nodes == sender) & ~mask
            open_scores[leads_there] = left[leads_there]
    return Circuit(graph, pruned(graph, mask), scores.float())
