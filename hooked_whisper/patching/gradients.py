"""Both runs of a pair, and the metric's gradients at some sites between them."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import MetricError
from hooked_whisper.hooks.attached import frozen
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import GRADIENT_SUFFIX, Collector
from hooked_whisper.hooks.points import HookPoint, is_watched
from hooked_whisper.hooks.root import Hook
from hooked_whisper.interventions.edits import Patch
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import Site
from hooked_whisper.metrics.base import check_values, metric_name
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import given_values
from hooked_whisper.patching.partial_forward import ENCODER_OUTPUT, BaseRun

INPUTS = ("encoder.hook_mel", "decoder.hook_embed")
"""What moves along a straight line from one run to the other."""


class GradientRuns:
    """Both runs of a pair, and the gradients between them."""

    def __init__(
        self,
        model: HookedWhisper,
        number: int,
        base: Example,
        source: Example | WhisperCache | None,
        names: list[str],
        metric: Any,
    ) -> None:
        self.model, self.number, self.base, self.metric = model, number, base, metric
        needed = list(dict.fromkeys([*names, *INPUTS, ENCODER_OUTPUT]))
        self.of_base, self.base_value = self._run(base, needed)
        if isinstance(source, Example):
            self.of_source, self.source_value = self._run(source, needed)
        else:
            self.source_value = torch.tensor(torch.nan)
            self.of_source = {name: _given(model, source, name, self.of_base) for name in names}

    def _run(self, example: Example, names: list[str]) -> tuple[Any, Tensor]:
        with torch.no_grad():
            logits, cache = self.model.run_with_cache(
                example.mel, example.tokens, names_filter=names
            )
        return cache, check_values(self.metric(logits), 1, self.metric)[0]

    def change(self, name: str) -> Tensor:
        """Source less base; 0 where both are the same, as masked scores of -inf are."""
        source, base = self.of_source[name], self.of_base[name]
        return torch.where(source == base, 0.0, source - base)

    def estimates(
        self, sites: Sequence[tuple[str, Site]], gradients: dict[str, Tensor]
    ) -> Float[Tensor, " site"]:
        """The metric with each of some sites patched, by gradients there."""
        products = {name: self.change(name) * each for name, each in gradients.items()}
        found = []
        for name, site in sites:
            part = site.part(self.model.hook_dict[name], products[name].shape)
            change = 0.0 if part is None else products[name][part.local_index].sum()
            found.append(float(self.base_value + change))
        return torch.tensor(found)

    def true_values(
        self, sites: Sequence[tuple[str, Site]], max_bytes: int
    ) -> Float[Tensor, " site"]:
        """The metric with each of some sites patched."""
        in_encoder = any(name.startswith("encoder") for name, _ in sites)
        audio = None if in_encoder else self.of_base[ENCODER_OUTPUT]
        names = list(dict.fromkeys(name for name, _ in sites))
        run = BaseRun(self.model, self.base, names, self.metric, audio)
        rows = [run.row(name, Patch(site, self.of_source[name])) for name, site in sites]
        values = torch.full((len(rows),), torch.nan)
        for numbers in run.groups(rows, max_bytes):
            values[numbers] = run.measure([run.resume([rows[number] for number in numbers])])
        return values

    def averaged(self, names: list[str], n_steps: int, along: str) -> dict[str, Tensor]:
        """The gradients at some sites, over the middles of `n_steps` steps from base to source."""
        if along == "sites" and len(names) > 1:
            return {name: self.averaged([name], n_steps, along)[name] for name in names}
        moving = [] if n_steps == 1 else names if along == "sites" else list(INPUTS)
        shares = [(step + 0.5) / n_steps if n_steps > 1 else 0.0 for step in range(n_steps)]
        steps = [self.gradients(names, moving, share) for share in shares]
        return {name: torch.stack([step[name] for step in steps]).mean(dim=0) for name in names}

    def gradients(self, names: list[str], moving: list[str], share: float) -> dict[str, Tensor]:
        """The metric's gradient at some sites, with others on their way from base to source."""

        def move(value: Tensor, hook: HookPoint) -> Tensor:
            name = hook.name or ""
            return self.of_base[name] + share * self.change(name)

        collector = Collector(with_gradients=True, copy=is_watched(*self.model.hook_dict.values()))
        hooks: list[Hook] = [(moving, move)] if moving else []
        needed = [each for each in self.model.parameters() if each.requires_grad]
        with (
            torch.enable_grad(),
            frozen(needed),
            self.model.hooks(fwd_hooks=[*hooks, (names, collector)]),
        ):
            value = check_values(self.metric(self._logits([*names, *moving])), 1, self.metric)
            if not value.requires_grad:
                raise MetricError(
                    f"{metric_name(self.metric)} has no gradient, so that nothing can be estimated "
                    "from it. Use one that has, such as LogProb or LogitDifference, or patch_sweep."
                )
            value.sum().backward()
        found = collector.tensors
        return {name: found.get(name + GRADIENT_SUFFIX, 0 * found[name]) for name in names}

    def _logits(self, names: list[str]) -> Tensor:
        if any(name.startswith("encoder") for name in names):
            return self.model(self.base.mel, self.base.tokens)
        audio = self.of_base[ENCODER_OUTPUT]
        return self.model(None, self.base.tokens, encoder_output=audio)


def _given(
    model: HookedWhisper, source: WhisperCache | None, name: str, of_base: WhisperCache
) -> Tensor:
    """What is put in at a site: from a cache, or zeros."""
    if source is None:
        return torch.zeros_like(of_base[name])
    return given_values(model, source, name, of_base[name].shape)
