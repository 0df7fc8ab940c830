"""Named tensors out of a file, whoever wrote it, and the checks that all formats share.

Only safetensors and `torch.load(weights_only=True)` are read. Nothing is
allocated by what a file says of itself before its bytes are known to be there.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import CheckpointError, SAEFileError
from hooked_whisper.weights.files import FLOAT_DTYPES, read_json
from hooked_whisper.weights.pieces import safetensors_tensors
from hooked_whisper.weights.torch_files import read_torch

STATE_KEYS = ("model", "state_dict", "model_state_dict")
"""Where a training checkpoint keeps the weights."""

WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name."""


@dataclass
class Contents:
    """What a file of weights held.

    Args:
        path: The file.
        tensors: By name, as the file has them; they may still be mapped.
        around: What a training checkpoint held beside the weights.
        config: The JSON file beside it, where there is one.
    """

    path: Path
    tensors: dict[str, Tensor]
    around: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """Every tensor's name and shape, as an error quotes them."""
        if not self.tensors:
            return "no tensors"
        shown = [f"{name} {tuple(value.shape)}" for name, value in list(self.tensors.items())[:12]]
        more = len(self.tensors) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def sizes(self, layout: Mapping[str, str]) -> dict[str, int]:
        """The sizes of named axes, after a check that all tensors agree on them.

        Args:
            layout: Axes of each tensor, such as `"d_sae d_in"`; `""` is a
                scalar. Tensors that the file does not have are left out.
        """
        sizes: dict[str, int] = {}
        for name, axes_text in layout.items():
            if name not in self.tensors:
                continue
            shape = tuple(self.tensors[name].shape)
            axes = axes_text.split()
            for axis, size in zip(axes, shape, strict=False):
                sizes.setdefault(axis, size)
            wanted = tuple(sizes.get(axis, "?") for axis in axes)
            if shape != wanted or 0 in shape:
                raise SAEFileError(
                    f"{name} in {self.path} is {shape}; it must be {_written(wanted)}, which is "
                    f"[{', '.join(axes)}] by the other tensors. The file holds {self.describe()}."
                )
        return sizes

    def scalar(self, name: str) -> float | int | None:
        """The value of a tensor with one element; None where the file has none of that name."""
        value = self.tensors.get(name)
        if value is None:
            return None
        if value.numel() != 1:
            raise SAEFileError(
                f"{name} in {self.path} is {tuple(value.shape)}; it must be a single number."
            )
        return value.item()


def read_contents(path: Path, config: Path | None = None) -> Contents:
    """The tensors of a `.safetensors` file, or of one that `torch.save` wrote, and its JSON."""
    try:
        beside = {} if config is None else read_json(config)
        if path.suffix == ".safetensors":
            cpu, stored = torch.device("cpu"), safetensors_tensors(path)
            tensors = {name: tensor.take(cpu, tensor.dtype) for name, tensor in stored.items()}
            return Contents(path, tensors, config=beside)
        return replace(_read_torch_file(path), config=beside)
    except CheckpointError as error:
        raise SAEFileError(str(error)) from error


def _read_torch_file(path: Path) -> Contents:
    with _numpy_numbers():
        checkpoint = read_torch(path)
    if not isinstance(checkpoint, Mapping):
        raise SAEFileError(
            f"{path} holds a {type(checkpoint).__name__}; an autoencoder is a dictionary of "
            "tensors by name. Save sae.state_dict()."
        )
    where = next((key for key in STATE_KEYS if isinstance(checkpoint.get(key), Mapping)), None)
    state = checkpoint if where is None else checkpoint[where]
    around = {} if where is None else {key: checkpoint[key] for key in checkpoint if key != where}
    tensors = {}
    for name, value in _unwrapped(state).items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise SAEFileError(
                f"{name!r} in {path} is a {type(value).__name__}; an autoencoder's state "
                "dictionary holds tensors by name."
            )
        _check_plain(name, value, path)
        tensors[name] = value
    return Contents(path, tensors, around)


def _unwrapped(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
    for prefix in WRAPPERS:
        if state and all(isinstance(key, str) and key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _check_plain(name: str, value: Tensor, path: Path) -> None:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        kind = "meta" if value.is_meta else "quantised or sparse"
        raise SAEFileError(f"{name} in {path} is a {kind} tensor; weights are plain and dense.")
    if value.untyped_storage().nbytes() < value.nbytes:
        raise SAEFileError(
            f"{name} in {path} says that it is {tuple(value.shape)}, and only "
            f"{value.untyped_storage().nbytes()} of its {value.nbytes} bytes are there."
        )
    if value.dtype not in (*FLOAT_DTYPES, torch.int32, torch.int64):
        raise SAEFileError(f"{name} in {path} holds {value.dtype} values; weights are floats.")


def _numpy_numbers() -> AbstractContextManager[Any]:
    """Let `weights_only` read numpy's float64 scalars, which are plain numbers.

    FREUD's best checkpoints hold one: the validation loss.
    """
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed: list[Any] = [(scalar, name) for name in names]
    return torch.serialization.safe_globals([*allowed, np.dtype, np.dtypes.Float64DType])


def _written(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"
