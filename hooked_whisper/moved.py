"""Former places of public names: they work for one release, and say where the names are now.

A room that gave names away has `__getattr__ = moved_names(__name__, {"name": "room"})`.
"""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module


def moved_names(old: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """A module's `__getattr__` for names that have moved to other rooms.

    Args:
        old: The module that had them.
        homes: The room of the package that has each name now.
    """

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        new = f"hooked_whisper.{homes[name]}"
        warnings.warn(
            f"{old}.{name} has moved: from {new} import {name}. The old place works for one more "
            "release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(new), name)

    return find
