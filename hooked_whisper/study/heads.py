"""Numbers of every attention head, averaged over clips as they come."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.study.exhibits import Table, number


class HeadMeans:
    """The mean over clips of each score of each head of one kind of attention; NaN is left out.

    Args:
        n_layers: Layers of the stack.
        n_heads: Heads of each.
        columns: The scores, as `analysis.head_table` calls them.
    """

    def __init__(self, n_layers: int, n_heads: int, columns: Sequence[str]) -> None:
        shape = (n_layers, n_heads)
        self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name in columns}
        self._counts = {name: torch.zeros(shape, dtype=torch.int64) for name in columns}

    def add(self, layer: int, scores: Any) -> None:
        """Take in one layer of one clip.

        Args:
            layer: Which.
            scores: By name a number of each head, such as the `head_table` of this layer.
        """
        for name in self._sums:
            values = torch.as_tensor(scores[name], dtype=torch.float64)
            self._sums[name][layer] += values.nan_to_num()
            self._counts[name][layer] += ~values.isnan()

    def __getitem__(self, name: str) -> Float[Tensor, "layer head"]:
        """The mean of a score, NaN for heads that never had one."""
        return (self._sums[name] / self._counts[name]).float()

    def to_dict(self) -> dict[str, list[list[float]]]:
        """Every mean, `[layer][head]`."""
        return {name: self[name].tolist() for name in self._sums}


def heads_table(
    columns: dict[str, Float[Tensor, "layer head"]], caption: str, digits: int = 2
) -> Table:
    """Every head in a row of its own."""
    n_layers, n_heads = next(iter(columns.values())).shape
    rows = [
        [
            f"{layer}.{head}",
            *(number(float(each[layer, head]), digits) for each in columns.values()),
        ]
        for layer in range(n_layers)
        for head in range(n_heads)
    ]
    return Table(["head (layer.head)", *columns], rows, caption)


def highest(scores: Float[Tensor, "layer head"]) -> tuple[str, float]:
    """The head with the highest score, as layer.head, and the score."""
    flat = scores.flatten().nan_to_num(-torch.inf)
    place = int(flat.argmax())
    return _name(place, scores.shape[1]), float(scores.flatten()[place])


def lowest(scores: Float[Tensor, "layer head"]) -> tuple[str, float]:
    """The head with the lowest score, as layer.head, and the score."""
    name, value = highest(-scores)
    return name, -value


def _name(place: int, n_heads: int) -> str:
    return f"{place // n_heads}.{place % n_heads}"
