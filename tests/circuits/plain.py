"""The plain loop: one run of openai-whisper an edge, patched by torch's own hooks."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_whisper.circuits import Edge, Embedding
from hooked_whisper.interventions.examples import Example
from hooked_whisper.patching.paths import Head, HeadInput, MLPLayer


def contributions(whisper: Any, example: Example) -> dict[Any, Tensor]:
    """What each node adds to its stream."""
    found: dict[Any, Tensor] = {}
    with ExitStack() as stack:

        def watch(module: Any, hook: Callable[..., None]) -> None:
            stack.callback(module.register_forward_pre_hook(hook).remove)

        for name in ("encoder", "decoder"):
            blocks = getattr(whisper, name).blocks
            watch(blocks[0], lambda _, args, n=name: found.update({Embedding(n): args[0]}))
            for layer, block in enumerate(blocks):
                kinds = {"attn": block.attn, "cross_attn": block.cross_attn}
                for kind, attention in kinds.items():
                    if attention is not None:
                        watch(attention.out, _of_heads(found, name, layer, kind, attention))
                mlp, node = block.mlp[2], MLPLayer(name, layer)
                hook = mlp.register_forward_hook(lambda _, a, out, n=node: found.update({n: out}))
                stack.callback(hook.remove)
        with torch.no_grad():
            whisper(example.mel.values, example.tokens)
    return found


def _of_heads(found: Any, name: Any, layer: int, kind: Any, attention: Any) -> Callable[..., None]:
    def hook(_: Any, args: Any) -> None:
        d_head = args[0].shape[-1] // attention.n_head
        for head in range(attention.n_head):
            mine = slice(head * d_head, (head + 1) * d_head)
            written = args[0][..., mine] @ attention.out.weight[:, mine].T
            found[Head(name, layer, head, kind)] = written

    return hook


def patched_logits(whisper: Any, example: Example, edge: Edge, change: Tensor) -> Tensor:
    """The logits when the receiver alone reads a stream with `change` added."""
    receiver = edge.receiver
    with ExitStack() as stack:

        def change_input(norm: Any) -> None:
            hook = norm.register_forward_pre_hook(lambda _, args: (args[0] + change,))
            stack.callback(hook.remove)

        if receiver == "logits":
            change_input(whisper.decoder.ln)
        elif isinstance(receiver, MLPLayer):
            change_input(getattr(whisper, receiver.stack).blocks[receiver.layer].mlp_ln)
        else:
            _change_head(whisper, receiver, change, stack)
        return whisper(example.mel.values, example.tokens)


def _change_head(whisper: Any, receiver: HeadInput, change: Tensor, stack: ExitStack) -> None:
    head = receiver.head
    block = getattr(whisper, head.stack).blocks[head.layer]
    attention = block.attn if head.kind == "attn" else block.cross_attn
    norm = block.attn_ln if head.kind == "attn" else block.cross_attn_ln
    if head.kind == "cross_attn" and receiver.part != "q":
        norm = whisper.encoder.ln_post
    seen: list[Tensor] = []
    stack.callback(norm.register_forward_pre_hook(lambda _, a: seen.append(a[0])).remove)
    linear = {"q": attention.query, "k": attention.key, "v": attention.value}[receiver.part]
    d_head = linear.weight.shape[0] // attention.n_head
    mine = slice(head.head * d_head, (head.head + 1) * d_head)

    def put_in(_: Any, args: Any, out: Tensor) -> Tensor:
        other = F.layer_norm(seen[-1] + change, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        out = out.clone()
        out[..., mine] = F.linear(other, linear.weight, linear.bias)[..., mine]
        return out

    stack.callback(linear.register_forward_hook(put_in).remove)


def plain_scores(
    whisper: Any, base: Example, source: Example, edges: list[Edge], metric: Callable[..., Any]
) -> Tensor:
    """The metric with each edge patched."""
    ours, theirs = contributions(whisper, base), contributions(whisper, source)
    changes = {node: theirs[node] - ours[node] for node in ours}
    with torch.no_grad():
        values = [
            metric(patched_logits(whisper, base, edge, changes[edge.sender]))[0] for edge in edges
        ]
    return torch.stack(values)
