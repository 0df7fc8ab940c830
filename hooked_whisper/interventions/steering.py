"""Steering: add a direction to activations, or take it out of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import (
    AlignmentError,
    CacheError,
    InputError,
    InterventionError,
    SiteError,
    check_number,
    shown,
)
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.passes import first_positions
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.edits import (
    HookPair,
    SiteEdit,
    check_broadcasts,
    site_names,
    source_at,
    with_leading_axes,
)
from hooked_whisper.interventions.sites import Part, Site
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import positions_of


@dataclass(frozen=True, eq=False)
class Steer(SiteEdit):
    """Add a vector, times a strength.

    Args:
        site: Where; `window_s` limits it to a time, `pos` to positions.
        vector: As wide as the activation's last axis, such as `[d_model]`; or
            with more of its last axes, such as `[pos d_model]` for a vector of
            each position of a whole run. An axis of length 1 serves all.
        strength: What to multiply it with; negative steers away.

    Source: Turner et al. 2023 (2308.10248).
    """

    site: Site
    vector: Float[Tensor, "*shape"]
    strength: float | int = 1.0

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        _check_numbers(self.vector, "the vector")
        check_number("strength", self.strength, InterventionError)
        for name in site_names(self.site, model):
            check_broadcasts(self.vector, model, name, "the vector")
        return super().hooks(model)

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        vector = with_leading_axes(self.vector, old.ndim)
        return old + float(self.strength) * part.read(vector, point, broadcasts=True).to(old)


@dataclass(frozen=True, eq=False)
class ProjectOut(SiteEdit):
    """Take out what lies along a direction, or in the subspace of several.

    What remains is orthogonal to each of them.

    Args:
        site: Where; it has whole vectors, so no `neuron`.
        direction: `[width]` or `[direction width]`, as wide as the
            activation's last axis; their lengths do not matter.

    Source: Ravfogel et al. 2020 (2004.07667), the projection onto a nullspace.
    """

    site: Site
    direction: Float[Tensor, "*direction width"]

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        if self.site.neuron is not None:
            raise SiteError("ProjectOut acts on whole vectors; leave neuron out of the site.")
        if self.direction.ndim not in (1, 2):
            raise AlignmentError(
                f"direction has shape {tuple(self.direction.shape)}; it must be [width] or "
                "[direction width]."
            )
        _check_numbers(self.direction, "the direction")
        if bool((self.direction.norm(dim=-1) == 0).any()) or self.direction.numel() == 0:
            raise InterventionError("a direction is zero, which points nowhere; leave it out.")
        for name in site_names(self.site, model):
            axes, width = model.hook_dict[name].axes, model.axis_sizes(name)[-1]
            if not axes[-1].startswith("d_") and axes[-1] != "vocab":
                raise SiteError(f"{name!r} has axes {axes}: no vectors on the last one.")
            if self.direction.shape[-1] != width:
                raise AlignmentError(
                    f"direction has shape {tuple(self.direction.shape)}; the vectors at {name!r} "
                    f"are {width} wide."
                )
        return super().hooks(model)

    def change(self, old: Tensor, part: Part, point: HookPoint) -> Tensor:
        basis, wide = self._basis.to(old.device), old.float()
        return wide - (wide @ basis.T) @ basis

    @cached_property
    def _basis(self) -> Float[Tensor, "direction width"]:
        """Orthogonal unit vectors that span the directions."""
        directions = self.direction.reshape(-1, self.direction.shape[-1]).double()
        directions = directions / directions.norm(dim=-1, keepdim=True)
        _, sizes, basis = torch.linalg.svd(directions, full_matrices=False)
        # Directions that depend on others add nothing but rounding.
        return basis[sizes > 1e-6 * sizes[0]].float()


def class_mean_difference(
    positive: Any,
    negative: Any,
    name: str | tuple[Any, ...] | None = None,
    *,
    unit_norm: bool = False,
    all_frames: bool = False,
) -> Float[Tensor, "*shape"]:
    """The mean activation of one class less that of another: a steering vector.

    Every position counts the same, so that longer recordings count more.

    Args:
        positive: Caches (one or several) of recordings of the one class, or
            tensors whose last axis is the width.
        negative: The same of the other class.
        name: Which activation of the caches, by name or shorthand.
        unit_norm: Divide by the difference's length.
        all_frames: Count padding too; by default encoder positions of caches
            count where there is sound. (Tensors are counted whole.)

    Returns:
        float32; `[d_model]` for the residual stream, `[head d_head]` for heads.

    Raises:
        InputError: No activations, or others than described.
        CacheError: Caches that do not hold this, or do not know how much is sound.
        InterventionError: Classes of the same mean, whose difference points nowhere.

    Source: Rimsky et al. 2024 (2312.06681), the mean-difference vector.

    >>> class_mean_difference(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.zeros(1, 2))
    tensor([2., 1.])
    """
    means = [
        _class_mean(each, name, all_frames, what)
        for each, what in ((positive, "positive"), (negative, "negative"))
    ]
    if means[0].shape != means[1].shape:
        raise AlignmentError(
            f"the positive class has width {tuple(means[0].shape)} and the negative one "
            f"{tuple(means[1].shape)}. Take both from the same activation."
        )
    difference = means[0] - means[1]
    length = difference.norm()
    if not unit_norm:
        return difference.float()
    if length == 0:
        raise InterventionError("both classes have the same mean: there is no direction.")
    return (difference / length).float()


def _class_mean(source: Any, name: Any, all_frames: bool, what: str) -> Tensor:
    """The mean over all rows and positions, in float64."""
    sources = [source] if isinstance(source, (WhisperCache, Tensor)) else source
    if not isinstance(sources, Iterable):
        raise InputError(f"the {what} class is {shown(source)}. Pass caches or tensors.")
    sources = list(sources)
    if not sources:
        raise InputError(f"the {what} class is empty. Pass at least one cache or tensor.")
    total: Any = 0
    count = 0
    for each in sources:
        vectors = _vectors(each, name, all_frames)
        total, count = total + vectors.double().sum(dim=0), count + len(vectors)
    if count == 0:
        raise InputError(f"the {what} class holds no sound. Pass all_frames=True to count padding.")
    return total / count


def _vectors(source: Any, name: Any, all_frames: bool) -> Tensor:
    """One activation's values over rows and positions, which become the first axis."""
    if isinstance(source, Tensor):
        if source.ndim == 0:
            raise InputError("a class is one number; it must be vectors, such as [pos d_model].")
        return source.reshape(-1, source.shape[-1])
    if not isinstance(source, WhisperCache):
        raise InputError(f"a class holds a {type(source).__name__}; it can hold caches or tensors.")
    if name is None:
        raise InputError("name is missing: which activation of the caches to compare?")
    axes, value = source.axes(name), source[name]
    if "key" in axes and "query" in axes:
        raise InputError(f"{source.full_name(name)!r} has no vectors; its axes are {axes}.")
    kept = [axis for axis in axes if axis not in ("batch", "pos", "key", "frame")]
    counted = [axis for axis in axes if axis not in kept]
    value = value.permute(*(axes.index(axis) for axis in [*counted, *kept]))
    rows = value.flatten(0, len(counted) - 1) if counted else value[None]
    along = [axis for axis in counted if axis != "batch"]
    has_padding = along and (source.full_name(name).startswith("encoder") or "key" in along)
    if all_frames or not has_padding or value.shape[counted.index(along[0])] == 1:
        return rows
    if source.n_frames is None:
        raise CacheError(
            "the cache does not know how much of its recordings is sound, as it was run on a plain "
            "tensor. Run it on model.to_mel(audio), or pass all_frames=True."
        )
    n_rows, n_pos = value.shape[:2] if len(counted) == 2 else (1, len(value))
    if n_rows != len(source.n_frames):
        raise CacheError(f"the cache has {n_rows} rows and the lengths of {len(source.n_frames)}.")
    n_sound = source.n_frames if along[0] == "frame" else positions_of(source.n_frames)
    return rows[first_positions(n_sound, n_rows, n_pos).flatten().to(rows.device)]


def _check_numbers(vector: Tensor, what: str) -> None:
    vector = source_at(vector, what)
    if not vector.is_floating_point() or not bool(torch.isfinite(vector).all()):
        raise InterventionError(
            f"{what} has dtype {vector.dtype}, shape {tuple(vector.shape)}; it must be finite "
            "floating-point numbers."
        )
