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

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.errors import SpliceError
from hooked_whisper.hooks.passes import first_positions, pass_info
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.hooks.splice_site import SpliceSite, hooking_pre_acts

POINTS = ("input", "acts_pre", "acts_post", "recons", "error", "output")
"""The hook points of a splice, each `hook_sae_` and its name."""


class Reader:
    """Keeps the activation of one site for a transcoder that writes at another."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, value: Tensor) -> Tensor:
        self.value = value
        return value


class Splice:
    """One autoencoder in the path of an activation.

    Args:
        site: The autoencoder at its hooks.
        use_error_term: Add what the autoencoder fails to reconstruct.
        prefix: What the names of its hook points begin with; None is the site's name.
        speech_only: Leave the encoder's padding alone, as the pass knows it.
    """

    def __init__(
        self,
        site: SpliceSite,
        *,
        use_error_term: bool = False,
        prefix: str | None = None,
        speech_only: bool = False,
    ) -> None:
        self.site, self.use_error_term, self.speech_only = site, use_error_term, speech_only
        self.reader = None if site.hook_in == site.hook_out else Reader()
        self.prefix = prefix or site.hook_out
        n_lead = len(site.axes_in) - (2 if site.heads_in else 1)
        latent_axes = (*site.axes_in[:n_lead], "latent")
        axes = {"input": site.axes_in, "acts_pre": latent_axes, "acts_post": latent_axes}
        self.points: dict[str, HookPoint] = {}
        for name in POINTS:
            if name == "acts_pre" and not site.has_pre_acts:
                continue
            point = HookPoint(
                " ".join(axes.get(name, site.axes_out)),
                sizes={**site.sizes, "latent": site.d_sae},
            )
            point.name = f"{self.prefix}.hook_sae_{name}"
            self.points[name] = point

    @property
    def names(self) -> dict[str, HookPoint]:
        """Its hook points by their full names."""
        return {str(point.name): point for point in self.points.values()}

    def __call__(self, value: Tensor) -> Tensor:
        """What flows on behind the autoencoder."""
        site = self.site
        source = value if self.reader is None else self._read(self.reader)
        is_hooked = any(point.is_hooked for point in self.points.values())
        if self.use_error_term and not is_hooked:
            return value  # reconstruction + error, without computing either
        if value.device != site.device:
            raise SpliceError(
                f"the autoencoder at {site.hook_out!r} is on {site.device} and the activation on "
                f"{value.device}. Move it with sae.to({str(value.device)!r})."
            )
        read = source.to(site.dtype)
        if is_hooked:
            changes = _Changes()
            recons = self._reconstruct(read, changes)
            site.check_finite("reconstruction", recons)
            if self.use_error_term:
                is_clean = not (changes.seen or torch.is_grad_enabled())
                recons = self._with_error(value, recons, recons if is_clean else self._clean(read))
        else:
            recons = site.reconstruct(read)
        recons = recons.to(value.dtype)
        if self.speech_only:
            recons = self._where_speech(recons, value)
        return self.points["output"](recons)

    def _clean(self, read: Tensor) -> Tensor:
        """The reconstruction as it would be without edits."""
        sae = self.site.sae
        return self.site.unflatten(sae.decode(sae.encode(self.site.flatten(read))))

    def _with_error(self, value: Tensor, recons: Tensor, clean: Tensor) -> Tensor:
        """Reconstruction + error, in an order of adding that leaves the unedited value exact."""
        wide = torch.promote_types(torch.float32, self.site.dtype)
        value, clean = value.to(wide), clean.to(wide)
        output = value + (recons.to(wide) - clean)
        point = self.points["error"]
        if point.is_hooked:
            error = value - clean
            output = output + (point(error.clone()) - error)
        return output

    def _reconstruct(self, read: Tensor, changes: "_Changes") -> Tensor:
        """The reconstruction, with hooks on the way."""
        site = self.site
        x = site.flatten(changes.at(self.points["input"], read))
        if site.has_pre_acts and self.points["acts_pre"].is_hooked:
            with hooking_pre_acts(site.sae, lambda pre: changes.at(self.points["acts_pre"], pre)):
                latents = site.sae.encode(x)
        else:
            latents = site.sae.encode(x)
        latents = changes.at(self.points["acts_post"], latents)
        return changes.at(self.points["recons"], site.unflatten(site.sae.decode(latents)))

    def _read(self, reader: Reader) -> Tensor:
        value, reader.value = reader.value, None
        if value is None:
            raise SpliceError(
                f"the transcoder that writes at {self.site.hook_out!r} has nothing to read: the "
                "hook that it reads did not run before in this pass."
            )
        return value

    def _where_speech(self, output: Tensor, value: Tensor) -> Tensor:
        """The output at positions that hold sound, the value itself at the others."""
        n_positions = pass_info().n_positions
        if n_positions is None:
            raise SpliceError(
                f"the autoencoder at {self.site.hook_out!r} leaves padding alone, and this pass "
                "does not say where that is. Run the model itself, or "
                "model.run_from(..., n_positions=...)."
            )
        return at_positions(value, output, first_positions(n_positions, *value.shape[:2]))


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


def at_positions(
    value: Float[Tensor, "batch pos *width"],
    new: Float[Tensor, "batch pos *width"],
    mask: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos *width"]:
    """An activation with the vectors of another one at some positions."""
    mask = mask.to(value.device).view(*mask.shape, *[1] * (value.ndim - 2))
    return torch.where(mask, new, value)
