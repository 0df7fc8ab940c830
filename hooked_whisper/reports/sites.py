"""What a feature page is about: an autoencoder's latents or a hook's neurons; and its options."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, Stack
from hooked_whisper.errors import InputError, SpliceError
from hooked_whisper.hooks.names import stack_of
from hooked_whisper.hooks.splice_site import SpliceSite
from hooked_whisper.hooks.splicing import splice_site
from hooked_whisper.io import as_path
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.evaluation.resume import Resume, resume_of
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import has_tokenizer

Kind = Literal["latent", "neuron"]

N_EFFECTS = 24
"""Features whose effects on transcripts are computed, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class FeatureSite:
    """Features of one hook: numbers that each position has.

    Args:
        model: The model.
        hook_name: What is read.
        n: How many features there are.
        splice: The autoencoder at its hooks; None where the hook's own numbers
            are the features.
        n_heads: Heads that the numbers come from, where the hook has heads.
    """

    model: HookedWhisper
    hook_name: str
    n: int
    splice: SpliceSite | None
    n_heads: int | None = None

    @property
    def kind(self) -> Kind:
        """What one of them is called."""
        return "neuron" if self.splice is None else "latent"

    @property
    def stack(self) -> Stack:
        """Encoder positions are 20 ms of sound, decoder positions are tokens."""
        return stack_of(self.hook_name)

    @property
    def hook_out(self) -> str:
        """What changes with them: what is read, but for transcoders."""
        return self.hook_name if self.splice is None else self.splice.hook_out

    @property
    def resume(self) -> Resume | None:
        """From where on the encoder is run where they are edited."""
        return resume_of(self.hook_name, self.hook_out, self.model.cfg)

    def before(self, mel: Mel) -> Tensor:
        """What recordings are when they come to the hook: the stream at `resume`.

        In the decoder, the encoder's output; before the encoder's first block, the mel.
        """
        if self.stack == "decoder":
            return self.model(mel)
        if self.resume is None:
            return mel.values
        return self.model(mel, stop_at_layer=("encoder", self.resume.block))

    def behind(self, stream: Tensor, n_positions: Int[Tensor, " batch"]) -> Tensor:
        """The encoder's output from there on, with whatever is hooked in.

        Args:
            stream: What `before` gave.
            n_positions: Positions of each row that hold sound.
        """
        if self.stack == "decoder":
            return stream
        if self.resume is None:
            return self.model(Mel(stream, n_positions * FRAMES_PER_POSITION))
        layer: tuple[Stack, int] = ("encoder", self.resume.block)
        return self.model.run_from(layer, stream, n_positions=n_positions)

    def name_of(self, feature: int) -> str:
        """A feature's name: its number, or head and place."""
        if self.n_heads is None:
            return str(feature)
        head, place = divmod(feature, self.n // self.n_heads)
        return f"{head}.{place}"

    def read(
        self, value: Float[Tensor, "batch pos *width"], chosen: Sequence[int]
    ) -> Float[Tensor, "batch pos feature"]:
        """Some features of an activation, in float32 on the CPU."""
        some = None if list(chosen) == list(range(self.n)) else chosen  # all need no copy
        if self.splice is not None:
            return self.splice.latents(value, some)
        return value.flatten(2)[..., slice(None) if some is None else list(some)].float().cpu()


def feature_site(model: HookedWhisper, source: Any, hook_name: str | None) -> FeatureSite:
    """The features of an autoencoder, or of a hook, once it is sure that they can be had.

    Args:
        model: The model.
        source: An autoencoder, or None for the hook's own numbers.
        hook_name: What is read; None is what the autoencoder's configuration says.

    Raises:
        HookNameError: No such hook, or one behind a flag that is off.
        SpliceError: The autoencoder does not fit.
        InputError: Neither is given, or the hook does not have numbers by position.
    """
    if source is None and hook_name is None:
        raise InputError(
            "neither an autoencoder nor a hook is given. Pass an SAE as source, or None with "
            'hook_name="encoder.blocks.2.mlp.hook_post" for the neurons there.'
        )
    splice = None if source is None else splice_site(model, source, hook_name).of_positions()
    name = hook_name if splice is None else splice.hook_in
    assert name is not None
    axes, sizes = _axes(model, name)
    width = prod(sizes[2:])
    if splice is not None and splice.d_in != width:
        raise SpliceError(
            f"the autoencoder reads {splice.d_in} of the {width} numbers that a position has at "
            f"{name!r}; a page needs one vector for each position."
        )
    n_heads = sizes[2] if splice is None and axes[2:] == ("head", "d_head") else None
    return FeatureSite(model, name, width if splice is None else splice.d_sae, splice, n_heads)


def _axes(model: HookedWhisper, name: Any) -> tuple[tuple[str, ...], list[int]]:
    """The axes of a hook that has numbers for each position, and their lengths (0: any)."""
    if not isinstance(name, str):
        raise InputError(f"hook_name is {name!r}; it must be the name of one hook.")
    names = model.hook_names(name)
    if names != [name]:
        raise InputError(f"{name!r} is {len(names)} hooks; a page is about one.")
    axes, sizes = tuple(model.hook_dict[name].axes), model.axis_sizes(name)
    if axes[:2] != ("batch", "pos") or len(axes) < 3 or None in sizes[2:]:
        raise InputError(
            f"{name!r} has axes [{' '.join(axes)}]; a page of features needs [batch pos ... "
            "width], as hook_resid_post, mlp.hook_post and attn.hook_z have."
        )
    return axes, [size or 0 for size in sizes]


@dataclass(frozen=True)
class PageOptions:
    """What a page is to hold, and how it is made: the arguments of `feature_page`, checked."""

    out: Path
    chosen: tuple[int, ...]
    n_clips: int
    n_effects: int
    n_effect_clips: int
    amplify: float
    max_mb: float
    all_frames: bool
    transcribe: bool
    language: str | None
    batch_size: int
    seed: int
    title: str
    progress: bool


def page_options(
    site: FeatureSite,
    out: str | os.PathLike[str],
    latents: Sequence[int] | None,
    n_effects: int | None,
    title: str | None,
    **given: Any,
) -> PageOptions:
    """What is asked for, all of it checked before anything runs."""
    path = as_path(out, InputError)
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; name the page's file: 'features.html'.")
    chosen: Any = range(site.n) if latents is None else latents
    chosen = (chosen,) if isinstance(chosen, int) else tuple(chosen)
    if not chosen or not all(type(number) is int and 0 <= number < site.n for number in chosen):
        raise InputError(
            f"{site.kind}s are {latents!r}; {site.hook_name!r} has {site.kind}s 0 to {site.n - 1}."
        )
    if len(set(chosen)) < len(chosen):
        raise InputError(f"{site.kind}s are {latents!r}; each can be shown once.")
    if n_effects is None:
        n_effects = N_EFFECTS if has_tokenizer(site.model.cfg) else 0
    counts = {"n_clips": 1, "n_effects": 0, "n_effect_clips": 1}
    for name, least in counts.items():
        value = n_effects if name == "n_effects" else given[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; it must be an integer from {least} on.")
    for name in ("amplify", "max_mb"):
        value = given[name]
        if not isinstance(value, int | float) or not isfinite(value):
            raise InputError(f"{name} is {value!r}; it must be a finite number.")
        given[name] = float(value)
    if n_effects and not has_tokenizer(site.model.cfg):
        raise InputError(
            f"this model's vocabulary of {site.model.cfg.d_vocab} is not Whisper's, so that it "
            "writes no transcripts to compare. Pass n_effects=0."
        )
    if given["max_mb"] < 1:
        raise InputError(f"max_mb is {given['max_mb']:g}; it must be at least 1.")
    title = title or f"{site.kind.capitalize()}s of {site.hook_name}"
    return PageOptions(path, chosen, n_effects=n_effects, title=title, **given)
