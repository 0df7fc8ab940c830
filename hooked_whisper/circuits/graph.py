"""The graph of what a Whisper's parts tell each other: who writes to the streams, who reads them.

Nodes are the embeddings, heads and MLPs of both stacks, and the logits. A head reads three times,
for its queries, keys and values. Edges lead through the residual streams, and are of three kinds:

    encoder    from the encoder's embedding, heads and MLPs to its later heads and MLPs
    cross      from the same to cross-attention's keys and values, through the last LayerNorm
    decoder    from the decoder's embedding, heads and MLPs to its later ones, and to the logits
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.errors import InterventionError, shown
from hooked_whisper.hooks.names import stack_of
from hooked_whisper.patching.paths import Head, HeadInput, MLPLayer, Receiver, part_from

EdgeKind = Literal["encoder", "cross", "decoder"]
Sublayer = Literal["attn", "cross_q", "cross_kv", "mlp", "latents", "logits"]
STACKS: tuple[Stack, ...] = get_args(Stack)


@dataclass(frozen=True)
class Embedding:
    """What a stack's stream begins with: of the sound or of the tokens, positions included.

    Args:
        stack: Its stack.
    """

    stack: Stack

    def __str__(self) -> str:
        return f"{self.stack}.embed"


@dataclass(frozen=True)
class Latent:
    """A latent of an autoencoder behind a block, all its other latents together, or its error.

    Args:
        stack: Its stack.
        layer: The block.
        which: The latent's number, `"others"` or `"error"`.
    """

    stack: Stack
    layer: int
    which: str

    def __str__(self) -> str:
        return f"{self.stack}.{self.layer}.latent.{self.which}"


Node = Embedding | Head | MLPLayer
"""What writes to a stream; latents stand for what was written."""


@dataclass(frozen=True)
class Edge:
    """What one node tells another one directly.

    Args:
        sender: What writes: `Embedding`, `Head` or `MLPLayer`.
        receiver: What reads: `head.q`, `head.k`, `head.v`, `MLPLayer` or `"logits"`.
    """

    sender: Node | Latent
    receiver: Receiver | Latent

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"

    @property
    def kind(self) -> EdgeKind:
        """Which of the three kinds it is."""
        if self.sender.stack == "decoder":
            return "decoder"
        node = receiving_node(self.receiver)
        return "cross" if node == "logits" or node.stack == "decoder" else "encoder"

    @classmethod
    def from_text(cls, text: str) -> "Edge":
        """The edge of a name.

        Raises:
            InterventionError: No name of an edge.

        >>> edge = Edge.from_text("encoder.embed->decoder.2.cross_attn.0.v")
        >>> edge.kind, edge.receiver.part
        ('cross', 'v')
        """
        try:
            sender, receiver = text.split("->")
            return cls(_node_from(sender), _node_from(receiver))
        except Exception as error:
            raise InterventionError(
                f"{shown(text)} is no edge; one is written as "
                '"encoder.embed->decoder.2.cross_attn.0.v" or "decoder.3.mlp->logits".'
            ) from error


def _node_from(text: str) -> Any:
    if text.endswith(".embed"):
        return Embedding(stack_of(text))
    if ".latent." in text:
        stack, layer, _, which = text.split(".")
        return Latent(stack_of(stack), int(layer), which)
    return part_from(text)


def receiving_node(receiver: Receiver | Latent) -> Any:
    """The head or MLP that a receiver belongs to, or `"logits"`."""
    return receiver.head if isinstance(receiver, HeadInput) else receiver


@dataclass(frozen=True)
class ReadSite:
    """Receivers that read the same stream through the same LayerNorm, and who wrote to it before.

    Args:
        stack: The stack in which they run.
        layer: Their block; one more than the last for the logits.
        sublayer: What they are.
        receivers: First all queries, then all keys, then all values, by head.
        senders: Their senders, in the order in which these run.
        first: The place of its first edge in the graph; sender by sender, the receivers of each.
    """

    stack: Stack
    layer: int
    sublayer: Sublayer
    receivers: tuple[Receiver | Latent, ...]
    senders: tuple[Any, ...]
    first: int

    @property
    def n_edges(self) -> int:
        """Edges into it."""
        return len(self.senders) * len(self.receivers)

    @property
    def edges(self) -> slice:
        """The places of its edges."""
        return slice(self.first, self.first + self.n_edges)

    @property
    def reads(self) -> Stack:
        """The stack whose stream it reads."""
        return "encoder" if self.sublayer == "cross_kv" else self.stack


@dataclass(frozen=True)
class EdgeGraph:
    """All nodes and edges of a Whisper, by its layers and heads.

    Args:
        n_audio_layers: Blocks of the encoder.
        n_audio_heads: Heads of each.
        n_text_layers: Blocks of the decoder.
        n_text_heads: Heads of each, in self-attention and in cross-attention.

    >>> graph = EdgeGraph(4, 6, 4, 6)
    >>> len(graph.senders), len(graph.edges)
    (82, 4585)
    """

    n_audio_layers: int
    n_audio_heads: int
    n_text_layers: int
    n_text_heads: int

    @classmethod
    def of(cls, cfg: HookedWhisperConfig) -> "EdgeGraph":
        """The graph of a model of this configuration."""
        return cls(cfg.n_audio_layers, cfg.n_audio_heads, cfg.n_text_layers, cfg.n_text_heads)

    def n_layers(self, stack: Stack) -> int:
        """Blocks of one stack."""
        return self.n_audio_layers if stack == "encoder" else self.n_text_layers

    def n_heads(self, stack: Stack) -> int:
        """Heads of a block of one stack."""
        return self.n_audio_heads if stack == "encoder" else self.n_text_heads

    @cached_property
    def senders(self) -> tuple[Any, ...]:
        """All that write to a stream, in the order in which they run."""
        return tuple(node for stack in STACKS for node in self.senders_of(stack))

    def senders_of(self, stack: Stack) -> list[Any]:
        """All that write to one stack's stream, in the order in which they run."""
        found: list[Node] = [Embedding(stack)]
        for layer in range(self.n_layers(stack)):
            heads = range(self.n_heads(stack))
            found += [Head(stack, layer, head) for head in heads]
            if stack == "decoder":
                found += [Head(stack, layer, head, "cross_attn") for head in heads]
            found.append(MLPLayer(stack, layer))
        return found

    @cached_property
    def sites(self) -> tuple[ReadSite, ...]:
        """All places at which a stream is read, in the order in which they run."""
        found: list[ReadSite] = []
        encoder, decoder = (tuple(self.senders_of(stack)) for stack in STACKS)

        def add(
            stack: Stack, layer: int, sublayer: Sublayer, receivers: list[Any], senders: Any
        ) -> None:
            first = found[-1].edges.stop if found else 0
            found.append(ReadSite(stack, layer, sublayer, tuple(receivers), senders, first))

        def inputs(stack: Stack, layer: int, kind: Any, parts: str) -> list[Any]:
            heads = [Head(stack, layer, head, kind) for head in range(self.n_heads(stack))]
            return [getattr(head, part) for part in parts for head in heads]

        n = self.n_audio_heads
        for layer in range(self.n_audio_layers):
            before = 1 + layer * (n + 1)
            add("encoder", layer, "attn", inputs("encoder", layer, "attn", "qkv"), encoder[:before])
            add("encoder", layer, "mlp", [MLPLayer("encoder", layer)], encoder[: before + n])
        n = self.n_text_heads
        for layer in range(self.n_text_layers):
            before = 1 + layer * (2 * n + 1)
            cross = [inputs("decoder", layer, "cross_attn", parts) for parts in ("q", "kv")]
            add("decoder", layer, "attn", inputs("decoder", layer, "attn", "qkv"), decoder[:before])
            add("decoder", layer, "cross_q", cross[0], decoder[: before + n])
            add("decoder", layer, "cross_kv", cross[1], encoder)
            add("decoder", layer, "mlp", [MLPLayer("decoder", layer)], decoder[: before + 2 * n])
        add("decoder", self.n_text_layers, "logits", ["logits"], decoder)
        return tuple(found)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges: site by site, sender by sender."""
        return tuple(
            Edge(sender, receiver)
            for site in self.sites
            for sender in site.senders
            for receiver in site.receivers
        )

    @cached_property
    def numbers(self) -> dict[Edge, int]:
        """The place of each edge among `edges`."""
        return {edge: number for number, edge in enumerate(self.edges)}

    @cached_property
    def ends(self) -> tuple[Int[Tensor, " edge"], Int[Tensor, " edge"]]:
        """The sender of each edge and the node that it leads to, by their numbers.

        A node's number is its place among `senders`; the logits come last.
        """
        number = {node: place for place, node in enumerate((*self.senders, "logits"))}
        senders = [number[edge.sender] for edge in self.edges]
        nodes = [number[receiving_node(edge.receiver)] for edge in self.edges]
        return torch.tensor(senders), torch.tensor(nodes)

    def numbers_of(self, edges: Iterable[Edge | str]) -> list[int]:
        """The places of some edges, given as such or by name.

        Raises:
            InterventionError: An edge that this graph does not have.
        """
        found = []
        for each in edges:
            edge = Edge.from_text(each) if isinstance(each, str) else each
            if edge not in self.numbers:
                raise InterventionError(
                    f"{shown(str(each))} is no edge of this model: a sender comes before its "
                    "receivers in their stack, and the encoder reaches the decoder through the k "
                    "and v of cross-attention only. EdgeGraph.of(model.cfg).edges lists them."
                )
            found.append(self.numbers[edge])
        return found

    def of_kind(self, kind: EdgeKind) -> Int[Tensor, " some"]:
        """The places of all edges of one kind."""
        return torch.tensor([i for i, edge in enumerate(self.edges) if edge.kind == kind])
