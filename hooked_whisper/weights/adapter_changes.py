"""What an adapter of peft does to a weight.

    weight of a linear map      W + s B A
    of a convolution            W + s (B A, over the kernel)
    of the token embedding      W + s (B A)^T
    of any of them with DoRA    m V / |V|, V as above, |V| over all but the axis of outputs
    s                           alpha / r, with rsLoRA alpha / sqrt(r)

Source: `merge` of the layers in `peft.tuners.lora`; Hu et al. 2021; Kalajdzievski 2023 (rsLoRA);
Liu et al. 2024 (DoRA).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hooked_whisper.weights.files import StoredTensor

Change = Callable[[Tensor], Tensor]
"""From a weight of the base to the one with the adapter, both in float32."""


@dataclass
class Adapter:
    """What an adapter makes of each weight that it touches."""

    source: str
    changes: dict[str, Change] = field(default_factory=dict)
    """By hooked_whisper's names."""

    def then(self, name: str, change: Change) -> None:
        """Have a weight changed, after what changes it already."""
        first = self.changes.get(name)
        self.changes[name] = change if first is None else Both(first, change)


@dataclass(frozen=True)
class Both:
    first: Change
    second: Change

    def __call__(self, weight: Tensor) -> Tensor:
        return self.second(self.first(weight))


@dataclass(frozen=True)
class LowRank:
    """The sum of a weight and a product, with DoRA at a learned length."""

    down: Tensor
    up: Tensor
    scaling: float
    magnitude: Tensor | None = None
    is_embedding: bool = False

    def __call__(self, weight: Tensor) -> Tensor:
        up, down = (each.to(weight.device).flatten(1) for each in (self.up, self.down))
        product = up @ down
        product = product.T if self.is_embedding else product.reshape(weight.shape)
        changed = weight + self.scaling * product
        if self.magnitude is None:
            return changed
        length = self.magnitude.to(weight.device).flatten()
        if self.is_embedding:
            return changed * (length / changed.norm(dim=0))
        norm = changed.flatten(1).norm(dim=1)
        return changed * (length / norm).reshape(-1, *[1] * (changed.ndim - 1))


@dataclass(frozen=True)
class Instead:
    """Another tensor; of an embedding, some rows."""

    value: Tensor
    rows: list[int] | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        value = self.value.to(weight.device)
        if self.rows is None:
            return value.clone()
        weight = weight.clone()
        weight[self.rows] = value
        return weight


@dataclass(frozen=True)
class Added:
    value: Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        return weight + self.value.to(weight.device)


@dataclass(frozen=True)
class MoreRows:
    """An embedding and, behind its rows, those of another one from there on."""

    first: StoredTensor
    whole: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    def take(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        values = self.whole.take(device, dtype)
        n_rows = min(len(values), self.first.shape[0])
        values[:n_rows] = self.first.take(device, dtype)[:n_rows]
        return values
