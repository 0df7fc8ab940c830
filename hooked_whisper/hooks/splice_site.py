"""Where an autoencoder goes: what it reads, what it replaces, and whether it fits there."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hooked_whisper.config import Stack
from hooked_whisper.errors import SpliceError
from hooked_whisper.hooks.names import stack_of
from hooked_whisper.interrupts import Temporarily

VECTORS_AT_ONCE = 4096
"""Vectors that are encoded side by side: their latents are what takes memory."""

_HEADS = ("head", "d_head")


@runtime_checkable
class Autoencoder(Protocol):
    """Whatever can be spliced in: SAELens's classes, dictionary_learning's, a module of your own.

    Both functions act on the last axis, each vector on its own, whatever the axes before it.
    """

    def encode(self, x: Any, /) -> Any:
        """Latents of activations."""
        ...

    def decode(self, latents: Any, /) -> Any:
        """Activations of latents."""
        ...


class Activation(NamedTuple):
    """What a hook sees.

    Args:
        name: The hook.
        axes: Names of the activation's axes.
        shape: Its shape in some pass.
        sizes: Lengths of axes that the model's configuration does not tell.
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    sizes: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class SpliceSite:
    """An autoencoder at its hooks, known to fit them.

    It encodes vectors: the last axis of an activation, or all heads of a position together.

    Args:
        sae: Anything with `encode` and `decode`.
        hook_in: What it reads.
        hook_out: What it replaces; the same, but for transcoders.
        axes_in: Names of the axes of the activation that it reads.
        axes_out: Names of the axes of the one that it replaces.
        sizes: Lengths of axes that the model's configuration does not tell.
        d_in: Width of a vector that it reads.
        d_out: Width of a vector that it writes.
        d_sae: Number of its latents.
        dtype: What it computes in.
        device: Where.
        heads_in: Number and width of the heads that make up a vector that it reads.
        heads_out: The same of one that it writes.
        shapes_heads: Whether it lays heads side by side itself.
        has_pre_acts: Whether it tells of latents before their activation function.
    """

    sae: Any
    hook_in: str
    hook_out: str
    axes_in: tuple[str, ...]
    axes_out: tuple[str, ...]
    sizes: Mapping[str, int]
    d_in: int
    d_out: int
    d_sae: int
    dtype: torch.dtype
    device: torch.device
    heads_in: tuple[int, ...] | None = None
    heads_out: tuple[int, ...] | None = None
    shapes_heads: bool = False
    has_pre_acts: bool = False

    @property
    def stack(self) -> Stack:
        """Whether it sits in the encoder, along time, or in the decoder, along the text."""
        return stack_of(self.hook_out)

    def of_positions(self) -> "SpliceSite":
        """The same, once it is sure that activations have vectors by position.

        Raises:
            SpliceError: They have not.
        """
        for name, axes in ((self.hook_in, self.axes_in), (self.hook_out, self.axes_out)):
            if axes[:2] != ("batch", "pos") or len(axes) < 3:
                raise SpliceError(
                    f"{name!r} has axes [{' '.join(axes)}]; this needs [batch pos ... width], as "
                    "hook_resid_post has."
                )
        return self

    def encode(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead latent"]:
        """The latents of vectors.

        Raises:
            SpliceError: They have another shape, or are not finite.
        """
        return self._checked("latents", self._encode(x), (*x.shape[:-1], self.d_sae))

    def decode(self, latents: Float[Tensor, "*lead latent"]) -> Float[Tensor, "*lead d_out"]:
        """The vectors that latents stand for.

        Raises:
            SpliceError: They have another shape, or are not finite.
        """
        recons = self.sae.decode(latents)
        if self.shapes_heads and self.heads_out:
            recons = recons.flatten(-2)
        return self._checked("reconstruction", recons, (*latents.shape[:-1], self.d_out))

    def latents(
        self, value: Float[Tensor, "batch pos *width"], chosen: Sequence[int] | None = None
    ) -> Float[Tensor, "batch pos latent"]:
        """The latents of an activation with a vector by position, or some, in float32 on the CPU.

        Raises:
            SpliceError: There is more than one vector by position.
        """
        width = prod(value.shape[2:])
        if width != self.d_in:
            raise SpliceError(
                f"the autoencoder reads {self.d_in} of the {width} numbers that a position "
                f"has at {self.hook_in!r}; here each position needs one vector."
            )
        columns = slice(None) if chosen is None else list(chosen)
        parts = value.reshape(-1, self.d_in).split(VECTORS_AT_ONCE)
        latents = torch.cat([self.encode(part)[:, columns].float().cpu() for part in parts])
        return latents.view(*value.shape[:2], latents.shape[-1])

    def reconstruct(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """An activation of `hook_in` encoded, and decoded to one of `hook_out`."""
        parts = value.reshape(-1, self.d_in).split(VECTORS_AT_ONCE)
        made = [self.decode(self._encode(part)) for part in parts]
        recons = made[0] if len(made) == 1 else torch.cat(made)
        lead = value.shape[: -2 if self.heads_in else -1]
        return recons.view(*lead, *(self.heads_out or (self.d_out,)))

    def flatten(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """An activation as `sae.encode` takes it."""
        return value.flatten(-2) if self.heads_in and not self.shapes_heads else value

    def unflatten(self, recons: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What `sae.decode` gives as an activation."""
        if self.heads_out and not self.shapes_heads:
            return recons.unflatten(-1, self.heads_out)
        return recons

    def check_finite(self, what: str, value: Tensor) -> None:
        """Refuse NaN and infinity.

        Raises:
            SpliceError: Says how many, and where the first one is.
        """
        # One sum is quick and shows every NaN and infinity; it may overflow, so then look closely.
        if torch.isfinite(value.detach().sum(dtype=torch.float32)):
            return
        bad = (~torch.isfinite(value)).reshape(-1, value.shape[-1])
        if bool(bad.any()):
            vector, place = bad.nonzero()[0].tolist()
            raise SpliceError(
                f"the {what} of the autoencoder at {self.hook_out!r} has NaN or infinity in "
                f"{int(bad.sum())} values, the first in vector {vector}, place {place}. Check its "
                "weights, or take it out with model.reset_saes()."
            )

    def _encode(self, x: Tensor) -> Any:
        x = x.to(self.dtype)
        if self.shapes_heads and self.heads_in:
            x = x.unflatten(-1, self.heads_in)
        return self.sae.encode(x)

    def _checked(self, what: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SpliceError(
                f"the {what} of the autoencoder at {self.hook_out!r} is {found}; it must be a "
                f"tensor of shape {shape}."
            )
        self.check_finite(what, value)
        return value


@torch.no_grad()
def fit(
    sae: Any, read: Activation, written: Activation, dtype: torch.dtype, device: torch.device
) -> SpliceSite:
    """Find out, on a few random numbers, how an autoencoder takes an activation's vectors.

    Args:
        sae: Anything with `encode` and `decode`.
        read: What it is to read.
        written: What it is to replace; the same, but for transcoders.
        dtype: What the model computes in.
        device: Where.

    Raises:
        SpliceError: It is no autoencoder, or does not fit: width, dtype, shapes, values.
    """
    if not isinstance(sae, Autoencoder):
        raise SpliceError(
            f"{type(sae).__name__} is no autoencoder: it needs encode(x) and decode(latents)."
        )
    own_dtype, own_device = _place_of(sae, dtype, device)
    if own_device.type == "meta":
        raise SpliceError(f"the autoencoder at {written.name!r} is on meta: it has no values.")
    if torch.promote_types(own_dtype, dtype) != own_dtype:
        raise SpliceError(
            f"the autoencoder at {written.name!r} is in {own_dtype}, which does not hold the "
            f"site's {dtype}. Convert it with sae.to({dtype})."
        )
    site = SpliceSite(
        sae,
        read.name,
        written.name,
        read.axes,
        written.axes,
        written.sizes,
        read.shape[-1],
        written.shape[-1],
        0,
        own_dtype,
        own_device,
    )
    heads = [each.shape[-2:] if each.axes[-2:] == _HEADS else None for each in (read, written)]
    together = replace(
        site,
        heads_in=heads[0],
        heads_out=heads[1],
        d_in=prod(heads[0] or read.shape[-1:]),
        d_out=prod(heads[1] or written.shape[-1:]),
    )
    ways = [site, replace(together, shapes_heads=True), together] if any(heads) else [site]
    stated = _width_of(sae)
    problem = ""
    for way in ways:
        if stated not in (None, way.d_in):
            continue
        lead = read.shape[: -2 if way.heads_in else -1]
        try:
            latents, recons, has_pre_acts = _run_on_noise(way, read.shape)
        except SpliceError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            problem = problem or f"it says: {str(error).strip().splitlines()[0]}"
            continue
        if recons.shape == written.shape and latents.shape[:-1] == lead:
            found = replace(way, d_sae=latents.shape[-1], has_pre_acts=has_pre_acts)
            _check_values(found, latents, recons)
            _check_whole(found, read.shape)
            return found
        problem = (
            f"it makes latents {tuple(latents.shape)} and a reconstruction {tuple(recons.shape)} "
            f"of a value {read.shape}"
        )
    sizes = " ".join(f"{axis}={n}" for axis, n in zip(read.axes, read.shape, strict=True))
    width = f"reads width {stated}" if stated else "does not fit"
    raise SpliceError(
        f"the autoencoder {type(sae).__name__} {width}; the site {read.name!r} has [{sizes}] "
        f"(with a made-up batch){': ' + problem if problem else ''}."
    )


def _run_on_noise(site: SpliceSite, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, bool]:
    """Latents and reconstruction of random numbers; whether latents were told of before."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    fired: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), hooking_pre_acts(site.sae, fired.append):
        latents = site.sae.encode(site.flatten(noise.to(site.device, site.dtype)))
        recons = site.sae.decode(latents)
    for what, value in (("latents", latents), ("reconstruction", recons)):
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
            raise SpliceError(
                f"the autoencoder {type(site.sae).__name__} gives {what} of type "
                f"{type(value).__name__}; they must be dense tensors with values."
            )
    return latents, site.unflatten(recons), len(fired) == 1 and fired[0].shape == latents.shape


def _check_values(site: SpliceSite, latents: Tensor, recons: Tensor) -> None:
    for what, value in (("latents", latents), ("a reconstruction", recons)):
        if value.dtype != site.dtype:
            raise SpliceError(
                f"the autoencoder at {site.hook_out!r} gives {what} in {value.dtype}; its weights "
                f"are in {site.dtype}."
            )
    site.check_finite("latents", latents)
    site.check_finite("reconstruction", recons)


def _check_whole(site: SpliceSite, shape: tuple[int, ...]) -> None:
    """Refuse what adds a path around its latents outside of `encode` and `decode`."""
    sae = site.sae
    if not isinstance(getattr(sae, "W_skip", None), Tensor) or not callable(sae):
        return
    x = site.flatten(torch.ones(shape, device=site.device, dtype=site.dtype))
    if not torch.allclose(sae(x), sae.decode(sae.encode(x)), atol=1e-4, rtol=1e-3):
        raise SpliceError(
            f"the {type(sae).__name__} for {site.hook_out!r} adds its W_skip outside of encode and "
            "decode, where a splice cannot see it. Save it, and splice what load_sae(folder) gives."
        )


class _HookingPreActs:
    def __init__(self, sae: Any, function: Callable[[Tensor], Any]) -> None:
        inside = getattr(sae, "hook_sae_acts_pre", None)
        self.hooks = inside._forward_hooks if isinstance(inside, nn.Module) else OrderedDict()
        self.function, self.handle = function, RemovableHandle(self.hooks)

    def begin(self) -> None:
        self.hooks[self.handle.id] = lambda _module, _input, output: self.function(output)

    def end(self) -> None:
        self.handle.remove()


def hooking_pre_acts(sae: Any, function: Callable[[Tensor], Any]) -> Temporarily[None]:
    """Pass the latents before their activation function through a function."""
    return Temporarily(None, lambda: _HookingPreActs(sae, function))


def site_written(sae: Any, hook_name: str, hook_name_out: str | None = None) -> str:
    """The hook at which an autoencoder writes that reads at another, or at the same.

    Args:
        sae: An autoencoder or transcoder.
        hook_name: Where it reads. What its configuration remembers is only that.
        hook_name_out: Where it writes, if said.

    Raises:
        SpliceError: A transcoder away from home that was not told where to write.
    """
    if hook_name_out is not None:
        return hook_name_out
    home, home_out = configured(sae, "hook_name"), configured(sae, "hook_name_out")
    if home_out in (None, home):
        return hook_name
    if hook_name != home:
        raise SpliceError(
            f"this {type(sae).__name__} writes another place than it reads: from {home!r} to "
            f"{home_out!r}. At {hook_name!r}, say hook_name_out= too."
        )
    return str(home_out)


def configured(sae: Any, name: str) -> Any:
    """What an autoencoder's configuration says of itself, in its fields or in its metadata."""
    cfg = getattr(sae, "cfg", None)
    for place in (cfg, getattr(cfg, "metadata", None)):
        value = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
        if value is not None:
            return value
    return None


def _place_of(
    sae: Any, dtype: torch.dtype, device: torch.device
) -> tuple[torch.dtype, torch.device]:
    """What an autoencoder computes in, and where: as the model, if it does not show."""
    weights = [*sae.parameters(), *sae.buffers()] if isinstance(sae, nn.Module) else []
    for each in (*weights, getattr(sae, "W_dec", None)):
        if isinstance(each, Tensor) and each.is_floating_point():
            return each.dtype, each.device
    own_dtype, own_device = getattr(sae, "dtype", None), getattr(sae, "device", None)
    return (
        own_dtype if isinstance(own_dtype, torch.dtype) else dtype,
        torch.device(own_device) if isinstance(own_device, (str, torch.device)) else device,
    )


def _width_of(sae: Any) -> int | None:
    """The width that an autoencoder says it reads."""
    for name in ("d_in", "activation_dim"):
        for width in (configured(sae, name), getattr(sae, name, None)):
            if isinstance(width, int):
                return width
    return None
