"""One door for all files of sparse autoencoders: what a file holds, as an object of this package.

A suite is autoencoders of several sites of one model, a folder each.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

import hooked_whisper.digits as digits
from hooked_whisper.device import as_device
from hooked_whisper.errors import SAEConfigError, SAEFileError
from hooked_whisper.io import as_path
from hooked_whisper.sae.architectures import ARCHITECTURES, config_from_dict, make_sae
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.io.contents import Contents, read_contents
from hooked_whisper.sae.io.saelens import is_saelens, read_saelens
from hooked_whisper.sae.io.state_dicts import FORMATS, Format, Found, read_topk
from hooked_whisper.sae.saving import CFG_NAME, WEIGHTS_NAME, check_tensors
from hooked_whisper.weights.files import FLOAT_DTYPES

SHIPPED = {"digits": digits.FOLDER.parent / "saes"}
"""Suites that come with the package, by the name of their model."""

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a decoder row is that was kept at 1."""

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
    if dtype not in (None, *FLOAT_DTYPES):
        raise SAEFileError(f"dtype is {dtype!r}; weights are floats, such as torch.float32.")
    with _file_errors(path):
        return _load(as_path(path, SAEFileError), hook_name, k, architecture, dtype, device)


LONGEST = 600
"""Characters of an error about a file, which may hold values and names of any length."""


@contextmanager
def _file_errors(path: object) -> Iterator[None]:
    """Whatever a file of others brings about, as an error that can be read."""
    try:
        yield
    except SAEFileError as error:
        text = str(error)
        if len(text) <= LONGEST:
            raise
        raise SAEFileError(f"{text[:400]} ... {text[-150:]}") from error
    except (OSError, RecursionError, OverflowError) as error:
        raise SAEFileError(
            f"{repr(path)[:150]} cannot be read ({type(error).__name__}: {str(error)[:200]}). "
            "Download or save it again."
        ) from error


def _load(
    place: Path,
    hook_name: str | None,
    k: int | None,
    architecture: str | None,
    dtype: torch.dtype | None,
    device: torch.device,
) -> SAE:
    if architecture not in (None, *KINDS):
        raise SAEFileError(
            f"architecture is {architecture!r}; it can be {' or '.join(map(repr, KINDS))}, and "
            "only chooses between those two."
        )
    if place.name in (CFG_NAME, WEIGHTS_NAME) and is_saelens(place.parent):
        place = place.parent
    if place.is_dir() and is_saelens(place):
        found, has_kinds = read_saelens(place), False
    else:
        file = _weights_file(place)
        beside = file.with_name("config.json")
        has_config = file.name == DICTIONARY_NAME and beside.is_file()
        contents = read_contents(file, beside if has_config else None)
        kind_of_file = _recognised(contents)
        found = kind_of_file.read(contents, k, architecture)
        has_kinds = kind_of_file.read is read_topk
    _check_asked(found, k, None if has_kinds else architecture)
    if hook_name is not None:
        found.cfg["hook_name"] = hook_name
    return _build(found, dtype, device)


def _check_asked(found: Found, k: int | None, architecture: str | None) -> None:
    """Refuse what the caller says of a file that says something else, or has no such thing."""
    is_named = found.cfg["architecture"]
    if architecture not in (None, is_named):
        raise SAEFileError(
            f"{found.path} is a {is_named!r} autoencoder; architecture={architecture!r} only "
            "chooses between two that have the same tensors. Leave it out."
        )
    own_k = found.cfg.get("k", found.cfg["metadata"].get("k"))
    if k not in (None, own_k):
        has = f"keeps {own_k} latents" if own_k else "keeps no fixed number of latents"
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
    for each in FORMATS:
        if each.matches(set(contents.tensors)):
            return each
    known = "; ".join(f"{each.name} ({', '.join(sorted(each.needs.split()))})" for each in FORMATS)
    raise SAEFileError(
        f"{contents.path} is no autoencoder that is known: it holds {contents.describe()}. Known "
        f"are SAELens's folders and these state dictionaries: {known}."
    )


