"""From what a reader found in a file to an autoencoder of this package."""

from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

from hooked_whisper.errors import SAEConfigError, SAEFileError
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.files.tensors import check_tensors
from hooked_whisper.sae.registry import ARCHITECTURES, config_from_dict, make_sae


@dataclass
class Found:
    """An autoencoder as a reader understood it.

    Args:
        path: Where it was found.
        cfg: `"architecture"` and the fields of its configuration.
        tensors: By the names that this package's class gives them, [d_in, d_sae] for `W_enc`.
        dtype: What its weights are meant to be in; None is the decoder's dtype in the file.
    """

    path: Path
    cfg: dict[str, Any]
    tensors: dict[str, Tensor]
    dtype: torch.dtype | None = None


UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a decoder row is that was kept at 1."""


def build(found: Found, dtype: torch.dtype | None, device: torch.device) -> SAE:
    """The autoencoder, in eval mode; its weights share no memory with anything else.

    Args:
        found: What to make.
        dtype: Of the weights; None is the file's own.
        device: Of the weights.

    Raises:
        SAEFileError: Configuration and tensors do not fit together.
    """
    check_types(found)
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
    sae.load_state_dict(state, assign=True)
    return sae.to(device).eval()


def check_types(found: Found) -> None:
    """Refuse fields of a type that the configuration cannot hold; JSON's lists become tuples.

    Raises:
        SAEFileError: Names the field, its value and what it must be.
    """
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
