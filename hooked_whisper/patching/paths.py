"""Senders and receivers of path patching: where they read and write the stream, what was found."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import Stack
from hooked_whisper.errors import InterventionError, SiteError
from hooked_whisper.hooks.names import stack_of
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.results import EffectTable

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

_KINDS: dict[str, Literal["attn", "cross_attn"]] = {"attn": "attn", "cross_attn": "cross_attn"}
_MLP = 2
_SUBLAYERS = {"attn": 0, "cross_attn": 1}
"""The order in which a block's sublayers read and write; an MLP is the last."""


@dataclass(frozen=True)
class Head:
    """An attention head.

    As a sender it is what the head writes to the residual stream; `head.q`,
    `head.k` and `head.v` are receivers.

    Args:
        stack: The stack that its queries come from.
        layer: Its block, from 0.
        head: Its index, from 0.
        kind: Self-attention, or the decoder's attention to the encoder.
    """

    stack: Stack
    layer: int
    head: int
    kind: Literal["attn", "cross_attn"] = "attn"

    def __str__(self) -> str:
        return f"{self.stack}.{self.layer}.{self.kind}.{self.head}"

    @property
    def q(self) -> "HeadInput":
        """Its queries, as a receiver."""
        return HeadInput(self, "q")

    @property
    def k(self) -> "HeadInput":
        """Its keys, as a receiver."""
        return HeadInput(self, "k")

    @property
    def v(self) -> "HeadInput":
        """Its values, as a receiver."""
        return HeadInput(self, "v")


@dataclass(frozen=True)
class HeadInput:
    """The queries, keys or values of a head, as a receiver; `Head(...).q` makes one."""

    head: Head
    part: Literal["q", "k", "v"]

    def __str__(self) -> str:
        return f"{self.head}.{self.part}"


@dataclass(frozen=True)
class MLPLayer:
    """The MLP of a block: what it writes as a sender, what it reads as a receiver.

    Args:
        stack: Its stack.
        layer: Its block, from 0.
    """

    stack: Stack
    layer: int

    def __str__(self) -> str:
        return f"{self.stack}.{self.layer}.mlp"


Sender = Head | MLPLayer
Receiver = HeadInput | MLPLayer | Literal["logits"]


def all_senders(model: HookedWhisper, *, with_mlps: bool = True) -> list[Sender]:
    """Every head, and every MLP, in the order in which they run."""
    found: list[Sender] = []
    stacks: tuple[Stack, ...] = ("encoder", "decoder")
    for stack in stacks:
        for layer in range(model.cfg.n_layers(stack)):
            heads = range(model.cfg.n_heads(stack))
            found += [Head(stack, layer, head) for head in heads]
            if stack == "decoder":
                found += [Head(stack, layer, head, "cross_attn") for head in heads]
            found += [MLPLayer(stack, layer)] if with_mlps else []
    return found


def block_of(model: HookedWhisper, part: Head | MLPLayer) -> Any:
    return getattr(model, part.stack).blocks[part.layer]


def part_from(text: str) -> Any:
    """The head, MLP, head's input or "logits" that a name stands for.

    >>> part_from("decoder.2.cross_attn.0.k") == Head("decoder", 2, 0, "cross_attn").k
    True
    """
    if text == "logits":
        return text
    stack, layer, *rest = text.split(".")
    if rest == ["mlp"]:
        return MLPLayer(stack_of(stack), int(layer))
    head = Head(stack_of(stack), int(layer), int(rest[1]), _KINDS[rest[0]])
    return head if len(rest) == 2 else getattr(head, rest[2])


def check_part(model: HookedWhisper, part: Any, what: Literal["sender", "receiver"]) -> None:
    """Refuse what is no sender or receiver, and heads and MLPs that the model does not have."""
    fits = isinstance(part, (Head, MLPLayer) if what == "sender" else (HeadInput, MLPLayer))
    if not fits and not (what == "receiver" and part == "logits"):
        raise InterventionError(
            f"{part!r} is no {what}. Senders are Head and MLPLayer; receivers are head.q, head.k, "
            'head.v, MLPLayer and "logits".'
        )
    if part == "logits":
        return
    if isinstance(part, HeadInput):
        if part.part not in ("q", "k", "v"):
            raise SiteError(f'{part} reads {part.part!r}; a head reads its "q", "k" and "v".')
        part = part.head
    if part.stack not in ("encoder", "decoder"):
        raise SiteError(f'no stack {part.stack!r}; it can be "encoder" or "decoder".')
    n_layers, n_heads = model.cfg.n_layers(part.stack), model.cfg.n_heads(part.stack)
    if not 0 <= part.layer < n_layers:
        raise SiteError(f"{part}: the {part.stack} has layers 0 to {n_layers - 1}.")
    if isinstance(part, Head):
        if part.kind not in _SUBLAYERS or (part.kind == "cross_attn" and part.stack == "encoder"):
            raise SiteError(
                f'{part}: the kind is "attn", or in the decoder "cross_attn", which has the '
                "decoder's stack."
            )
        if not 0 <= part.head < n_heads:
            raise SiteError(f"{part}: the {part.stack} has heads 0 to {n_heads - 1}.")


def _sublayer(part: Head | MLPLayer) -> int:
    return _SUBLAYERS[part.kind] if isinstance(part, Head) else _MLP


def reads_audio(receiver: Receiver) -> bool:
    """Whether a receiver reads the encoder's output."""
    if not isinstance(receiver, HeadInput):
        return False
    return receiver.head.kind == "cross_attn" and receiver.part != "q"


