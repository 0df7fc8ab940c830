"""Where an autoencoder is judged: the hook that it reads and the one that it replaces."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.config import Stack
from hooked_whisper.errors import InputError, SpliceError
from hooked_whisper.hooks.splice import configured, site_written
from hooked_whisper.model.whisper import HookedWhisper

VECTORS_AT_ONCE = 4096
"""Vectors that are encoded side by side: their latents are what takes memory."""


@dataclass(frozen=True, eq=False)
class JudgedSite:
    """An autoencoder at its hooks, checked to fit them.

    Args:
        sae: Anything with `encode` and `decode`.
        hook_name: What it reads.
        hook_name_out: What it replaces; the same, but for transcoders.
        d_in: Width of what it reads.
        d_out: Width of what it writes.
        d_sae: Number of its latents.
        dtype: What it computes in.
    """

    sae: Any
    hook_name: str
    hook_name_out: str
    d_in: int
    d_out: int
    d_sae: int
    dtype: torch.dtype

    @property
    def stack(self) -> Stack:
        """Whether it sits in the encoder, along time, or in the decoder, along the text."""
        return "encoder" if self.hook_name_out.startswith("encoder") else "decoder"

    @property
    def stream_layer(self) -> int | None:
        """The block behind which it replaces the encoder's residual stream itself, if it does."""
        found = re.fullmatch(r"encoder\.blocks\.(\d+)\.hook_resid_post", self.hook_name)
        return int(found[1]) if found and self.hook_name_out == self.hook_name else None

    def encode(self, x: Float[Tensor, "vector d_in"]) -> Float[Tensor, "vector latent"]:
        """The latents of vectors.

        Raises:
            SpliceError: They have another shape, or are not finite.
        """
        latents = self.sae.encode(x.to(self.dtype))
        return self._checked("latents", latents, (len(x), self.d_sae))

    def decode(self, latents: Float[Tensor, "vector latent"]) -> Float[Tensor, "vector d_out"]:
        """What latents stand for.

        Raises:
            SpliceError: It has another shape, or is not finite.
        """
        recons = self.sae.decode(latents)
        return self._checked("reconstruction", recons, (len(latents), self.d_out))

    def reconstruct(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "vector d_out"]:
        """The vectors of an activation, encoded and decoded."""
        parts = x.reshape(-1, self.d_in).split(VECTORS_AT_ONCE)
        return torch.cat([self.decode(self.encode(part)) for part in parts])

    def _checked(self, what: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != shape:
            raise SpliceError(
                f"the {what} of the autoencoder at {self.hook_name!r} is {_describe(value)}; it "
                f"must be a tensor of shape {shape}."
            )
        # One sum is quick and shows every NaN and infinity; it may overflow, so then look closely.
        if not torch.isfinite(value.detach().sum(dtype=torch.float32)):
            bad = ~torch.isfinite(value)
            if bool(bad.any()):
                vector, place = bad.nonzero()[0].tolist()
                raise SpliceError(
                    f"the {what} of the autoencoder at {self.hook_name!r} has {int(bad.sum())} "
                    f"values that are NaN or infinite, the first in vector {vector}, place "
                    f"{place}. Check its weights."
                )
        return value


@torch.no_grad()
def judged_site(
    model: HookedWhisper, sae: Any, hook_name: str | None = None, hook_name_out: str | None = None
) -> JudgedSite:
    """An autoencoder at a hook of the model, once it is sure that it fits.

    Args:
        model: The model.
        sae: Anything with `encode` and `decode`.
        hook_name: What it reads; None is what its configuration says.
        hook_name_out: What it replaces; None is what its configuration says,
            or what it reads.

    Raises:
        HookNameError: No such hook, or one behind a flag that is off.
        SpliceError: It has no `encode` or `decode`, no hook is known, or it
            does not fit: width, shape, values that are not finite.
    """
    for method in ("encode", "decode"):
        if not callable(getattr(sae, method, None)):
            raise SpliceError(
                f"{type(sae).__name__} has no {method}; an autoencoder is anything with encode(x) "
                "and decode(latents)."
            )
    hook_name = configured(sae, "hook_name") if hook_name is None else hook_name
    if hook_name is None:
        raise SpliceError(
            f"the configuration of this {type(sae).__name__} names no hook. Say where to judge it: "
            'hook_name="encoder.blocks.2.hook_resid_post".'
        )
    hook_name_out = site_written(sae, hook_name, hook_name_out)
    if str(hook_name).split(".")[0] != str(hook_name_out).split(".")[0]:
        raise SpliceError(
            f"the autoencoder reads {hook_name!r} and writes {hook_name_out!r}; both must be in "
            "the encoder, or both in the decoder, to be judged."
        )
    stated = configured(sae, "d_in")
    widths = _widths(model, hook_name)
    if stated is not None and stated not in widths:
        raise SpliceError(
            f"the autoencoder reads vectors of {stated} numbers; {hook_name!r} gives {widths[0]}. "
            "Judge it at the hook that it was trained on."
        )
    d_in = stated or widths[0]
    widths_out = _widths(model, hook_name_out)
    d_out = d_in if hook_name_out == hook_name else widths_out[0]
    dtype = _dtype(sae)
    zeros = torch.zeros(1, d_in, dtype=dtype, device=model.device)
    try:
        latents = sae.encode(zeros)
        recons = sae.decode(latents)
    except RuntimeError as error:
        raise SpliceError(
            f"the autoencoder cannot encode and decode a vector of {d_in} numbers, as "
            f"{hook_name!r} gives: {error}"
        ) from error
    if not isinstance(latents, Tensor) or latents.ndim != 2 or len(latents) != 1:
        raise SpliceError(
            f"encode gave {_describe(latents)} for the vectors [1, {d_in}] of {hook_name!r}; it "
            "must give [1, latents]."
        )
    site = JudgedSite(sae, hook_name, hook_name_out, d_in, d_out, latents.shape[1], dtype)
    site._checked("latents", latents, (1, site.d_sae))
    site._checked("reconstruction", recons, (1, d_out))
    return site


@contextmanager
def replaced(
    model: HookedWhisper,
    site: JudgedSite,
    function: Callable[[Tensor], Tensor],
    counts: Bool[Tensor, "batch pos"] | None = None,
) -> Iterator[None]:
    """Have an activation replaced by a function of what the autoencoder reads.

    Args:
        model: The model.
        site: Where.
        function: Of the activation that is read; its result has as many numbers.
        counts: The positions to replace; None is all of them.
    """
    read: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        read[:] = [value]

    def put(value: Tensor, hook: Any) -> Tensor:
        return put_in(value, function(read.pop()), counts)

    with model.hooks([(site.hook_name, keep), (site.hook_name_out, put)]):
        yield


def put_in(
    value: Float[Tensor, "batch pos *width"],
    new: Float[Tensor, "vector d_out"],
    counts: Bool[Tensor, "batch pos"] | None,
) -> Float[Tensor, "batch pos *width"]:
    """An activation with other vectors at the positions that count; None is all of them."""
    new = new.to(value.dtype).reshape(value.shape)
    if counts is None:
        return new
    return torch.where(counts.view(*counts.shape, *(1,) * (value.ndim - 2)), new, value)


def counted_positions(
    n_positions: Tensor | None, n_pos: int, n_rows: int
) -> Bool[Tensor, "batch pos"]:
    """Which positions count: the first of each row; None is all of them."""
    if n_positions is None:
        return torch.ones(n_rows, n_pos, dtype=torch.bool)
    return torch.arange(n_pos, device=n_positions.device) < n_positions[:, None]


def _widths(model: HookedWhisper, name: str) -> list[int]:
    """The widths of vector that a hook can give; of a head, or of all heads together."""
    if not isinstance(name, str):
        raise InputError(f"hook_name is {name!r}; it must be the name of one hook.")
    names = model.hook_names(name)
    if names != [name]:
        raise InputError(f"{name!r} is {len(names)} hooks; an autoencoder is judged at one.")
    axes, sizes = model.hook_dict[name].axes, model.axis_sizes(name)
    if axes[:2] != ("batch", "pos") or len(axes) < 3 or sizes[-1] is None:
        raise SpliceError(
            f"{name!r} has axes [{' '.join(axes)}]; an autoencoder needs [batch pos ... width], as "
            "hook_resid_post has."
        )
    together = [sizes[-1] * sizes[-2]] if axes[2:] == ("head", "d_head") and sizes[-2] else []
    return [sizes[-1], *together]


def _dtype(sae: Any) -> torch.dtype:
    """What an autoencoder computes in; float32 where it does not show."""
    if callable(getattr(sae, "parameters", None)):
        for parameter in sae.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    for name in ("W_dec", "dtype"):
        value = getattr(sae, name, None)
        value = getattr(value, "dtype", value)
        if isinstance(value, torch.dtype):
            return value
    return torch.float32


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__
