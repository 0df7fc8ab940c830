"""Results that are not finished: kept when a search stops, and gone on with if nothing changed.

Fingerprints tell models, runs, metrics and edits apart by what they hold. They do
not see what a function reads from outside of itself, nor hooks of the user's own.
"""

import dataclasses
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import InterventionError, SweepError, shown
from hooked_whisper.interventions.edits import Edit
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import Metric
from hooked_whisper.metrics.transcripts import TranscriptMetric
from hooked_whisper.model.whisper import HookedWhisper

_MOST_NUMBERS = 2**20
"""Of a tensor; of a longer one as many count, evenly spaced."""
_PER_PARAMETER = 64


@contextmanager
def partial_result_on_interrupt(
    result: Callable[[], Any], so_far: Callable[[], str], *, is_kept: bool = False
) -> Iterator[None]:
    """End at Ctrl-C as if all were done; turn an error into one that holds the result.

    `is_kept` says that the result is on the disk, where the same call finds it.
    """
    try:
        yield
    except KeyboardInterrupt:
        how = "the same call goes on" if is_kept else "pass resume=result to go on"
        print(f"\nstopped after {so_far()}; {how}.", file=sys.stderr)
    except Exception as error:
        if result().n_done == 0:
            raise
        raise SweepError(
            f"after {so_far()}: {type(error).__name__}: {error} What is done is in error.result.",
            result(),
        ) from error


def check_same(earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a result that was made with something else than now."""
    for what in now:
        if earlier.get(what) != now[what]:
            theirs, ours = (shown(each.get(what), 120) for each in (earlier, now))
            raise InterventionError(
                f"the result to resume has other {what}: {theirs}, not {ours}. Leave out resume "
                "to begin anew."
            )


def fingerprints(
    model: HookedWhisper, metrics: Sequence[Any], **others: Sequence[Any]
) -> dict[str, Any]:
    """What a model, metrics and others are told apart by."""
    weights = [subsample(each, _PER_PARAMETER) for each in model.parameters()]
    found = {
        "model": model.cfg.model_name,
        "weights": fingerprint(weights),
        "metric's settings": fingerprint(metrics),
    }
    return found | {name.replace("_", " "): fingerprint(value) for name, value in others.items()}


def fingerprint(value: Any) -> str:
    """Twelve letters that tell a value from others.

    >>> fingerprint((1, 2)) == fingerprint((1, 2)), fingerprint((1, 2)) == fingerprint((1, 3))
    (True, False)
    """
    found = hashlib.blake2b(digest_size=6)
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()


def subsample(tensor: Tensor, n: int) -> Tensor:
    """About `n` of a tensor's numbers, evenly spaced; all of a short one."""
    return tensor.detach().flatten()[:: max(1, tensor.numel() // n)]


def _parts(value: Any) -> Iterable[bytes]:
    """What a value is made of, as bytes, its kind first."""
    yield f"{type(value).__qualname__}:".encode()
    if isinstance(value, Tensor):
        yield f"{tuple(value.shape)} {value.dtype} ".encode()
        if value.is_meta:  # which has no numbers
            return
        numbers = subsample(value.to_dense(), _MOST_NUMBERS).contiguous()
        yield numbers.view(torch.uint8).numpy(force=True).tobytes()
    elif isinstance(value, Example):
        yield from _parts_of([value.mel.values, value.mel.n_frames, value.tokens])
    elif isinstance(value, types.FunctionType):
        yield from _parts_of(_of_function(value))
    elif isinstance(value, functools.partial):
        yield from _parts_of([value.func, value.args, value.keywords])
    elif isinstance(value, types.MethodType):
        yield from _parts_of([value.__func__, value.__self__])
    elif isinstance(value, Mapping):
        yield from _parts_of([part for name in value for part in (name, value[name])])
    elif isinstance(value, list | tuple):
        yield from _parts_of(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _parts_of([getattr(value, each.name) for each in dataclasses.fields(value)])
    elif isinstance(value, Metric | TranscriptMetric | Edit):
        yield from _parts_of(vars(value))
    elif isinstance(value, str | int | float | slice | range | None):
        yield repr(value).encode()
    yield b";"


def _parts_of(values: Iterable[Any]) -> Iterable[bytes]:
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
    made_of = [*constants, *inner]
    return [code.co_code.hex(), code.co_names, made_of, function.__defaults__, held]


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
