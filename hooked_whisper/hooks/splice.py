"""A sparse autoencoder in the path of an activation, with hook points of its own.

    activation -> hooks of the site -> splice -> next splice -> what flows on

    hook_sae_input      what the autoencoder reads
    hook_sae_acts_pre   latents before their activation function, where it tells of them
    hook_sae_acts_post  latents
    hook_sae_recons     what it makes of them
    hook_sae_error      activation - reconstruction of the unedited activation
    hook_sae_output     what flows on: recons, or recons + error

With the error term, what flows on is the activation itself, plus what edits of
the latents change. The error is computed from an unedited pass, and gradients
flow as through that sum: the derivative towards the activation is that of
the model without the splice, the one towards a latent is its decoder row.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.errors import SpliceError
from hooked_whisper.hooks.passes import pass_info
from hooked_whisper.hooks.points import HookPoint

POINTS = ("input", "acts_pre", "acts_post", "recons", "error", "output")
"""The hook points of a splice, each `hook_sae_` and its name."""


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


class Reader:
    """Keeps the activation of one site for a transcoder that writes at another."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, value: Tensor) -> Tensor:
        self.value = value
        return value


class Splice:
    """One autoencoder at one site.

    Args:
        sae: Anything with `encode` and `decode`.
        name: The site: the hook whose activation it replaces.
        point: Its hook point.
        shape: The activation's shape in some pass, to try the autoencoder on.
        dtype: What the model computes in.
        device: Where.
        use_error_term: Add what the autoencoder fails to reconstruct.
        prefix: What the names of its hook points begin with.
        speech_only: Leave the encoder's padding alone, as the pass knows it.
        reader: Where the input comes from, if not from the site.
        read_from: The hook point and shape of that input.

    Raises:
        SpliceError: It is no autoencoder, or does not fit: width, dtype, shapes, values.
    """

    def __init__(
        self,
        sae: Any,
        name: str,
        point: HookPoint,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        use_error_term: bool = False,
        prefix: str | None = None,
        speech_only: bool = False,
        reader: Reader | None = None,
        read_from: tuple[HookPoint, tuple[int, ...]] | None = None,
    ) -> None:
        if not isinstance(sae, Autoencoder):
            raise SpliceError(
                f"{type(sae).__name__} is no autoencoder: it needs encode(x) and decode(latents)."
            )
        self.sae, self.name, self.use_error_term = sae, name, use_error_term
        self.dtype, self.device = _place_of(sae, dtype, device)
        self.reader, self.speech_only = reader, speech_only
        if torch.promote_types(self.dtype, dtype) != self.dtype:
            raise SpliceError(
                f"the autoencoder at {name!r} is in {self.dtype}, which does not hold the site's "
                f"{dtype}. Convert it with sae.to({dtype})."
            )
        read_point, read_shape = read_from or (point, shape)
        self._try(shape, read_shape, point)
        self.prefix = prefix or name
        latent_axes = (*point.axes[: self.n_lead], "latent")
        axes = {"input": read_point.axes, "acts_pre": latent_axes, "acts_post": latent_axes}
        self.points: dict[str, HookPoint] = {}
        for each in POINTS:
            if each == "acts_pre" and not self.has_pre_acts:
                continue
            inner = HookPoint(
                " ".join(axes.get(each, point.axes)),
                sizes={**point.sizes, "latent": self.n_latents},
            )
            inner.name = f"{self.prefix}.hook_sae_{each}"
            self.points[each] = inner

    @property
    def names(self) -> dict[str, HookPoint]:
        """Its hook points by their full names."""
        return {str(point.name): point for point in self.points.values()}

    def _try(self, shape: tuple[int, ...], read_shape: tuple[int, ...], point: HookPoint) -> None:
        """Find out, on a few random numbers, how it takes the site's vectors."""
        self._heads = shape[-2:] if point.axes[-2:] == ("head", "d_head") else None
        # A latent vector for each of the site's vectors, or for all heads of a position together.
        leads = [shape[:-1], shape[:-2]] if self._heads else [shape[:-1]]
        problem = ""
        for flat in (False, True) if self._heads else (False,):
            self._is_flat = flat
            try:
                latents, recons = self._run_on_noise(read_shape)
            except SpliceError:
                raise
            except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
                problem = problem or f"it says: {str(error).strip().splitlines()[0]}"
                continue
            if recons.shape == shape and latents.shape[:-1] in leads:
                self._check_values(latents, recons)
                self._check_whole(read_shape)
                self.n_lead, self.n_latents = latents.ndim - 1, latents.shape[-1]
                return
            problem = (
                f"it makes latents {tuple(latents.shape)} and a reconstruction "
                f"{tuple(recons.shape)} of a value {read_shape}"
            )
        sizes = " ".join(f"{axis}={n}" for axis, n in zip(point.axes, shape, strict=True))
        width = f"reads width {width}" if (width := _width_of(self.sae)) else "does not fit"
        raise SpliceError(
            f"the autoencoder {type(self.sae).__name__} {width}; the site {self.name!r} has "
            f"[{sizes}] (with a made-up batch): {problem}."
        )

    def _run_on_noise(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(shape, generator=generator).to(self.device, self.dtype)
        fired: list[Tensor] = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self._hooking_pre(fired.append):
            latents = self.sae.encode(self._flatten(noise))
            recons = self.sae.decode(latents)
        for what, value in (("latents", latents), ("reconstruction", recons)):
            if not isinstance(value, Tensor):
                raise SpliceError(
                    f"the autoencoder {type(self.sae).__name__} gives {what} of type "
                    f"{type(value).__name__}; they must be tensors."
                )
        self.has_pre_acts = len(fired) == 1 and fired[0].shape == latents.shape
        return latents, self._unflatten(recons)

    def _check_values(self, latents: Tensor, recons: Tensor) -> None:
        for what, value in (("latents", latents), ("a reconstruction", recons)):
            if value.dtype != self.dtype:
                raise SpliceError(
                    f"the autoencoder at {self.name!r} gives {what} in {value.dtype}; its weights "
                    f"are in {self.dtype}."
                )
        self._check_finite(recons)

    def _check_whole(self, shape: tuple[int, ...]) -> None:
        """Refuse what adds a path around its latents outside of `encode` and `decode`."""
        if not isinstance(getattr(self.sae, "W_skip", None), Tensor) or not callable(self.sae):
            return
        noise = torch.ones(shape, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            whole, parts = self.sae(self._flatten(noise)), self._clean(noise)
        if not torch.allclose(self._unflatten(whole), parts, atol=1e-4, rtol=1e-3):
            raise SpliceError(
                f"the {type(self.sae).__name__} for {self.name!r} adds its W_skip outside of "
                "encode and decode, where a splice cannot see it. Save it, and splice what "
                "load_sae(folder) gives."
            )

    def _check_finite(self, recons: Tensor) -> None:
        if not torch.isfinite(recons).all():
            raise SpliceError(
                f"the autoencoder at {self.name!r} gives NaN or infinity. Nothing of this pass was "
                "kept; take it out with model.reset_saes()."
            )

    # In the forward pass

    def __call__(self, value: Tensor) -> Tensor:
        """What flows on behind the autoencoder."""
        source = value if self.reader is None else self._read()
        if self.use_error_term and not any(point.is_hooked for point in self.points.values()):
            return value  # reconstruction + error, without computing either
        if value.device != self.device:
            raise SpliceError(
                f"the autoencoder at {self.name!r} is on {self.device} and the activation on "
                f"{value.device}. Move it with sae.to({str(value.device)!r})."
            )
        changes = _Changes()
        read = source.to(self.dtype)
        recons = self._reconstruct(read, changes)
        self._check_finite(recons)
        if self.use_error_term:
            is_clean = not (changes.seen or torch.is_grad_enabled())
            recons = self._with_error(value, recons, recons if is_clean else self._clean(read))
        recons = recons.to(value.dtype)
        if self.speech_only:
            recons = self._where_speech(recons, value)
        return self.points["output"](recons)

    def _clean(self, read: Tensor) -> Tensor:
        """The reconstruction as it would be without edits."""
        return self._unflatten(self.sae.decode(self.sae.encode(self._flatten(read))))

    def _with_error(self, value: Tensor, recons: Tensor, clean: Tensor) -> Tensor:
        """Reconstruction + error, in an order of adding that leaves the unedited value exact."""
        wide = torch.promote_types(torch.float32, self.dtype)
        value, clean = value.to(wide), clean.to(wide)
        output = value + (recons.to(wide) - clean)
        point = self.points["error"]
        if point.is_hooked:
            error = value - clean
            output = output + (point(error.clone()) - error)
        return output

    def _reconstruct(self, read: Tensor, changes: "_Changes") -> Tensor:
        """The reconstruction, with hooks on the way."""
        x = changes.at(self.points["input"], read)
        if self.has_pre_acts and self.points["acts_pre"].is_hooked:
            with self._hooking_pre(lambda pre: changes.at(self.points["acts_pre"], pre)):
                latents = self.sae.encode(self._flatten(x))
        else:
            latents = self.sae.encode(self._flatten(x))
        latents = changes.at(self.points["acts_post"], latents)
        recons = self._unflatten(self.sae.decode(latents))
        return changes.at(self.points["recons"], recons)

    @contextmanager
    def _hooking_pre(self, function: Callable[[Tensor], Any]) -> Iterator[None]:
        """Pass the latents before their activation function through a function."""
        inside = getattr(self.sae, "hook_sae_acts_pre", None)
        if not isinstance(inside, nn.Module):
            yield
            return
        handle = inside.register_forward_hook(lambda _module, _input, output: function(output))
        try:
            yield
        finally:
            handle.remove()

    def _read(self) -> Tensor:
        assert self.reader is not None
        value, self.reader.value = self.reader.value, None
        if value is None:
            raise SpliceError(
                f"the transcoder that writes at {self.name!r} has nothing to read: the hook that "
                "it reads did not run before in this pass."
            )
        return value

    def _flatten(self, value: Tensor) -> Tensor:
        return value.flatten(-2) if self._is_flat else value

    def _unflatten(self, recons: Tensor) -> Tensor:
        """A flat reconstruction with the axes `head d_head` again."""
        return recons.unflatten(-1, self._heads) if self._is_flat and self._heads else recons

    def _where_speech(self, output: Tensor, value: Tensor) -> Tensor:
        """The output at positions that hold sound, the value itself at the others."""
        counts = pass_info().n_positions
        if counts is None:
            raise SpliceError(
                f"the autoencoder at {self.name!r} leaves padding alone, and this pass does not "
                "say where that is. Run the model itself, or model.run_from(..., n_positions=...)."
            )
        n_rows, n_pos = value.shape[:2]
        counts = counts.repeat_interleave(n_rows // len(counts)).to(value.device)
        is_speech = torch.arange(n_pos, device=value.device) < counts[:, None]
        return torch.where(is_speech.view(n_rows, n_pos, *[1] * (value.ndim - 2)), output, value)


class _Changes:
    """Passes values through hook points, and sees whether anything is edited there."""

    def __init__(self) -> None:
        self.seen = False

    def at(self, point: HookPoint, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The value behind a point; hooks get a tensor that nothing else holds."""
        if not point.is_hooked:
            return value
        own = value.clone()
        before = None if own.is_inference() else own._version
        after = point(own)
        self.seen |= after is not own or before is None or after._version != before
        return after


def _place_of(
    sae: Any, dtype: torch.dtype, device: torch.device
) -> tuple[torch.dtype, torch.device]:
    """What an autoencoder computes in, and where: as the model, if it does not show."""
    if isinstance(sae, nn.Module):
        for parameter in [*sae.parameters(), *sae.buffers()]:
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
    own_dtype, own_device = getattr(sae, "dtype", None), getattr(sae, "device", None)
    return (
        own_dtype if isinstance(own_dtype, torch.dtype) else dtype,
        torch.device(own_device) if isinstance(own_device, (str, torch.device)) else device,
    )


def _width_of(sae: Any) -> int | None:
    """The width that an autoencoder says it reads."""
    for holder in (getattr(sae, "cfg", None), sae):
        for name in ("d_in", "activation_dim"):
            if isinstance(width := getattr(holder, name, None), int):
                return width
    return None


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
