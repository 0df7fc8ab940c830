"""From what a reader found in a file to an autoencoder of this package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import SAEConfigError, SAEFileError
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.files.tensors import check_tensors
from hooked_whisper.sae.registry import config_from_dict, make_sae


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


def build(found: Found, dtype: torch.dtype | None, device: torch.device) -> SAE:
    """The autoencoder, in eval mode; its weights share no memory with anything else.

    Args:
        found: What to make.
        dtype: Of the weights; None is the file's own.
        device: Of the weights.

    Raises:
        SAEFileError: Configuration and tensors do not fit together.
    """
    try:
        cfg = config_from_dict(found.cfg)
    except SAEConfigError as error:
        raise SAEFileError(f"{found.path}: {error}") from error
    # On the meta device nothing is allocated, and nothing is drawn that would be overwritten.
    with torch.device("meta"):
        sae = make_sae(cfg)
    wanted = {name: tuple(value.shape) for name, value in sae.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in found.tensors.items()}
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
