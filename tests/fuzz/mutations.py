"""Mutations of bytes and of JSON, each made from a seed, so that one that fails can be made again.

The default run tries some; `FUZZ=30000 pytest tests/fuzz`, which is `make fuzz`, tries many, and
prints what came of them. `FUZZ_FIRST=30000` goes on with other seeds.
"""

import copy
import json
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from hooked_whisper.errors import HookedWhisperError

N = int(os.environ.get("FUZZ", "100"))
"""Mutations of each file format."""
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
SEEDS = range(FIRST, FIRST + N)
OUTCOMES = ("refused", "warned", "read")
LONGEST = 600
"""Characters of an error."""

Found = TypeVar("Found")


class Outcomes(Counter[str]):
    """How many damaged files were refused, read with a warning, and read without one."""

    def read(self, seed: object, load: Callable[[], Found]) -> Found | None:
        """What was read; None where an error of ours refused it. Any other error fails the test."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                found = load()
            except HookedWhisperError as error:
                assert len(str(error)) <= LONGEST, f"seed {seed}: {error}"
                self["refused"] += 1
                return None
            except Exception as error:
                pytest.fail(f"seed {seed}: {error!r}")
        self["warned" if any(each.category is UserWarning for each in caught) else "read"] += 1
        return found


VALUES = [
    None, True, -1, 0, 1, 10**30, 1.5, float("nan"), float("inf"), "", "x" * 5000, "\x00", "²",
    [], {}, [[]], [1, 2, 3], {"a": 1}, "float8", "../../etc", "encoder.hook_mel",
]  # fmt: skip
"""What a value of JSON is replaced by."""


def of_bytes(data: bytes, seed: int) -> bytes:
    """A file with flipped bits, cut, with a piece doubled, zeroed or put elsewhere."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if not changed:
            break
        start = min(len(changed) - 1, int(len(changed) * rng.random() ** 3))  # headers more often
        size = rng.choice([1, 2, 8, 64, 512])
        match rng.choice(["flip", "cut", "double", "zero", "insert", "drop"]):
            case "flip":
                changed[start] ^= 1 << rng.randrange(8)
            case "cut":
                del changed[start:]
            case "double":
                changed[start:start] = changed[start : start + size]
            case "zero":
                changed[start : start + size] = bytes(len(changed[start : start + size]))
            case "insert":
                changed[start:start] = rng.randbytes(size)
            case "drop":
                del changed[start : start + size]
    return bytes(changed)


def of_json(value: Any, seed: int) -> Any:
    """A value of JSON in which something is missing, of another type, or somewhere else."""
    rng = random.Random(seed)
    changed = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2])):
        holders = list(_holders(changed))
        if not holders:
            return rng.choice(VALUES)
        holder = rng.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = rng.choice(keys)
        match rng.choice(["replace", "replace", "delete", "rename", "swap", "number"]):
            case "replace":
                holder[key] = copy.deepcopy(rng.choice(VALUES))
            case "delete":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            case "swap":
                other = rng.choice(keys)
                holder[key], holder[other] = holder[other], holder[key]
            case _:
                if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                    holder[key] += rng.choice([-1, 1, 10**6, -(10**9)])
                else:
                    holder[key] = copy.deepcopy(rng.choice(VALUES))
    return changed


def _holders(value: Any) -> Any:
    """Every object and list with something in it."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def of_json_file(text: str, seed: int) -> str:
    """The text of a JSON file, mutated as JSON or as bytes."""
    if seed % 4 == 3:
        return of_bytes(text.encode(), seed).decode("utf-8", "replace")
    if seed % 40 == 0:
        return "[" * 100_000
    return json.dumps(of_json(json.loads(text), seed))
