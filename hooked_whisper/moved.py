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
        homes: Where each name is now: a room of the package, which calls it the
            same, or a room and the new name, such as `"store.RowIndex"`.
    """

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        room, _, renamed = homes[name].partition(".")
        new = f"hooked_whisper.{room}"
        warnings.warn(
            f"{old}.{name} has moved: from {new} import {renamed or name}. The old place works for "
            "one more release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(new), renamed or name)

    return find
