"""What a feature page is about: an autoencoder's latents, or the neurons of a hook."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, Stack
from hooked_whisper.data.hook_rows import choose_hooks
from hooked_whisper.errors import InputError, SpliceError
from hooked_whisper.hooks.names import stack_of
from hooked_whisper.hooks.splice_site import VECTORS_AT_ONCE, SpliceSite
from hooked_whisper.model.splicing import splice_site
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel

Kind = Literal["latent", "neuron"]


@dataclass(frozen=True, eq=False)
class FeatureSite:
    """Features of one hook: numbers that each position has.

    Args:
        model: The model.
        hook_name: What is read.
        n: How many features there are.
        judged: The autoencoder at its hooks; None where the hook's own numbers
            are the features.
        n_heads: Heads that the numbers come from, where the hook has heads.
    """

    model: HookedWhisper
    hook_name: str
    n: int
    judged: SpliceSite | None
    n_heads: int | None = None

    @property
    def kind(self) -> Kind:
        """What one of them is called."""
        return "neuron" if self.judged is None else "latent"

    @property
    def stack(self) -> Stack:
        """Encoder positions are 20 ms of sound, decoder positions are tokens."""
        return stack_of(self.hook_name)

    @property
    def stop_at_layer(self) -> tuple[Stack, int] | None:
        """How far the model has to run."""
        sites = choose_hooks(self.model, self.hook_name)
        stop = sites.stop_encoder if self.stack == "encoder" else sites.stop_decoder
        return None if stop is None else (self.stack, stop)

    def before(self, mel: Any) -> Tensor:
        """What recordings are when they come to the hook: the stream before its block.

        In the decoder, the encoder's output; before the encoder's first block, the mel.
        """
        if self.stack == "decoder":
            return self.model(mel)
        if self._block is None:
            return mel.values
        return self.model(mel, stop_at_layer=("encoder", self._block))

    def behind(self, stream: Tensor, n_positions: Int[Tensor, " batch"]) -> Tensor:
        """The encoder's output from there on, with whatever is hooked in.

        Args:
            stream: What `before` gave.
            n_positions: Positions of each row that hold sound.
        """
        if self.stack == "decoder":
            return stream
        if self._block is None:
            return self.model(Mel(stream, n_positions * FRAMES_PER_POSITION))
        return self.model.run_from(("encoder", self._block), stream, n_positions=n_positions)

    @property
    def _block(self) -> int | None:
        """The encoder's block that the hook is in; None before the first."""
        parts = self.hook_name.split(".")
        if parts[1] == "ln_final":
            return self.model.cfg.n_audio_layers
        return int(parts[2]) if parts[1] == "blocks" else None

    def name_of(self, feature: int) -> str:
        """A feature's name: its number, or head and place."""
        if self.n_heads is None:
            return str(feature)
        head, place = divmod(feature, self.n // self.n_heads)
        return f"{head}.{place}"

    def read(self, value: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos feature"]:
        """The features of an activation, in float32 on the CPU."""
        if self.judged is None:
            return value.flatten(2).float().cpu()
        parts = value.reshape(-1, self.judged.d_in).split(VECTORS_AT_ONCE)
        latents = torch.cat([self.judged.encode(part).float().cpu() for part in parts])
        return latents.view(*value.shape[:2], self.n)

    @contextmanager
    def scaled(self, features: Sequence[int], factors: Sequence[float]) -> Iterator[None]:
        """Have one feature of each row of a batch multiplied, at all of its positions.

        An autoencoder is spliced in with its error term, so that nothing else changes.

        Args:
            features: Which one, for each row.
            factors: With what; 0 ablates.
        """
        rows = torch.arange(len(features))
        chosen = torch.tensor(features)

        def edit(value: Tensor, hook: Any) -> Tensor:
            flat = value.flatten(2).clone()
            by = torch.tensor(factors, dtype=flat.dtype, device=flat.device)
            flat[rows, :, chosen] *= by[:, None]
            return flat.view(value.shape)

        if self.judged is None:
            with self.model.hooks([(self.hook_name, edit)]):
                yield
            return
        before = set(self.model.hook_dict)
        with self.model.saes({self.hook_name: self.judged.sae}, use_error_term=True):
            new = [name for name in self.model.hook_dict if name not in before]
            latents = [name for name in new if name.endswith("hook_sae_acts_post")]
            with self.model.hooks([(latents, edit)]):
                yield


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
    judged = None if source is None else splice_site(model, source, hook_name).of_positions()
    name = hook_name if judged is None else judged.hook_in
    assert name is not None
    axes, sizes = _axes(model, name)
    width = prod(sizes[2:])
    if judged is not None and judged.d_in != width:
        raise SpliceError(
            f"the autoencoder reads {judged.d_in} of the {width} numbers that a position has at "
            f"{name!r}; a page needs one vector for each position."
        )
    n_heads = sizes[2] if judged is None and axes[2:] == ("head", "d_head") else None
    return FeatureSite(model, name, width if judged is None else judged.d_sae, judged, n_heads)


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
