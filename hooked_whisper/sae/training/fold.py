"""Folding the scale of the training data into the weights."""

import torch

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.base import SAE

IN_LATENT_UNITS = ("b_enc", "b_gate", "b_mag", "threshold", "topk_threshold")
"""Weights that are added to latents or compared with them."""
UNTOUCHED = ("W_dec", "r_mag")
"""Directions and ratios, which no scale changes."""


@torch.no_grad()
def fold_scale_(sae: SAE, scale_in: float, scale_out: float) -> None:
    """Make an autoencoder of scaled activations one of the activations as they are.

    All activation functions here are positively homogeneous, so that latents can be
    brought into the units of what is written: decoder rows keep their lengths, tied
    encoders stay tied, and latents come out `1 / scale_out` times as large.

    Args:
        sae: Trained on `scale_in * x` to give `scale_out * target`.
        scale_in: What the inputs were multiplied with.
        scale_out: What the targets were multiplied with; the same but for transcoders.

    Raises:
        TrainingError: It has a weight of which it is not known how it scales.
    """
    named = {**dict(sae.named_parameters()), **dict(sae.named_buffers())}
    known = ("W_enc", "b_dec", "W_skip", "log_threshold", *IN_LATENT_UNITS, *UNTOUCHED)
    if unknown := [name for name in named if name not in known]:
        raise TrainingError(
            f"it is not known how {unknown[0]!r} of a {type(sae).__name__} changes with the scale "
            "of the activations. Train with normalize=False."
        )
    for name, value in named.items():
        if name in ("W_enc", "W_skip"):
            value.mul_(scale_in / scale_out)
        elif name == "log_threshold":
            value.sub_(torch.tensor(scale_out).log().to(value))
        elif name == "b_dec" or name in IN_LATENT_UNITS:
            value.div_(scale_out)
