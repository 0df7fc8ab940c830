"""Storing activations while the model runs, so that nothing changes them afterwards."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hooked_whisper.config import FRAMES_PER_POSITION
from hooked_whisper.device import as_device
from hooked_whisper.errors import CacheError, HookNameError
from hooked_whisper.hooks.attached import HookedModel, frozen
from hooked_whisper.hooks.names import NamesFilter, is_exact
from hooked_whisper.hooks.points import HookPoint

Index = int | slice | list[int] | Tensor
"""Which positions to keep: one (its axis goes), a range, or a choice of them."""

GRADIENT_SUFFIX = "_grad"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Collector:
    """The forward hook that fills a cache.

    Activations are detached, and copied where a later in-place operation
    could reach their memory: when several names share it, when another hook
    may write to it, or when only a part of it is kept.

    Args:
        copy: Copy everything, because other hooks could write in place.
        with_gradients: Also store each activation's gradient, as `name_grad`.
        device: Where to keep the tensors; None keeps them where they are.
        dtype: What to keep floating-point tensors in; None leaves them.
        remove_batch_dim: Drop the batch axis, which must be 1.
        pos_slice: Decoder positions to keep; None keeps all.
        frame_slice: Encoder positions (20 ms each) to keep; None keeps all.
            Mel frames and the first convolution's run at twice the rate and
            keep the two frames of every position.
    """

    def __init__(
        self,
        *,
        copy: bool = False,
        with_gradients: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        remove_batch_dim: bool = False,
        pos_slice: Index | None = None,
        frame_slice: Index | None = None,
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.axes: dict[str, tuple[str, ...]] = {}
        self.copy = copy
        self.with_gradients = with_gradients
        self.device = None if device is None else as_device(device)
        self.dtype = None if dtype is None else check_dtype(dtype)
        self.remove_batch_dim = remove_batch_dim
        self.slices = {"decoder": pos_slice, "encoder": frame_slice}
        for index in self.slices.values():
            if index is not None:
                _wanted(index)
        self._memory: set[int] = set()

    def __call__(self, value: Tensor, *, hook: Any) -> Tensor | None:
        """Store an activation; with gradients, pass on an alias that reports its own."""
        self.store(hook.name, value, hook)
        if not self.with_gradients:
            return None
        watched = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        watched.register_hook(
            lambda gradient: self.store(hook.name + GRADIENT_SUFFIX, gradient, hook)
        )
        return watched

    def store(self, name: str, value: Tensor, point: HookPoint) -> None:
        """Keep a tensor under a name, without its history and with memory of its own."""
        kept = value.detach()
        axes = point.axes
        index = self.slices[name.split(".")[0]]
        if index is not None:
            kept, axes = take(kept, axes, index, name)
        if self.remove_batch_dim:
            if kept.shape[0] != 1:
                raise CacheError(
                    f"remove_batch_dim needs a batch of 1; {name!r} has a batch of {kept.shape[0]}."
                )
            kept, axes = kept[0], axes[1:]
        dtype = self.dtype if kept.is_floating_point() and self.dtype else kept.dtype
        kept = kept.to(self.device or kept.device, dtype)
        if self.copy or self.shares_memory(kept):
            kept = kept.clone()
        self._memory.add(kept.untyped_storage().data_ptr())
        self.tensors[name] = kept
        self.axes[name] = axes

    def shares_memory(self, value: Tensor) -> bool:
        """Whether a tensor lies in memory that the collection already holds."""
        return value.untyped_storage().data_ptr() in self._memory


class StepCollector:
    """A forward hook that keeps each decoding step's activations, and joins them along positions.

    Steps see ever more keys. Where a step's queries did not see a later key
    yet, the joined pattern holds 0 and the joined scores -inf: what the
    causal mask gives in one pass.
    """

    def __init__(self) -> None:
        self.axes: dict[str, tuple[str, ...]] = {}
        self._steps: dict[str, list[Tensor]] = {}

    def __call__(self, value: Tensor, *, hook: Any) -> None:
        """Keep a copy of one step's activation."""
        self._steps.setdefault(hook.name, []).append(value.detach().clone())
        self.axes[hook.name] = hook.axes

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The activations of all steps, as one pass would give them."""
        return {name: self._join(name) for name in self._steps}

    def _join(self, name: str) -> Tensor:
        steps, axes = self._steps[name], self.axes[name]
        if len(steps) == 1:
            return steps[0]
        if "query" in axes:
            n_keys = max(step.shape[-1] for step in steps)
            unseen = float("-inf") if name.endswith("hook_attn_scores") else 0.0
            steps = [F.pad(step, (0, n_keys - step.shape[-1]), value=unseen) for step in steps]
        return torch.cat(steps, dim=axes.index("query" if "query" in axes else "pos"))


def take(
    value: Tensor, axes: tuple[str, ...], index: Index, name: str
) -> tuple[Tensor, tuple[str, ...]]:
    """The chosen positions of an activation, in new memory, and the axes that are left."""
    for axis in ("pos", "query", "frame"):
        if axis not in axes:
            continue
        dim = axes.index(axis)
        per_position = FRAMES_PER_POSITION if axis == "frame" else 1
        positions = _positions(index, value.shape[dim] // per_position, name)
        if axis == "frame":
            steps = torch.arange(FRAMES_PER_POSITION)
            frames = (FRAMES_PER_POSITION * positions[:, None] + steps).flatten()
            return value.index_select(dim, frames.to(value.device)), axes
        kept = value.index_select(dim, positions.to(value.device))
        if isinstance(index, int):
            return kept.squeeze(dim), axes[:dim] + axes[dim + 1 :]
        return kept, axes
    return value, axes


def _positions(index: Index, n: int, name: str) -> Tensor:
    everything = torch.arange(n)
    wanted = _wanted(index)
    if isinstance(wanted, slice):
        if not len(everything[wanted]):
            raise CacheError(f"{index!r} chooses none of the {n} positions of {name!r}.")
        return everything[wanted]
    if ((wanted < -n) | (wanted >= n)).any():
        raise CacheError(f"{index!r:.200} is out of range: {name!r} has {n} positions.")
    return everything[wanted]


def _wanted(index: Any) -> slice | Tensor:
    """Positions as a slice that goes forward or as integers."""
    try:
        if isinstance(index, slice):
            torch.arange(1)[index]  # refuses what is no integer, and steps back
            return index
        wanted = torch.as_tensor(index).flatten().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise CacheError(
            f"{index!r:.200} chooses no positions. Pass an integer, a slice that goes forward, or "
            "a list."
        ) from error
    if wanted.dtype not in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64):
        raise CacheError(
            f"{index!r:.200} chooses no positions. Pass an integer, a slice or a list."
        )
    return wanted


def check_dtype(dtype: Any) -> torch.dtype:
    """What activations can be kept in.

    Raises:
        CacheError: Integers, which would round them, 8-bit floats, which overflow, or no dtype.
    """
    if dtype not in FLOATS:
        names = ", ".join(map(str, FLOATS))
        raise CacheError(f"dtype is {dtype!r:.100}; activations are kept in one of {names}.")
    return dtype


def run_backward(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Run forward and backward without leaving gradients on the parameters."""
    needed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad(), frozen(needed):
        output = model(*args, **kwargs)
        if not isinstance(output, Tensor) or output.numel() != 1:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise CacheError(
                f"incl_bwd needs one number to start from; the model returned {shape}. "
                'Pass return_type="loss".'
            )
        output.backward()
    return output.detach()


def check_fired(model: HookedModel, names_filter: NamesFilter, collector: Collector) -> None:
    """Refuse to leave out in silence what was asked for by name, or to return nothing."""
    if names_filter is None:
        return
    asked: list[Any] = [names_filter]
    if isinstance(names_filter, (list, tuple, set)) and not is_exact(names_filter):
        asked = list(names_filter)
    exact = [name for each in asked if is_exact(each) for name in model.hook_names(each)]
    missing = [name for name in exact if name not in collector.tensors]
    if missing or not collector.tensors:
        what = repr(missing[0]) if missing else f"none of {names_filter!r}"
        raise HookNameError(
            f"{what} did not fire in this run. The decoder's hooks need tokens, and those "
            "behind stop_at_layer never run."
        )
