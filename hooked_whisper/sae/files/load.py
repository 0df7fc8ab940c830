"""One door for all files of sparse autoencoders."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hooked_whisper.device import as_device
from hooked_whisper.errors import SAEFileError
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.files.build import Found, build
from hooked_whisper.sae.files.dictionary_learning import (
    read_autoencoder,
    read_gated,
    read_jumprelu,
    read_matryoshka,
    read_topk,
)
from hooked_whisper.sae.files.freud import read_freud_topk, read_tied
from hooked_whisper.sae.files.saelens import is_saelens, read_saelens
from hooked_whisper.sae.files.saelens_cfg import CFG_NAME, WEIGHTS_NAME
from hooked_whisper.sae.files.tensors import Contents, read_config, read_contents
from hooked_whisper.sae.files.whisper_sae import read_two_layers


@dataclass(frozen=True)
class Format:
    """A kind of state dictionary: which tensors it has, and who reads it."""

    name: str
    needs: frozenset[str]
    may: frozenset[str]
    read: Callable[[Contents, int | None, str | None], Found]


def _format(
    name: str, needs: str, read: Callable[[Contents, int | None, str | None], Found], may: str = ""
) -> Format:
    return Format(name, frozenset(needs.split()), frozenset(may.split()), read)


FORMATS = (
    _format(
        "dictionary_learning AutoEncoder",
        "encoder.weight encoder.bias decoder.weight bias",
        lambda contents, k, kind: read_autoencoder(contents),
    ),
    _format(
        "dictionary_learning AutoEncoderTopK or BatchTopKSAE, AudioSAE",
        "encoder.weight encoder.bias decoder.weight b_dec",
        read_topk,
        may="k threshold",
    ),
    _format(
        "dictionary_learning MatryoshkaBatchTopKSAE",
        "W_enc b_enc W_dec b_dec threshold group_sizes",
        lambda contents, k, kind: read_matryoshka(contents, k),
        may="k",
    ),
    _format(
        "dictionary_learning JumpReluAutoEncoder",
        "W_enc b_enc W_dec b_dec threshold",
        lambda contents, k, kind: read_jumprelu(contents),
    ),
    _format(
        "dictionary_learning GatedAutoEncoder",
        "encoder.weight decoder.weight decoder_bias r_mag gate_bias mag_bias",
        lambda contents, k, kind: read_gated(contents),
    ),
    _format(
        "whisper-sae v1, dictionary_learning AutoEncoderNew",
        "encoder.weight encoder.bias decoder.weight decoder.bias",
        lambda contents, k, kind: read_two_layers(contents),
    ),
    _format(
        "FREUD TopK",
        "encoder.weight encoder.bias W_dec b_dec",
        lambda contents, k, kind: read_freud_topk(contents, k),
    ),
    _format(
        "FREUD L1, Reid 2023",
        "decoder.weight encoder_bias",
        lambda contents, k, kind: read_tied(contents),
    ),
)
"""The state dictionaries that are known; no two have the same tensors."""

KINDS = ("topk", "batchtopk")

DICTIONARY_NAME = "ae.pt"
"""What dictionary_learning calls its file, in a folder with `config.json`."""


def load_sae(
    path: str | os.PathLike[str],
    *,
    hook_name: str | None = None,
    k: int | None = None,
    architecture: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> SAE:
    """A sparse autoencoder from a file or folder, whoever trained it.

    Known are SAELens's folders, state dictionaries of dictionary_learning and
    AudioSAE, checkpoints of FREUD, of Reid 2023 and of whisper-sae v1. Latents
    and reconstructions are those of the original's own code. No pickled object
    is ever executed.

    Args:
        path: A folder (SAELens's, or one with `ae.pt`), or a file.
        hook_name: Where it belongs. None is what the file says, which is `None`
            for files that don't.
        k: How many latents a TopK keeps, for files that don't say it.
        architecture: `"topk"` or `"batchtopk"`, for a state dictionary that could
            be either. None goes by `config.json`, then by whether a threshold
            was set, which only a BatchTopK uses.
        dtype: Of the weights; None is the file's own.
        device: Of the weights.

    Returns:
        The autoencoder in eval mode. BatchTopK comes as a JumpReLU with its
        inference threshold.

    Raises:
        SAEFileError: There is no such file, it is broken, unknown or
            inconsistent: says what was found and what is known.
        DeviceError: A device that is not there.
    """
    device = as_device(device)
    if architecture not in (None, *KINDS):
        raise SAEFileError(
            f"architecture is {architecture!r}; it can be {' or '.join(map(repr, KINDS))}, and "
            "only chooses between those two."
        )
    place = Path(path).expanduser()
    if place.name in (CFG_NAME, WEIGHTS_NAME) and is_saelens(place.parent):
        place = place.parent
    if place.is_dir() and is_saelens(place):
        found, has_kinds = read_saelens(place), False
    else:
        contents = read_contents(_weights_file(place))
        beside = contents.path.with_name("config.json")
        if contents.path.name == DICTIONARY_NAME and beside.is_file():
            contents.config = read_config(beside)
        kind_of_file = _recognised(contents)
        found = kind_of_file.read(contents, k, architecture)
        has_kinds = kind_of_file.read is read_topk
    _check_asked(found, k, None if has_kinds else architecture)
    if hook_name is not None:
        found.cfg["hook_name"] = hook_name
    return build(found, dtype, device)


def _check_asked(found: Found, k: int | None, architecture: str | None) -> None:
    """Refuse what the caller says of a file that says something else, or has no such thing."""
    is_named = found.cfg["architecture"]
    if architecture not in (None, is_named):
        raise SAEFileError(
            f"{found.path} is a {is_named!r} autoencoder; architecture={architecture!r} only "
            "chooses between two that have the same tensors. Leave it out."
        )
    said = found.cfg.get("k", found.cfg["metadata"].get("k"))
    if k not in (None, said):
        has = f"keeps {said} latents" if said else "keeps no fixed number of latents"
        raise SAEFileError(f"{found.path}, a {is_named!r} autoencoder, {has}; got k={k!r}.")


def _weights_file(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise SAEFileError(f"there is no {place}: give a folder or a file.")
    if (place / DICTIONARY_NAME).is_file():
        return place / DICTIONARY_NAME
    held = ", ".join(sorted(each.name for each in place.iterdir())[:12]) or "nothing"
    raise SAEFileError(
        f"{place} holds {held}. A folder needs {CFG_NAME} and {WEIGHTS_NAME} (SAELens) or "
        f"{DICTIONARY_NAME} (dictionary_learning, AudioSAE); for other weights give the file."
    )


def _recognised(contents: Contents) -> Format:
    names = frozenset(contents.tensors)
    for each in FORMATS:
        if each.needs <= names <= each.needs | each.may:
            return each
    known = "; ".join(f"{each.name} ({', '.join(sorted(each.needs))})" for each in FORMATS)
    raise SAEFileError(
        f"{contents.path} is no autoencoder that is known: it holds {contents.describe()}. Known "
        f"are SAELens's folders and these state dictionaries: {known}."
    )
