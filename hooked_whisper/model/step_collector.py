"""The activations of every decoding step, joined into the cache of one pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_whisper.hooks.cache import WhisperCache


class StepCollector:
    """A forward hook that keeps each step's activations and joins them along their positions.

    Steps see ever more keys. Where a step's queries did not see a later key
    yet, the joined pattern holds 0 and the joined scores -inf: what the
    causal mask gives in one pass.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[Tensor]] = {}
        self._axes: dict[str, tuple[str, ...]] = {}

    def __call__(self, value: Tensor, *, hook: Any) -> None:
        """Keep a copy of one step's activation."""
        self._steps.setdefault(hook.name, []).append(value.detach().clone())
        self._axes[hook.name] = hook.axes

    def join(self, names: list[str], n_layers: dict[str, int]) -> WhisperCache:
        """The cache of all steps, with names in the given order."""
        joined = {name: self._join(name) for name in names if name in self._steps}
        return WhisperCache(joined, self._axes, n_layers=n_layers)

    def _join(self, name: str) -> Tensor:
        steps, axes = self._steps[name], self._axes[name]
        if len(steps) == 1:
            return steps[0]
        if "query" in axes:
            n_keys = max(step.shape[-1] for step in steps)
            unseen = float("-inf") if name.endswith("hook_attn_scores") else 0.0
            steps = [F.pad(step, (0, n_keys - step.shape[-1]), value=unseen) for step in steps]
        return torch.cat(steps, dim=axes.index("query" if "query" in axes else "pos"))