def load_suite(
    source: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> dict[str, SAE]:
    """The autoencoders of a suite by the hook that each belongs to, ready for `model.saes`.

    Args:
        source: `"digits"`, which ships with the package; or a folder with a
            folder for each autoencoder, as `sae.save` writes it.
        dtype: Of the weights; None is the files' own.
        device: Of the weights.

    Raises:
        SAEFileError: No such folder, none in it, one that cannot be read or does not say where
            it belongs, or two that belong to one hook.
        DeviceError: A device that is not there.

    >>> list(load_suite("digits"))[:2]
    ['decoder.blocks.0.hook_resid_post', 'decoder.blocks.1.hook_resid_post']
    """
    shipped = SHIPPED.get(source) if isinstance(source, str) else None
    folder = shipped or as_path(source, SAEFileError)
    if not folder.is_dir():
        raise SAEFileError(f"there is no folder {folder}. Shipped are: {', '.join(SHIPPED)}.")
    suite: dict[str, SAE] = {}
    with _file_errors(folder):
        paths = sorted(each for each in folder.iterdir() if (each / "cfg.json").is_file())
    for path in paths:
        sae = load_sae(path, dtype=dtype, device=device)
        name = sae.cfg.hook_name
        if name is None or name in suite:
            what = (
                "does not say which hook it belongs to" if name is None else f"is a second {name!r}"
            )
            raise SAEFileError(f"{path} {what}; a suite has one autoencoder for each hook.")
        suite[name] = sae
    if not suite:
        raise SAEFileError(f"{folder} holds no folder with an autoencoder, as sae.save writes it.")
    return suite


def _build(found: Found, dtype: torch.dtype | None, device: torch.device) -> SAE:
    """The autoencoder, in eval mode; its weights share no memory with anything else."""
    for name, value in found.tensors.items():
        if value.dtype not in FLOAT_DTYPES:
            raise SAEFileError(f"{name} in {found.path} holds {value.dtype}; weights are floats.")
    _check_types(found)
    W_dec = found.tensors.get("W_dec")
    if W_dec is not None and "unit_norm_decoder" not in found.cfg:
        lengths = W_dec.float().norm(dim=-1)
        found.cfg["unit_norm_decoder"] = bool((lengths - 1).abs().max() < UNIT_TOLERANCE)
    try:
        cfg = config_from_dict(found.cfg)
    except SAEConfigError as error:
        raise SAEFileError(f"{found.path}: {error}") from error
    got = {name: tuple(value.shape) for name, value in found.tensors.items()}
    wanted: dict[str, tuple[int, ...]] = {"W_dec": (cfg.d_sae, cfg.d_out)}
    if not found.cfg.get("tied"):
        wanted["W_enc"] = (cfg.d_in, cfg.d_sae)
    if all(got.get(name) == shape for name, shape in wanted.items()):
        # Only now: matrices of the sizes that the configuration claims have been read. (The
        # meta device would allocate nothing; drawing on it imports torch's compiler, for 3 s.)
        sae = make_sae(cfg, torch.Generator())
        wanted = {name: tuple(value.shape) for name, value in sae.state_dict().items()}
    if wanted != got:
        raise SAEFileError(
            f"{found.path} does not fit together: a {cfg.architecture!r} autoencoder with d_in "
            f"{cfg.d_in} and d_sae {cfg.d_sae} has {_listed(wanted)}; the file gives "
            f"{_listed(got)}."
        )
    check_tensors(found.tensors, found.path)
    dtype = dtype or found.dtype or found.tensors["W_dec"].dtype
    state = {name: _own(value, _dtype_of(name, dtype)) for name, value in found.tensors.items()}
    for name, value in state.items():
        if not value.isfinite().all():
            largest = float(found.tensors[name].abs().max())
            raise SAEFileError(
                f"{name} in {found.path} holds values of up to {largest:.3g}, which overflow in "
                f"{value.dtype}. Load it with dtype=torch.float32."
            )
    sae.load_state_dict(state, assign=True)
    return sae.to(device).eval()


def _check_types(found: Found) -> None:
    """Refuse fields of a type that the configuration cannot hold; JSON's lists become tuples."""
    config = ARCHITECTURES[found.cfg["architecture"]].Config
    for each in fields(config):
        value = found.cfg.get(each.name)
        if each.name not in found.cfg:
            continue
        if get_origin(each.type) is tuple and isinstance(value, list):
            value = found.cfg[each.name] = tuple(value)
        if not _fits(value, each.type):
            wanted = getattr(each.type, "__name__", each.type)
            raise SAEFileError(f"{found.path}: {each.name} is {value!r}; it must be of {wanted}.")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    kind = get_origin(kind) or kind
    return type(value) in (int, float) if kind is float else type(value) is kind


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """A running threshold stays float64, as SAELens keeps it."""
    return torch.float64 if name == "topk_threshold" else dtype


def _own(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers in contiguous memory of its own."""
    taken = value.detach().to(dtype=dtype, device="cpu").contiguous()
    shares = taken.data_ptr() == value.data_ptr() or taken.untyped_storage().nbytes() > taken.nbytes
    return taken.clone() if shares else taken


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
