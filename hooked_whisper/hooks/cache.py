"""The activations of a run, by name: a mapping of tensors with named axes."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import xxhash
from markupsafe import Markup
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_SECOND, Stack
from hooked_whisper.device import as_device
from hooked_whisper.display import box, count, fold, note, size, table
from hooked_whisper.errors import CacheError, HookNameError
from hooked_whisper.hooks.collector import check_dtype
from hooked_whisper.hooks.names import (
    NamesFilter,
    count_layers,
    expand_shorthand,
    explain_miss,
    is_shorthand,
    match_names,
)
from hooked_whisper.hooks.residual import ResidualAnalysis
from hooked_whisper.io import bytes_of, parse_json, save_tensors

_FORMAT, _FORMER_FORMAT = "hooked_whisper.cache/2", "hooked_whisper.cache/1"
"""The former one has no checksum."""
_REMEDY = "Run the model again, or take another copy of the file."
_MOST_OPEN = 12
"""Activations up to which a notebook shows all of them at once."""


class WhisperCache(ResidualAnalysis, Mapping[str, Tensor]):
    """Activations by hook name. Holds no model, and nothing changes it but its user.

    Read one by its name, or by shorthand:

        cache["encoder.blocks.0.attn.hook_pattern"]
        cache["encoder", 0, "pattern"]
        cache["decoder", 1, "pattern", "cross_attn"]
        cache["decoder", "logits"]

    Args:
        tensors: The activations.
        axes: The names of each one's axes, in order.
        n_frames: Mel frames of each recording that hold sound, where known;
            the rest of the window is padding.
        n_layers: Layers of each stack of the model, where known, as a cache
            of some layers cannot tell them from its names.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        axes: Mapping[str, tuple[str, ...]],
        n_frames: Tensor | None = None,
        n_layers: Mapping[str, int] | None = None,
    ) -> None:
        self._tensors = dict(tensors)
        self._axes = {name: tuple(axes[name]) for name in self._tensors}
        self.n_frames = n_frames
        self._n_layers = dict(n_layers or {})
        for name, value in self._tensors.items():
            if value.ndim != len(self._axes[name]):
                raise CacheError(
                    f"{name!r:.200} has shape {tuple(value.shape)}, which does not fit its axes "
                    f"{self._axes[name]!s:.200}."
                )

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        return self._tensors[self.full_name(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        try:
            return self.full_name(key) in self._tensors  # type: ignore[arg-type]
        except KeyError:
            return False

    def __repr__(self) -> str:
        return f"WhisperCache({len(self)} activations, {self.nbytes / 2**20:.1f} MiB)"

    def _repr_html_(self) -> str:
        """All activations with their axes and sizes, as a tree by stack and block."""
        tree: dict[str, dict[str, list[str]]] = {}
        for name in self:
            parts = name.split(".")
            branch = ".".join(parts[: 3 if parts[1:2] == ["blocks"] else 1])
            tree.setdefault(parts[0], {parts[0]: []}).setdefault(branch, []).append(name)
        kinds = dict.fromkeys(f"{each.dtype}, {each.device}" for each in self.values())
        about = f"{count(len(self), 'activation')}, {size(self.nbytes)} ({'; '.join(kinds)})"
        shown = [self._branch(stack, branches) for stack, branches in tree.items()]
        if self.n_frames is not None:
            seconds = ", ".join(f"{n / FRAMES_PER_SECOND:.2f}" for n in self.n_frames.tolist())
            shown.append(note(f"Sound in each window, before the padding: {seconds} s."))
        return box(type(self).__name__, about, *shown)

    def _branch(self, stack: str, branches: dict[str, list[str]]) -> Markup:
        """A stack's activations: those outside of its blocks, and each block's in a fold."""
        names = [name for each in branches.values() for name in each]
        if len(self) <= _MOST_OPEN:
            return fold(self._summary(stack, names), self._table(names), is_open=True)
        own = branches.pop(stack)
        folds = [
            fold(self._summary(block, each), self._table(each)) for block, each in branches.items()
        ]
        return fold(
            self._summary(stack, names), *([self._table(own)] if own else []), *folds, is_open=True
        )

    def _table(self, names: list[str]) -> Markup:
        rows = []
        for name in names:
            value = self._tensors[name]
            axes = zip(self._axes[name], value.shape, strict=True)
            rows.append([name, ", ".join(f"{axis} {n}" for axis, n in axes), size(value.nbytes)])
        return table(["hook", "axes", "size"], rows)

    def _summary(self, branch: str, names: list[str]) -> str:
        n_bytes = sum(self._tensors[name].nbytes for name in names)
        return f"{branch}: {count(len(names), 'activation')}, {size(n_bytes)}"

    def full_name(self, key: str | tuple[Any, ...]) -> str:
        """The hook name that a name or shorthand stands for.

        Raises:
            HookNameError: The cache does not hold it; the message has the nearest names.
        """
        if isinstance(key, str) and key in self._tensors:
            return key
        if is_shorthand(key):
            return expand_shorthand(key, self._tensors, n_layers=self._n_layers)  # type: ignore[arg-type]
        raise HookNameError(f"the cache: {explain_miss(str(key), self._tensors)}")

    def axes(self, key: str | tuple[Any, ...]) -> tuple[str, ...]:
        """The names of an activation's axes, in order; the config module has their glossary."""
        return self._axes[self.full_name(key)]

    @property
    def has_batch_dim(self) -> bool:
        """Whether the activations have a batch axis."""
        return all("batch" in axes for axes in self._axes.values())

    @property
    def nbytes(self) -> int:
        """Bytes that the activations take."""
        return sum(value.nbytes for value in self._tensors.values())

    def n_layers(self, stack: Stack) -> int:
        """Layers of a stack of the model that the activations come from."""
        return self._n_layers.get(stack, count_layers(stack, self._tensors))

    def subset(self, names_filter: NamesFilter) -> "WhisperCache":
        """A cache of some of the activations, which it shares with this one.

        Raises:
            HookNameError: A name that the cache does not hold.
        """
        names = match_names(names_filter, self._tensors)
        return self._with({name: self._tensors[name] for name in names})

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "WhisperCache":
        """A cache on another device or in another floating-point dtype.

        This one stays as it is; tensors that need no change are in both.

        Raises:
            DeviceError: A device that is not there.
        """
        device = None if device is None else as_device(device)
        dtype = None if dtype is None else check_dtype(dtype)
        return self._with(
            {
                name: value.to(
                    device or value.device,
                    dtype if dtype and value.is_floating_point() else value.dtype,
                )
                for name, value in self._tensors.items()
            }
        )

    def _with(self, tensors: dict[str, Tensor]) -> "WhisperCache":
        axes = {name: self._axes[name] for name in tensors}
        return WhisperCache(tensors, axes, self.n_frames, self._n_layers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the activations, their axes and the recordings' lengths as safetensors.

        Raises:
            CacheError: The folder does not exist, or the file cannot be written.
        """
        header = {
            "format": _FORMAT,
            "axes": json.dumps(self._axes),
            "n_frames": json.dumps(None if self.n_frames is None else self.n_frames.tolist()),
            "n_layers": json.dumps(self._n_layers),
        }
        try:
            header["xxh3_128"] = _checksum(self._tensors, header)
            save_tensors(Path(path), self._tensors, header)
        except (OSError, SafetensorError, TypeError, ValueError, NotImplementedError) as error:
            raise CacheError(
                f"the cache cannot be written to {path!s:.200}: {str(error)[:200]}."
            ) from error

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> "WhisperCache":
        """Read what `save` wrote.

        Raises:
            CacheError: No such file, another kind of file, or a damaged one.
            DeviceError: A device that is not there.
        """
        device = as_device(device)
        where = f"{path!s:.200}"
        try:
            if not Path(path).is_file():
                raise FileNotFoundError("no such file")
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") not in (_FORMAT, _FORMER_FORMAT):
                    raise CacheError(
                        f"{where} is no activation cache: its format is "
                        f"{header.get('format')!r:.100}, not {_FORMAT!r}. Write one with "
                        "cache.save(path)."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except CacheError:
            raise
        except Exception as error:  # whatever safetensors and PyTorch say of such a file
            raise CacheError(
                f"{where} cannot be read as an activation cache: {str(error)[:200]}."
            ) from error
        told = header.pop("xxh3_128", None)
        if header["format"] == _FORMER_FORMAT:
            warnings.warn(
                f"{where} is a cache of an earlier release, without a checksum: damage to its "
                "values cannot be seen. Save it again: WhisperCache.load(path).save(path).",
                stacklevel=2,
            )
        elif told != _checksum(tensors, header):
            raise CacheError(f"{where} is damaged: its checksum is of other content. {_REMEDY}")
        from msgspec import Meta  # which `import hooked_whisper` does not need

        natural = Annotated[int, Meta(ge=0, le=10**9)]
        kinds: dict[str, Any] = {
            "axes": dict[str, tuple[str, ...]],
            "n_frames": list[natural] | None,
        }
        kinds["n_layers"] = dict[Stack, natural]
        axes, lengths, n_layers = (
            parse_json(header.get(key, ""), kind, CacheError, f"{key} of {where}", _REMEDY)
            for key, kind in kinds.items()
        )
        if {*axes} != {*tensors}:
            odd = min({*axes} ^ {*tensors})
            raise CacheError(
                f"{where} is damaged: {odd!r:.100} has values or axes, not both. {_REMEDY}"
            )
        for name, names in axes.items():
            n_rows = tensors[name].shape[:1] if names[:1] == ("batch",) else ()
            if lengths and name.startswith("encoder.") and n_rows and n_rows[0] != len(lengths):
                raise CacheError(
                    f"{where} is damaged: n_frames is of {len(lengths)} recordings, and "
                    f"{name!r:.100} has {n_rows[0]}. {_REMEDY}"
                )
        # safetensors sorts by name; the axes were written in the model's order.
        ordered = {name: tensors[name].to(device) for name in axes}
        n_frames = None if lengths is None else torch.tensor(lengths, device=device)
        return cls(ordered, axes, n_frames, n_layers)


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Of all that a file holds."""
    state = xxhash.xxh3_128()
    for key, text in sorted(header.items()):
        state.update(f"{key} {text};".encode())
    for name, value in sorted(tensors.items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        state.update(bytes_of(value.detach().cpu().contiguous()))
    return state.hexdigest()
