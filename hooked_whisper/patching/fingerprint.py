"""Short marks of what numbers were measured with, so that a search goes on with the same only.

A mark tells models, runs, metrics and edits apart by what they hold. It does
not see what a function reads from outside of itself, nor hooks of the user's own.
"""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.interventions.edits import Edit
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import Metric
from hooked_whisper.metrics.transcripts import TranscriptMetric
from hooked_whisper.model.whisper import HookedWhisper

_MOST_NUMBERS = 2**20
"""Of a tensor; a longer one is told by as many, evenly spaced."""
_PER_PARAMETER = 64


def conditions(
    model: HookedWhisper, metrics: Sequence[Any], **others: Sequence[Any]
) -> dict[str, Any]:
    """What a model, metrics and others are told by, in words and marks.

    Args:
        model: The model, told by its name and some of each weight.
        metrics: The metrics.
        others: Runs, edits or numbers, by what to call them.
    """
    weights = [some(each, _PER_PARAMETER) for each in model.parameters()]
    found = {
        "model": model.cfg.model_name,
        "weights": mark(weights),
        "metric's settings": mark(metrics),
    }
    return found | {name.replace("_", " "): mark(value) for name, value in others.items()}


def mark(value: Any) -> str:
    """Twelve letters that tell a value from others.

    >>> mark((1, 2)) == mark((1, 2)), mark((1, 2)) == mark((1, 3))
    (True, False)
    """
    found = hashlib.blake2b(digest_size=6)
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()


def some(tensor: Tensor, n: int) -> Tensor:
    """About `n` of a tensor's numbers, evenly spaced; all of a short one."""
    return tensor.detach().flatten()[:: max(1, tensor.numel() // n)]


def _parts(value: Any) -> Iterable[bytes]:
    """What a value is made of, as bytes, its kind first."""
    yield f"{type(value).__qualname__}:".encode()
    if isinstance(value, Tensor):
        numbers = some(value, _MOST_NUMBERS).contiguous()
        yield f"{tuple(value.shape)} {value.dtype} ".encode()
        yield numbers.view(torch.uint8).numpy(force=True).tobytes()
    elif isinstance(value, Example):
        yield from _each([value.mel.values, value.mel.n_frames, value.tokens])
    elif isinstance(value, types.FunctionType):
        yield from _each(_of_function(value))
    elif isinstance(value, functools.partial):
        yield from _each([value.func, value.args, value.keywords])
    elif isinstance(value, types.MethodType):
        yield from _each([value.__func__, value.__self__])
    elif isinstance(value, Mapping):
        yield from _each([part for name in value for part in (name, value[name])])
    elif isinstance(value, list | tuple):
        yield from _each(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _each([getattr(value, each.name) for each in dataclasses.fields(value)])
    elif isinstance(value, Metric | TranscriptMetric | Edit):
        yield from _each(vars(value))
    elif isinstance(value, str | int | float | slice | range | None):
        yield repr(value).encode()
    yield b";"


def _each(values: Iterable[Any]) -> Iterable[bytes]:
    for value in values:
        yield from _parts(value)


def _of_function(function: types.FunctionType) -> list[Any]:
    """What a function does, and the unchanging values that it was made with."""
    code = function.__code__
    held = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    constants = [each for each in code.co_consts if not isinstance(each, types.CodeType)]
    inner = [each.co_code.hex() for each in code.co_consts if isinstance(each, types.CodeType)]
    # A list or dictionary may be where the function keeps count.
    held = [each for each in held if not isinstance(each, list | dict | set)]
    names, made_of = code.co_names, [*constants, *inner]
    return [code.co_code.hex(), names, made_of, function.__defaults__, held]


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
