"""What makes a harvest the one that it is, so that no two ever share a folder unnoticed."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hooked_whisper.data.hook_rows import RowHooks
from hooked_whisper.data.loading import ReadingRules
from hooked_whisper.data.recordings import Recordings
from hooked_whisper.errors import InputError, StoreError, StoreMismatchError, shown
from hooked_whisper.io import checksum_of_model
from hooked_whisper.model.whisper import HookedWhisper

FORMAT = "hooked_whisper.activations/1"

DTYPE_NAMES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PADDING_SEEN = 100
"""Positions of padding behind the sound, 2 s, that the encoder sees with `frames="approximate"`."""
FRAME_RULES = {
    "speech": "rows of positions that hold sound: ceil(samples / 160) mel frames of 10 ms, and "
    "half as many encoder positions of 20 ms, rounded up; the rest of the window is padding",
    "all": "rows of the whole window, padding included",
    "approximate": "rows as of speech, but of an encoder whose blocks see the sound and the "
    f"{PADDING_SEEN} positions of padding behind it, not the whole window: an approximation",
}
_SHARD_BYTES = 2**28
_MOST_PER_SHARD = 1024


@dataclass(frozen=True)
class HarvestOptions:
    """The options of a harvest that decide what is in its store.

    Args:
        dtype: What rows are stored in.
        frames: `"speech"`, `"all"` with the padding, or `"approximate"`; see `FRAME_RULES`.
        batch_size: Windows side by side in one pass.
        recordings_per_shard: Recordings of one shard; None is as many as
            full windows fill 256 MiB with.
        note: Anything that the rest does not say.
    """

    dtype: torch.dtype
    frames: str
    batch_size: int
    recordings_per_shard: int | None
    note: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_NAMES.values():
            raise StoreError(
                f"dtype is {self.dtype!r}; rows are stored in one of {', '.join(DTYPE_NAMES)}."
            )
        check_choice("frames", self.frames, FRAME_RULES)
        for name in ("batch_size", "recordings_per_shard"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name} is {value!r}; it must be a positive integer.")


def check_choice(name: str, value: Any, allowed: Any) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        InputError: It is not.
    """
    if value not in list(allowed):
        choices = " or ".join(repr(each) for each in allowed)
        raise InputError(f"{name} is {value!r}; it can be {choices}.")


def as_dtype(dtype: Any) -> Any:
    """A dtype by its short name, or as it is."""
    return DTYPE_NAMES.get(dtype, dtype) if isinstance(dtype, str) else dtype


def shard_size(hooks: RowHooks, rules: ReadingRules, options: HarvestOptions) -> int:
    """Recordings of one shard: whole batches, up to 256 MiB of full windows."""
    if options.recordings_per_shard is not None:
        return options.recordings_per_shard
    n = _SHARD_BYTES // max(1, hooks.window_bytes(rules.cfg, options.dtype.itemsize))
    n = min(n, _MOST_PER_SHARD)
    return max(1, n // options.batch_size) * options.batch_size


def make_identity(
    model: Any,
    hooks: RowHooks,
    recordings: Recordings,
    rules: ReadingRules,
    options: HarvestOptions,
) -> dict[str, Any]:
    """Everything that decides what is in a store, ready for JSON."""
    return {
        "format": FORMAT,
        "package": package_version(),
        "model": model_identity(model),
        "device": model.device.type,
        "hooks": hooks.names,
        "kinds": {hook.name: hook.kind for hook in hooks.each},
        "dtype": _plain(options.dtype),
        "frames": options.frames,
        "frame_rule": FRAME_RULES[options.frames],
        "long": rules.long,
        "tokens": None
        if rules.text is None
        else {"from": rules.text, "language": rules.language, "task": rules.task},
        "batch_size": options.batch_size,
        "recordings_per_shard": shard_size(hooks, rules, options),
        "recordings": {"n": recordings.n, "xxh3_128": recordings.digest},
        "note": options.note,
    }


def model_identity(model: HookedWhisper) -> dict[str, Any]:
    """Which model it is, ready for JSON: its name, configuration, dtype and checksum."""
    return {
        "name": model.cfg.model_name,
        "config": model.cfg.to_dict(),
        "dtype": _plain(model.dtype),
        "xxh3_128": checksum_of_model(model),
    }


def check_same(found: dict[str, Any], wanted: dict[str, Any], folder: Any) -> None:
    """Refuse to go on with another harvest.

    Raises:
        StoreMismatchError: Names what differs.
    """
    keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if not keys:
        return
    told = []
    for key in keys:
        first, second = found.get(key), wanted.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            inner = [k for k in {**first, **second} if first.get(k) != second.get(k)]
            first = {k: first.get(k) for k in inner}
            second = {k: second.get(k) for k in inner}
        told.append(f"{key} is {shown(first, 120)} there and {shown(second, 120)} here")
    raise StoreMismatchError(
        f"{folder} holds another harvest: {'; '.join(told)}. Name another folder, or remove "
        "this one."
    )


def package_version(name: str = "hooked-whisper") -> str:
    """A package's version, as it is installed; this one's unless another is named."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
