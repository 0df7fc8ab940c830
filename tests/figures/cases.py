"""One small example of each figure, the same on every machine: no random numbers, no model."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_whisper import figures

WORDS = [("three", 0.3, 0.8), ("one", 1.0, 1.4)]
TOKENS = ["<|en|>", " three", " one", " $5"]


def wave(*shape: int) -> Tensor:
    """Numbers in 0 to 1 without a period that a picture could hide."""
    n = math.prod(shape)
    return (
        (0.5 + 0.5 * torch.sin(torch.arange(n).double().square() * 0.0137 + 0.4))
        .float()
        .view(shape)
    )


def mel() -> Tensor:
    """A voice that glides for 0.5 s, pauses and glides on, in a window of 3 s."""
    band, frame = torch.arange(80.0)[:, None], torch.arange(300.0)
    glide = torch.exp(-((band - 15 - 20 * torch.sin(frame / 30)) ** 2) / 60)
    return glide * ((frame % 70) > 25) * (frame < 160) * 1.5 - 0.7


def diagonal(n_query: int, n_key: int, width: float = 6.0) -> Tensor:
    """Attention that moves on with the queries; each row sums to 1."""
    middle = (torch.arange(n_query) + 0.5)[:, None] * n_key / n_query
    return (-(((torch.arange(n_key) - middle) / width) ** 2)).softmax(dim=-1)


def circuit() -> tuple[list[Any], list[Any]]:
    """Five nodes of both stacks, and edges of each kind, one of which works against the metric."""
    nodes = [
        figures.CircuitNode("encoder.embed", "sound", "encoder", 0, "embed", 0, 1, "embed"),
        figures.CircuitNode("encoder.0.attn.1", "0.1", "encoder", 1, "heads 0", 1, 3, "head"),
        figures.CircuitNode("encoder.0.mlp", "MLP 0", "encoder", 2, "", 0, 1, "mlp"),
        figures.CircuitNode("decoder.0.cross_attn.2", "0.2", "decoder", 2, "cross 0", 2, 3, "head"),
        figures.CircuitNode("logits", "logits", "decoder", 4, "", 0, 1, "logits"),
    ]
    ends = [(0, 1, "v", 0.3), (0, 2, "", 0.1), (1, 2, "", -0.2), (2, 3, "k", 0.2)]
    ends += [(1, 3, "v", 0.15), (3, 4, "", 0.4)]
    edges = [
        figures.CircuitEdge(f"{start}-{end}", nodes[start].name, nodes[end].name, part, score)
        for start, end, part, score in ends
    ]
    return nodes, edges


def log(rate: float) -> list[dict[str, Any]]:
    return [
        {
            "step": 100 * i,
            "n_vectors": 50_000 * i,
            "loss": rate * math.exp(-i / 5) + 0.1,
            "fvu": 0.5 * math.exp(-i / 6) + 0.02 * rate,
            "l0": 32 + 100 * math.exp(-i / 3),
            "dead": None if i < 3 else 0.01 * i * rate,
        }
        for i in range(20)
    ]


def with_nan(values: Tensor) -> Tensor:
    values = values.clone()
    values[..., 1, 2] = math.nan
    return values


CASES: dict[str, Callable[[], Any]] = {
    "plot_attribution": lambda: figures.plot_attribution(
        4 * wave(30) - 2, [f"L{i // 6}H{i % 6}" for i in range(30)], n=8, title="By head"
    ),
    "plot_by_layer": lambda: figures.plot_by_layer(
        {"norm": {"encoder": 9 * wave(4), "decoder": wave(4)}, "kurtosis": {"encoder": wave(4)}},
        layers=["embed", "0", "1", "2"],
    ),
    "plot_circuit": lambda: figures.plot_circuit(
        *circuit(),
        mel=mel(),
        sound_s=1.6,
        words=WORDS,
        carried=[(0.3, 0.6, 0.4), (0.6, 0.9, 0.2), (1.0, 1.3, -0.1)],
        title="A circuit",
    ),
    "plot_confusion": lambda: figures.plot_confusion(
        wave(3, 4),
        ["plosive", "nasal", "vowel"],
        ["plosive", "nasal", "vowel", "(none)"],
        title="By",
    ),
    "plot_cosine_matrix": lambda: figures.plot_cosine_matrix(
        1.4 * wave(4, 4) - 0.4, ["embed", "0", "1", "2"]
    ),
    "plot_cross_attention": lambda: figures.plot_cross_attention(
        mel(),
        diagonal(4, 150),
        TOKENS,
        path=torch.tensor([0.3, math.nan, 1.1, 1.5]),
        sound_s=1.6,
        spans_s=WORDS,
        title="Where each token looks",
    ),
    "plot_density": lambda: figures.plot_density(
        {"k = 8": 10 ** (-3 * wave(300)), "k = 16": wave(300).where(wave(300) > 0.1, 0.0)}
    ),
    "plot_encoder_lens": lambda: figures.plot_encoder_lens(
        torch.tensor([0.1, 0.5, 0.9]), [0, 1, 2], ["", "three", "three one"], label="p(three one)"
    ),
    "plot_entropy": lambda: figures.plot_entropy(
        {"encoder": 7 * wave(4, 6), "decoder": with_nan(wave(4, 6))}, title="All heads"
    ),
    "plot_head_scores": lambda: figures.plot_head_scores(
        {"encoder": with_nan(2 * wave(4, 6) - 1), "decoder": wave(2, 3)},
        label="change of the loss (nats)",
        diverging=True,
    ),
    "plot_histograms": lambda: figures.plot_histograms(
        {f"layer {i}": (wave(20 + i).mul(99).long(), torch.linspace(-3, 3, 21 + i)) for i in (0, 1)}
    ),
    "plot_latents": lambda: figures.plot_latents(
        diagonal(5, 75).T, [f"latent {i}" for i in range(5)], words=WORDS, title="Latents"
    ),
    "plot_logit_lens": lambda: figures.plot_logit_lens(
        wave(4, 6),
        [[f" w{i}{j}" for j in range(6)] for i in range(4)],
        ["embed", "0", "1", "2"],
        [f"{j}\n w{j}" for j in range(6)],
    ),
    "plot_learning_curve": lambda: figures.plot_learning_curve(
        [
            {"minutes": n, "fvu": 0.1 / n, "held_out_fvu": 0.3 + 1 / n}
            | {"held_out_fvu_without_massive": 0.2 + 1 / n}
            for n in (2.5, 5.0, 10.0, 20.0)
        ],
        title="More sound",
    ),
    "plot_massive_activations": lambda: figures.plot_massive_activations(
        torch.where(torch.arange(150) % 60 == 20, 20.0, 1 + 0.3 * wave(150)),
        wave(150),
        torch.tensor([0.0, 900.0, 300.0, 4.0, 0.0, 0.0, 3.0]),
        torch.logspace(-0.3, 1.4, 8),
        torch.where(torch.arange(48) == 17, 40.0, wave(48)),
        {"2_mlp_out": 0.95, "embed": 0.1, "1_attn_out": -0.05},
        title="Planted",
    ),
    "plot_mel": lambda: figures.plot_mel(
        mel(),
        sound_s=1.6,
        words=WORDS,
        overlay=diagonal(4, 150)[2],
        activations={"latent 3": 4 * wave(150), "latent 9": wave(150)},
        show_padding=True,
        title="A voice",
    ),
    "plot_offsets": lambda: figures.plot_offsets(
        {f"layer {i}": (0.1 + wave(21).roll(i)) / 20 for i in (0, 1)}, title="By distance"
    ),
    "plot_patching": lambda: figures.plot_patching(
        with_nan(wave(4, 3)),
        [f"layer {i}" for i in range(4)],
        ["three → one", "one", "four"],
        label="probability",
    ),
    "plot_pattern": lambda: figures.plot_pattern(diagonal(1000, 1000, 0.5), title="A thin line"),
    "plot_patterns": lambda: figures.plot_patterns(
        torch.stack([diagonal(4, 4, each) for each in (0.5, 1, 2, 9, 1)]),
        query_labels=TOKENS,
        key_labels=TOKENS,
    ),
    "plot_probes": lambda: figures.plot_probes(
        torch.tensor([[0.5, 0.4, 0.6], [0.7, 0.6, 0.8]]),
        ["encoder.blocks.0.hook_resid_post", "encoder.blocks.1.hook_resid_post"],
        {"chance": 0.1, "mel": 0.3},
        label="accuracy",
    ),
    "plot_sources": lambda: figures.plot_sources(
        2 * wave(3, 8) - 1,
        [(i / 5, i / 5 + 0.2) for i in range(8)],
        TOKENS[1:],
        label="logit",
        spans_s=WORDS,
    ),
    "plot_sweep": lambda: figures.plot_sweep(
        with_nan(wave(2, 3, 4)),
        ["encoder.attn", "decoder.cross_attn"],
        [0, 1, 2],
        [(i / 2, i / 2 + 0.5) for i in range(4)],
        "window_s",
        label="effect",
    ),
    "plot_training": lambda: figures.plot_training({"topk": log(1.0), "relu": log(2.0)}),
    "plot_trajectories": lambda: figures.plot_trajectories(
        wave(5, 3), [f"{i} resid_post" for i in range(5)], TOKENS[1:], x_label="site"
    ),
}
"""A call of each figure."""