def acts_at(model: HookedWhisper, receiver: Receiver) -> tuple[Stack, int]:
    """The stack and block in which a receiver runs."""
    if receiver == "logits":
        return "decoder", model.cfg.n_text_layers
    part = receiver.head if isinstance(receiver, HeadInput) else receiver
    return part.stack, part.layer


def reaches(model: HookedWhisper, sender: Sender, receiver: Receiver) -> bool:
    """Whether the residual stream leads from a sender straight to a receiver."""
    if reads_audio(receiver):
        return sender.stack == "encoder"
    stack, layer = acts_at(model, receiver)
    if stack != sender.stack:
        return False
    if receiver == "logits":
        return True
    part = receiver.head if isinstance(receiver, HeadInput) else receiver
    return (sender.layer, _sublayer(sender)) < (layer, _sublayer(part))


def written_at(sender: Sender) -> str:
    """The hook from which a sender's output is known."""
    prefix = f"{sender.stack}.blocks.{sender.layer}"
    if isinstance(sender, MLPLayer):
        return f"{prefix}.hook_mlp_out"
    return f"{prefix}.{sender.kind}.hook_z"


def read_through(model: HookedWhisper, receiver: Receiver) -> tuple[str, Any]:
    """The residual stream that a receiver reads, and the LayerNorm through which it does."""
    if receiver == "logits":
        last = model.cfg.n_text_layers - 1
        return f"decoder.blocks.{last}.hook_resid_post", model.decoder.ln_final
    if reads_audio(receiver):
        last = model.cfg.n_audio_layers - 1
        return f"encoder.blocks.{last}.hook_resid_post", model.encoder.ln_final
    part = receiver.head if isinstance(receiver, HeadInput) else receiver
    block, prefix = block_of(model, part), f"{part.stack}.blocks.{part.layer}"
    if isinstance(part, MLPLayer):
        if part.stack == "encoder":
            return f"{prefix}.hook_resid_mid", block.ln2
        return f"{prefix}.hook_resid_mid_cross", block.ln3
    if part.kind == "attn":
        return f"{prefix}.hook_resid_pre", block.ln1
    return f"{prefix}.hook_resid_mid", block.ln2


def put_at(receiver: Receiver) -> str:
    """The hook at which a receiver's new input is put in."""
    if receiver == "logits":
        return "decoder.ln_final.hook_normalized"
    if isinstance(receiver, HeadInput):
        head = receiver.head
        return f"{head.stack}.blocks.{head.layer}.{head.kind}.hook_{receiver.part}"
    norm = "ln2" if receiver.stack == "encoder" else "ln3"
    return f"{receiver.stack}.blocks.{receiver.layer}.{norm}.hook_normalized"


@dataclass(eq=False, repr=False)
class PathEffects(EffectTable):
    """The metric with each sender's path patched. NaN where it was stopped before.

    `axes` names the two axes of `values`, and gives their labels:

        pair     pairs of a clean and a corrupted run, 0, 1, ...
        sender   "encoder.0.attn.3", "decoder.2.mlp", ...

    Args:
        senders: Whose output came from the other run.
        receivers: Where it went.

    The others are `EffectTable`'s.
    """

    values: Float[Tensor, "pair sender"]
    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]

    _kind: ClassVar[str] = "paths"

    def _place(self, *place: int) -> dict[str, Any]:
        sender = self.senders[place[0]]
        return {
            "sender": str(sender),
            "stack": sender.stack,
            "layer": sender.layer,
            "kind": sender.kind if isinstance(sender, Head) else "mlp",
            "head": sender.head if isinstance(sender, Head) else None,
        }

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each path that is done; an MLP has no head."""
        table = super().to_dataframe()
        return table.astype({"head": "Int64"}) if len(table) else table

    def about(self) -> dict[str, Any]:
        receivers = [str(each) for each in self.receivers]
        return {"senders": self.axes["sender"], "receivers": receivers, **super().about()}

    @classmethod
    def _from_about(cls, about: dict[str, Any]) -> dict[str, Any]:
        fields = super()._from_about(about)
        for what in ("senders", "receivers"):
            fields[what] = tuple(part_from(text) for text in about[what])
        return fields

    def plot(self, effect: bool = True, title: str = "") -> "matplotlib.figure.Figure":
        """A heatmap for each kind of sender: layers upwards, heads to the right, MLPs beside them.

        Args:
            effect: Draw the effect, 0 to 1; False draws the metric.
            title: Drawn above.
        """
        from hooked_whisper.figures import plot_sweep

        places = [self._place(i) for i in range(len(self.senders))]
        kinds = {"attn": "attn, mlp", "mlp": "attn, mlp", "cross_attn": "cross_attn"}
        panels = [f"{each['stack']}.{kinds[each['kind']]}" for each in places]
        sites = list(dict.fromkeys(panels))
        layers = range(max(each["layer"] for each in places) + 1)
        heads = sorted({each["head"] for each in places if each["head"] is not None})
        parts = [*heads, *(["mlp"] if any(each["head"] is None for each in places) else [])]
        table = torch.full((len(sites), len(layers), len(parts)), torch.nan)
        for panel, each, value in zip(panels, places, self.mean(effect), strict=True):
            part = parts.index("mlp" if each["head"] is None else each["head"])
            table[sites.index(panel), each["layer"], part] = value
        return plot_sweep(
            table,
            sites=sites,
            layers=layers,
            parts=parts,
            part_axis="head",
            label=f"effect on {self.metric}" if effect else self.metric,
            title=title or f"paths to {', '.join(map(str, self.receivers))} ({self.direction})",
        )
