"""Ablation: zero, a mean, another example's value, or no layer at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.config import Stack
from hooked_whisper.errors import (
    AlignmentError,
    InterventionError,
    SiteError,
    check_count,
    shown,
)
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.edits import (
    Edit,
    HookPair,
    SiteEdit,
    check_broadcasts,
    check_fits,
    site_names,
    source_at,
    with_leading_axes,
)
from hooked_whisper.interventions.means import position_index
from hooked_whisper.interventions.sites import Part, Site, n_recordings
from hooked_whisper.model.whisper import HookedWhisper


@dataclass(frozen=True)
class ZeroAblation(SiteEdit):
    """Put in zeros: a component adds nothing, a head (at `hook_z`) reads nothing.

    Args:
        site: Where.
    """

    site: Site

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        return torch.zeros_like(old)


@dataclass(frozen=True, eq=False)
class MeanAblation(SiteEdit):
    """Put in a mean, so that only what differs between recordings or positions is lost.

    Args:
        site: Where.
        mean: What `mean_activations` gave, or a tensor of the activation's
            last axes, for instance `[d_model]`. None takes the mean over the
            site's own positions in the very run, which the encoder alone can
            do, as decoding does not know the positions to come. Padding counts
            unless the site has a `window_s` of speech.
    """

    site: Site
    mean: WhisperCache | Tensor | None = None

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        for name in site_names(self.site, model):
            if self.mean is not None:
                check_broadcasts(source_at(self.mean, name), model, name, "the mean")
            elif not name.startswith("encoder"):
                raise SiteError(
                    f"{name!r}: the decoder has no mean over positions that are yet to come. "
                    "Pass mean=mean_activations(model, examples, name)."
                )
        return super().hooks(model)

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        if self.mean is None:
            return old.mean(dim=position_index(point.axes), keepdim=True)
        mean = with_leading_axes(source_at(self.mean, point.name or ""), old.ndim)
        return part.read(mean, point, broadcasts=True)


@dataclass(frozen=True, eq=False)
class ResampleAblation(SiteEdit):
    """Put in what another example has at the same place, drawn at random.

    One example is drawn for each recording of the run. The same one serves
    all hooks, positions, decoding steps and beam-search hypotheses of it.

    Args:
        site: Where.
        cache: Other examples side by side. None draws among the recordings of
            the very run, of which none gets its own.
        seed: Of the draw: the same seed draws the same examples.
    """

    site: Site
    cache: WhisperCache | Tensor | None = None
    seed: int = 0

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        check_count("seed", self.seed, 0, InterventionError)
        for name in site_names(self.site, model):
            if self.cache is None:
                break
            source = source_at(self.cache, name)
            axes = model.hook_dict[name].axes
            if source.ndim != len(axes) or len(source) == 0:
                raise AlignmentError(
                    f"the examples for {name!r} have shape {tuple(source.shape)}; the axes must be "
                    f"{axes}, with a row for each. Cache them without remove_batch_dim."
                )
            check_fits(source, model, name, "the examples")
        return super().hooks(model)

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        name = point.name or ""
        n_of_run = n_recordings(name, len(old))
        if self.cache is None:
            return old[self._rows(len(old), n_of_run, None)]
        source = source_at(self.cache, name)
        return part.read(source, point)[self._rows(len(old), n_of_run, len(source))]

    def _rows(self, n_rows: int, n_recordings: int, n_source: int | None) -> Tensor:
        """The source's row for each row of the run."""
        generator = torch.Generator().manual_seed(self.seed)
        n_group = n_rows // n_recordings
        if n_source is not None:
            drawn = torch.randint(n_source, (n_recordings,), generator=generator)
            return drawn.repeat_interleave(n_group)
        if n_recordings < 2:
            raise InterventionError(
                "ResampleAblation without a cache draws among the recordings of a run, and this "
                "run has one. Pass a cache of other examples."
            )
        # One round trip through all recordings in random order: none comes to itself.
        order = torch.randperm(n_recordings, generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        return (other[:, None] * n_group + torch.arange(n_group)).flatten()


@dataclass(frozen=True)
class SkipLayer(Edit):
    """Leave a layer out: the residual stream leaves it as it came, bit for bit.

    All that the layer would add is zero.

    Args:
        stack: `"encoder"` or `"decoder"`.
        layer: The layer; negative ones count from the end.
    """

    stack: Stack
    layer: int

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        check_stack(self.stack)
        n_layers = model.cfg.n_layers(self.stack)
        if type(self.layer) is not int or not -n_layers <= self.layer < n_layers:
            raise SiteError(
                f"no {self.stack} layer {shown(self.layer)} to skip: this model has "
                f"{self.stack} layers 0 to {n_layers - 1}."
            )
        added = ["hook_attn_out", "hook_mlp_out"]
        if self.stack == "decoder":
            added.insert(1, "hook_cross_attn_out")
        block = f"{self.stack}.blocks.{self.layer % n_layers}"
        return ZeroAblation(Site([f"{block}.{name}" for name in added])).hooks(model)


def ablate_head_everywhere(
    stack: Stack, head: int | Sequence[int], kind: str = "attn"
) -> ZeroAblation:
    """Zero one head index in all layers of a stack.

    Args:
        stack: `"encoder"` or `"decoder"`.
        head: The head, or several.
        kind: `"attn"`, self-attention, or `"cross_attn"`.

    Raises:
        SiteError: A stack without such attention.

    Source: Calm-Whisper (2505.12969), where 3 of 20 decoder heads cause most hallucinations.

    >>> ablate_head_everywhere("decoder", 2).site.name
    'decoder.blocks.*.attn.hook_z'
    """
    check_kind(stack, kind)
    return ZeroAblation(Site(f"{stack}.blocks.*.{kind}.hook_z", head=head))


def check_stack(stack: Any) -> None:
    """Refuse what is no stack."""
    if stack not in ("encoder", "decoder"):
        raise SiteError(f'stack is {stack!r}; it can be "encoder" or "decoder".')


def check_kind(stack: Any, kind: Any) -> None:
    """Refuse an attention that a stack does not have."""
    check_stack(stack)
    allowed = ("attn",) if stack == "encoder" else ("attn", "cross_attn")
    if kind not in allowed:
        raise SiteError(f"kind is {kind!r}; the {stack} has {' and '.join(map(repr, allowed))}.")
