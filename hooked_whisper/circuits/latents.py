"""The graph with latents: autoencoders behind blocks, each latent and each error a node.

An autoencoder behind a block cuts the residual stream: all that was written before reaches what
comes behind it only as its latents and its error, which together are the stream. So the senders
of a site are the nodes since the last autoencoder on its stream, that one's latents, all other
latents of it together, and its error; and these are receivers of what was written before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hooked_whisper.circuits.graph import STACKS, EdgeGraph, Latent, ReadSite
from hooked_whisper.config import Stack
from hooked_whisper.errors import InterventionError, shown


@dataclass(frozen=True)
class LatentGraph(EdgeGraph):
    """The nodes and edges of a Whisper with autoencoders behind some blocks.

    Args:
        latents: For each of these blocks its stack, its number, and the latents that are nodes
            of their own.

    The others are `EdgeGraph`'s.
    """

    latents: tuple[tuple[Stack, int, tuple[int, ...]], ...] = ()

    def nodes_behind(self, stack: Stack, layer: int) -> list[Latent]:
        """The nodes of the autoencoder behind a block; none where there is none."""
        for each, block, numbers in self.latents:
            if (each, block) == (stack, layer):
                return [Latent(stack, layer, str(which)) for which in (*numbers, "others", "error")]
        return []

    def senders_of(self, stack: Stack) -> list[Any]:
        """All that write to one stack's stream, or stand for what was written."""
        found: list[Any] = []
        for layer in range(-1, self.n_layers(stack)):
            found += [node for node in super().senders_of(stack) if _layer_of(node) == layer]
            found += self.nodes_behind(stack, layer)
        return found

    @cached_property
    def sites(self) -> tuple[ReadSite, ...]:
        """All places at which a stream is read, autoencoders among them, in the order of runs."""
        found: list[ReadSite] = []

        def add(site: ReadSite, sublayer: Any, receivers: Any, written: Any) -> None:
            first = found[-1].edges.stop if found else 0
            limit = self.n_audio_layers if sublayer == "cross_kv" else site.layer
            senders = self._since(written, site.reads, limit)
            found.append(ReadSite(site.stack, site.layer, sublayer, receivers, senders, first))

        for site in EdgeGraph(*self.size).sites:
            add(site, site.sublayer, site.receivers, site.senders)
            nodes = self.nodes_behind(site.stack, site.layer)
            if site.sublayer == "mlp" and nodes:
                add(site, "latents", tuple(nodes), (*site.senders, site.receivers[0]))
        return tuple(found)

    @property
    def size(self) -> tuple[int, int, int, int]:
        """The arguments of the graph without latents."""
        return self.n_audio_layers, self.n_audio_heads, self.n_text_layers, self.n_text_heads

    def _since(self, written: Iterable[Any], stack: Stack, limit: int) -> tuple[Any, ...]:
        """The last autoencoder before a layer, and what was written behind it."""
        cut = max((n for each, n, _ in self.latents if each == stack and n < limit), default=-2)
        behind = [node for node in written if _layer_of(node) > cut]
        return (*self.nodes_behind(stack, cut), *behind)


def graph_from(arguments: Iterable[Any]) -> EdgeGraph:
    """The graph of these arguments: with a fifth one, a graph with latents."""
    sizes = list(arguments)
    if len(sizes) < 5:
        return EdgeGraph(*sizes)
    latents = tuple((stack, layer, tuple(which)) for stack, layer, which in sizes.pop())
    return LatentGraph(sizes[0], sizes[1], sizes[2], sizes[3], latents)


def numbers_of(nodes: Iterable[Any]) -> list[int]:
    """Those latents that are nodes of their own."""
    return [int(node.which) for node in nodes if node.which.isdecimal()]


def _layer_of(node: Any) -> int:
    return int(getattr(node, "layer", -1))


def block_of_hook(hook: str) -> tuple[Stack, int]:
    """The block behind which an autoencoder stands.

    Raises:
        InterventionError: Another hook.

    >>> block_of_hook("encoder.blocks.2.hook_resid_post")
    ('encoder', 2)
    """
    for stack in STACKS:
        start, _, end = hook.partition(f"{stack}.blocks.")
        number, _, name = end.partition(".")
        if not start and number.isdecimal() and name == "hook_resid_post":
            return stack, int(number)
    raise InterventionError(
        f"{shown(hook)} is not where a circuit can have latents; take autoencoders behind blocks, "
        "such as encoder.blocks.2.hook_resid_post."
    )
