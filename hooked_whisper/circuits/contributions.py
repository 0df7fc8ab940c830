"""What each node of a run writes to its stream, and the difference of two runs in it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.graph import EdgeGraph, Embedding, Node, ReadSite
from hooked_whisper.config import Stack
from hooked_whisper.errors import AlignmentError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.interventions.examples import Example
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.paths import MLPLayer

WRITTEN = [
    "encoder.blocks.0.hook_resid_pre",
    "decoder.blocks.0.hook_resid_pre",
    "*.hook_z",
    "*.hook_mlp_out",
]
"""The hooks from which everything is known that nodes write."""


def written_at(node: Any) -> str:
    """The hook from which a node's output is known."""
    if isinstance(node, Embedding):
        return f"{node.stack}.blocks.0.hook_resid_pre"
    prefix = f"{node.stack}.blocks.{node.layer}"
    return (
        f"{prefix}.hook_mlp_out" if isinstance(node, MLPLayer) else f"{prefix}.{node.kind}.hook_z"
    )


class Differences:
    """What nodes write in one run less what they write in another one, of one recording.

    Args:
        model: The model.
        source: The activations at `WRITTEN` of one run; means of many may have a single position.
        base: Those of the other.
        max_bytes: Up to which the differences of a stack are kept, instead of made anew.

    Raises:
        AlignmentError: Activations of other positions.
    """

    def __init__(
        self,
        model: HookedWhisper,
        source: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        max_bytes: int,
    ) -> None:
        self.model, self.max_bytes = model, max_bytes
        self.graph = EdgeGraph.of(model.cfg)
        self.changes: dict[str, Tensor] = {}
        for name in model.hook_names(WRITTEN):
            ours = base[name]
            theirs = first_positions(source[name], ours.shape[1])
            if theirs.shape[1] not in (1, ours.shape[1]) or theirs.shape[2:] != ours.shape[2:]:
                raise AlignmentError(
                    f"{name} is {tuple(theirs.shape)} in what is put in and {tuple(ours.shape)} in "
                    "the run. Give both as many tokens."
                )
            same = theirs == ours
            self.changes[name] = torch.where(same, 0.0, theirs - ours)[0]
        self._kept: dict[Stack, Tensor] = {}

    def is_zero(self, node: Node) -> bool:
        """Whether a node writes the same in both runs."""
        change = self.changes[written_at(node)]
        if not isinstance(node, Embedding | MLPLayer):
            change = change[:, node.head]
        return not bool(change.any())

    def of(self, node: Node) -> Float[Tensor, "pos d_model"]:
        """The difference of what one node writes."""
        change = self.changes[written_at(node)]
        if isinstance(node, Embedding | MLPLayer):
            return change
        attention = getattr(getattr(self.model, node.stack).blocks[node.layer], node.kind)
        return change[:, node.head] @ attention.W_O[node.head].to(change.dtype)

    def of_all(
        self, senders: Sequence[Node]
    ) -> Iterator[tuple[int, Float[Tensor, "n pos d_model"]]]:
        """Those of a stack's first senders, as many at a time as fit in memory, with the first."""
        stack = senders[0].stack
        nodes = self.graph.senders_of(stack)
        size = self.changes[written_at(nodes[0])].nbytes
        if len(nodes) * size <= self.max_bytes:
            if stack not in self._kept:
                self._kept[stack] = torch.stack([self.of(node) for node in nodes])
            yield 0, self._kept[stack][: len(senders)]
            return
        n = max(1, self.max_bytes // size)
        for first in range(0, len(senders), n):
            yield first, torch.stack([self.of(node) for node in senders[first : first + n]])


def first_positions(value: Tensor, n_pos: int) -> Tensor:
    """What stands at the first positions: means are of longer texts than a run may have."""
    return value[:, :n_pos] if value.shape[1] > n_pos else value


def norm_of(model: HookedWhisper, site: ReadSite) -> Any:
    """The LayerNorm through which a site reads its stream."""
    if site.sublayer == "logits":
        return model.decoder.ln_final
    if site.sublayer == "cross_kv":
        return model.encoder.ln_final
    block: Any = getattr(model, site.stack).blocks[site.layer]
    if site.sublayer == "attn":
        return block.ln1
    if site.sublayer == "cross_q" or site.stack == "encoder":
        return block.ln2
    return block.ln3


def stream_of(model: HookedWhisper, site: ReadSite) -> str:
    """The hook of the stream that a site reads."""
    if site.sublayer in ("logits", "cross_kv"):
        last = model.cfg.n_layers(site.reads) - 1
        return f"{site.reads}.blocks.{last}.hook_resid_post"
    name = {"attn": "hook_resid_pre", "cross_q": "hook_resid_mid"}.get(site.sublayer)
    if name is None:
        name = "hook_resid_mid" if site.stack == "encoder" else "hook_resid_mid_cross"
    return f"{site.stack}.blocks.{site.layer}.{name}"


def attention_of(model: HookedWhisper, site: ReadSite) -> Any:
    """The attention whose queries, keys or values a site is."""
    block: Any = getattr(model, site.stack).blocks[site.layer]
    return block.attn if site.sublayer == "attn" else block.cross_attn


def read_by(
    model: HookedWhisper, run: Example | WhisperCache, names: Sequence[str]
) -> Mapping[str, Tensor]:
    """Activations of a run; of means, what there is."""
    if not isinstance(run, Example):
        return run
    return model.run_with_cache(run.mel, run.tokens, names_filter=list(names))[1]
