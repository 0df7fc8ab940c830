"""All architectures of sparse autoencoders by their names, which are SAELens's."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.architectures.batch_topk import BatchTopKSAE, MatryoshkaSAE
from hooked_whisper.sae.architectures.gated import GatedSAE
from hooked_whisper.sae.architectures.jumprelu import JumpReLUSAE
from hooked_whisper.sae.architectures.relu import ReLUSAE
from hooked_whisper.sae.architectures.topk import TopKSAE
from hooked_whisper.sae.architectures.transcoder import SkipTranscoder, Transcoder
from hooked_whisper.sae.base import SAE, SAEConfig

ARCHITECTURES: dict[str, type[SAE]] = {
    each.Config.architecture: each
    for each in (
        ReLUSAE,
        TopKSAE,
        BatchTopKSAE,
        MatryoshkaSAE,
        JumpReLUSAE,
        GatedSAE,
        Transcoder,
        SkipTranscoder,
    )
}
"""What can be made, trained and saved."""


def make_sae(cfg: SAEConfig, generator: torch.Generator | None = None) -> SAE:
    """A new sparse autoencoder with random weights.

    Args:
        cfg: Its configuration, whose class says the architecture.
        generator: Draws the weights; None is torch's own.

    >>> from hooked_whisper.sae.architectures.topk import TopKConfig
    >>> make_sae(TopKConfig(d_in=96, d_sae=768, k=32)).W_dec.shape
    torch.Size([768, 96])
    """
    for each in ARCHITECTURES.values():
        if type(cfg) is each.Config:
            return each(cfg, generator)
    allowed = ", ".join(each.Config.__name__ for each in ARCHITECTURES.values())
    raise SAEConfigError(f"no architecture has a {type(cfg).__name__}; there are {allowed}.")


def config_from_dict(values: Mapping[str, Any]) -> SAEConfig:
    """The configuration that `to_dict` wrote.

    Args:
        values: `"architecture"` and the fields of its configuration.

    Raises:
        SAEConfigError: An unknown architecture or field, or a value that it can't have.

    >>> config_from_dict({"architecture": "topk", "d_in": 96, "d_sae": 768, "k": 32}).k
    32
    """
    values = dict(values)
    name = values.pop("architecture", None)
    if name not in ARCHITECTURES:
        raise SAEConfigError(
            f"architecture is {name!r}; it can be one of {', '.join(ARCHITECTURES)}."
        )
    config = ARCHITECTURES[name].Config
    allowed = [each.name for each in fields(config)]
    unknown = [each for each in values if each not in allowed]
    if unknown:
        raise SAEConfigError(
            f"a {config.__name__} has no {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(allowed)}."
        )
    missing = [each for each in ("d_in", "d_sae") if each not in values]
    if missing:
        raise SAEConfigError(f"a {config.__name__} needs {' and '.join(missing)}.")
    tuples = {name: tuple(each) for name, each in values.items() if isinstance(each, list)}
    return config(**values | tuples)
