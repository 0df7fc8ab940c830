"""Weights that were found and checked, and how they get into a module."""

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import (
    ConfigError,
    WeightNameError,
    WeightsError,
    WeightShapeError,
    shown,
)
from hooked_whisper.weights.files import (
    FLOAT_DTYPES,
    PieceTensor,
    StoredTensor,
    is_finite,
    not_finite,
)
from hooked_whisper.weights.rename import check_names

if TYPE_CHECKING:
    from hooked_whisper.weights.adapter_changes import Adapter


@dataclass
class LoadedWeights:
    """Weights of one Whisper, every name and shape checked, most of them still in their file.

    `assign_weights` uses them up, so that what is in the model already is not
    held twice.
    """

    cfg: HookedWhisperConfig
    tensors: dict[str, StoredTensor]
    """By hooked_whisper's names."""
    source: str
    """What to call it in errors."""
    alignment_heads: Bool[Tensor, "layer head"] | None = None
    """Cross-attention heads that follow the speech; None where the source names none."""
    omitted: tuple[str, ...] = field(default=())
    """Names that the source leaves out, for the module to keep its own values."""
    adapter: "Adapter | None" = None
    """What an adapter makes of them, once they are in a model."""

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest that holds all of them as they are stored."""
        dtypes = {stored.dtype for stored in self.tensors.values()}
        return functools.reduce(torch.promote_types, dtypes)


def assign_weights(
    module: nn.Module,
    loaded: LoadedWeights,
    *,
    device: torch.device | str,
    dtype: torch.dtype | Literal["auto"],
) -> None:
    """Put weights into a module whose tensors carry no values yet (the meta device).

    The module changes only after every tensor was read. Largest tensors come
    first, so that the temporary piece of each meets the least memory in use.

    Args:
        module: Has exactly the tensors of `loaded`, and those it omits; the
            omitted ones must have values, and are moved along.
        device: Where the weights go.
        dtype: What all of them are converted to; "auto" is `loaded.dtype`.

    Raises:
        WeightNameError: The module has other tensors.
        WeightShapeError: The module's tensors have other shapes.
        CheckpointError: NaN or infinite values, or ones that overflow in `dtype`; or the file
            changed or broke after it was checked.
        ConfigError: `dtype` is no dtype of weights.
    """
    if isinstance(dtype, str) and dtype == "auto" and loaded.tensors:
        dtype = loaded.dtype
    dtype = check_dtype(dtype)
    if not loaded.tensors:
        raise WeightsError(f"the weights of {loaded.source} were used already; load them again.")
    places = dict(module.state_dict(keep_vars=True))
    _check_module(places, loaded)
    device = torch.device(device)
    values = {name: places[name].detach().to(device=device, dtype=dtype) for name in loaded.omitted}
    for name in sorted(loaded.tensors, key=lambda name: -places[name].numel()):
        stored = loaded.tensors.pop(name)
        values[name] = _finite(name, stored, device, dtype, loaded.source)
    for name, value in values.items():
        _put(module, name, value)


def _finite(
    name: str, stored: StoredTensor, device: torch.device, dtype: torch.dtype, source: str
) -> Tensor:
    """A tensor's values, once it is sure that all of them are finite."""
    seen: list[bool] = []
    if isinstance(stored, PieceTensor) and device.type == "cpu":
        value = stored.take(device, dtype, lambda piece: seen.append(is_finite(piece)))
    else:  # another device would be waited for at each piece
        value = stored.take(device, dtype)
        seen.append(is_finite(value))
    if not all(seen):
        raise not_finite(name, dtype, stored, source)
    return value


def check_dtype(dtype: object) -> torch.dtype:
    """The dtype, once it is sure that weights can be kept in it; ConfigError says which can."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOAT_DTYPES:
        allowed = ", ".join(map(str, FLOAT_DTYPES))
        raise ConfigError(f"dtype is {shown(dtype)}; weights are kept in one of {allowed}.")
    return dtype


def _check_module(places: dict[str, Tensor], loaded: LoadedWeights) -> None:
    check_names(set(places), {*loaded.tensors, *loaded.omitted}, loaded.source)
    for name, stored in loaded.tensors.items():
        if stored.shape != tuple(places[name].shape):
            raise WeightShapeError(
                f"{name!r} in {loaded.source} is {stored.shape}; this model needs "
                f"{tuple(places[name].shape)}. Build the model with the config of the weights."
            )
    for name in loaded.omitted:
        if places[name].is_meta:
            raise WeightNameError(
                f"{loaded.source} leaves out {name!r}, and the model holds no values for it. "
                "Build the model with values there."
            )


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = owner._parameters.get(leaf)
    if old is None:
        owner._buffers[leaf] = value
    else:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=old.requires_grad)
