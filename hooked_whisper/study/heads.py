"""Attention heads by their scores: the highest, the lowest, and all of them in a table."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from hooked_whisper.display import table

Scores = Float[Tensor, "layer head"]


def every_head(columns: Mapping[str, Scores]) -> Markup:
    """A table with a row for each head."""
    n_layers, n_heads = next(iter(columns.values())).shape
    rows = [
        [f"{layer}.{head}", *(float(scores[layer, head]) for scores in columns.values())]
        for layer in range(n_layers)
        for head in range(n_heads)
    ]
    return table(["head (layer.head)", *columns], rows)


def highest(scores: Scores) -> tuple[str, float]:
    """The head with the highest score, as layer.head, and the score."""
    layer, head = divmod(int(scores.flatten().nan_to_num(-torch.inf).argmax()), scores.shape[1])
    return f"{layer}.{head}", float(scores[layer, head])


def lowest(scores: Scores) -> tuple[str, float]:
    """The head with the lowest score, as layer.head, and the score."""
    name, value = highest(-scores)
    return name, -value
