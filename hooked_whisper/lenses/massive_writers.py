"""Which components of the residual stream, and which neurons, write its massive vectors."""

import re

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.hooks.passes import first_positions
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel

_STREAM = re.compile(r"encoder\.blocks\.(\d+)\.hook_resid_(pre|mid|post)")
_MOST_NEURONS = 10


class Writers:
    """Shares of massive vectors by who wrote them, window by window.

    A component c of a vector x has the share c·x / |x|²: the shares of all components add up
    to 1, and one is negative where it wrote against the vector. The same of a neuron is
    its activation times what it writes.

    Args:
        model: The model.
        hook_name: Of the stream; of other hooks there are no writers.
    """

    def __init__(self, model: HookedWhisper, hook_name: str) -> None:
        self.model, self.hook_name = model, hook_name
        found = _STREAM.fullmatch(hook_name)
        self.is_stream = found is not None
        self._layer = int(found[1]) + (found[2] == "post") if found else 0
        self._is_mid = bool(found) and found[2] == "mid"  # type: ignore[index]
        self._n = 0
        self._sums: dict[str, float] = {}
        self._neurons: dict[int, Float[Tensor, " d_mlp"]] = {}

    def add(self, mel: Mel, limit: float) -> None:
        """Take in windows; massive is what is longer than `limit`."""
        blocks = range(self._layer + self._is_mid)
        names = [self.hook_name, "encoder.hook_*embed"]
        names += [f"encoder.blocks.{block}.hook_{kind}_out" for block in blocks for kind in _KINDS]
        names += [f"encoder.blocks.{block}.mlp.hook_post" for block in range(self._layer)]
        _, cache = self.model.run_with_cache(mel, names_filter=names)
        x = cache[self.hook_name]
        massive = first_positions(mel.n_positions, *x.shape[:2]) & (x.norm(dim=-1) > limit)
        x = x[massive].float()
        direction = x / x.square().sum(dim=-1, keepdim=True)
        last = self._layer == self.model.cfg.n_audio_layers and not self._is_mid
        parts, labels = cache.decompose_resid(
            None if last else self._layer,
            mlp_input=self._is_mid,
            return_labels=True,
            stack="encoder",
        )
        for label, part in zip(labels, parts, strict=True):
            share = float((_at(part, massive) * direction).sum())
            self._sums[label] = self._sums.get(label, 0.0) + share
        for block in range(self._layer):
            post = cache[f"encoder.blocks.{block}.mlp.hook_post"][massive].float()
            W_out = self.model.get_parameter(f"encoder.blocks.{block}.mlp.fc_out.weight").float()
            each = (post * (direction @ W_out)).sum(dim=0)
            self._neurons[block] = self._neurons.get(block, torch.zeros_like(each)) + each
        self._n += len(x)

    def shares(self) -> dict[str, float]:
        """The mean share of each component, the largest first."""
        means = {label: share / self._n for label, share in self._sums.items()}
        return dict(sorted(means.items(), key=lambda item: -abs(item[1])))

    def neurons(self) -> dict[str, float]:
        """The mean shares of the neurons with the largest."""
        found: dict[str, float] = {}
        for block, sums in self._neurons.items():
            for place in sums.abs().topk(min(_MOST_NEURONS, len(sums))).indices.tolist():
                found[f"L{block}N{place}"] = float(sums[place]) / self._n
        ordered = sorted(found.items(), key=lambda item: -abs(item[1]))
        return dict(ordered[:_MOST_NEURONS])


_KINDS = ("attn", "mlp")


def _at(part: Float[Tensor, "*batch pos d_model"], massive: Bool[Tensor, "batch pos"]) -> Tensor:
    """A component at the massive positions; the embedding of positions is the same for all."""
    return part.expand(*massive.shape, part.shape[-1])[massive].float()
