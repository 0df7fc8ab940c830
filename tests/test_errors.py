"""The exceptions: one tree, builtins beside them, messages that read as sentences."""

import inspect
import re

import pytest

from hooked_whisper import errors

ALL = {
    name: each
    for name, each in vars(errors).items()
    if inspect.isclass(each) and issubclass(each, Exception)
}
BUILTINS = {
    "ConfigError": ValueError,
    "HookNameError": KeyError,
    "HookDisabledError": KeyError,
    "HookResultError": ValueError,
    "CacheError": ValueError,
    "AudioError": ValueError,
    "AudioFileError": OSError,
    "AudioRateError": ValueError,
    "AudioLengthError": ValueError,
    "MelError": ValueError,
    "TokenError": ValueError,
    "StoreError": ValueError,
    "StoreBusyError": OSError,
    "StoreWriteError": OSError,
    "SourceError": ValueError,
    "DownloadError": OSError,
    "CheckpointError": ValueError,
    "ArchitectureError": ValueError,
    "WeightNameError": KeyError,
    "WeightShapeError": ValueError,
}


@pytest.mark.parametrize("error", ALL.values(), ids=ALL)
def test_can_be_caught_as_the_packages_own(error: type[Exception]) -> None:
    assert issubclass(error, errors.HookedWhisperError)
    assert error.__doc__


@pytest.mark.parametrize(("name", "builtin"), BUILTINS.items(), ids=BUILTINS)
def test_can_be_caught_as_the_builtin(name: str, builtin: type[Exception]) -> None:
    assert issubclass(ALL[name], builtin)


@pytest.mark.parametrize("error", ALL.values(), ids=ALL)
def test_message_is_shown_as_it_was_written(error: type[Exception]) -> None:
    assert str(error("no hook 'x'. Nearest: y.")) == "no hook 'x'. Nearest: y."


def test_the_drawing_shows_every_exception_below_its_parent() -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.search(r"\w+Error\b", line)]
    drawn: dict[str, str | None] = {}
    parents: list[tuple[int, str]] = []
    for line in lines:
        found = re.search(r"[A-Z]\w+Error\b", line)
        assert found
        depth, name = found.start(), found[0]
        while parents and parents[-1][0] >= depth:
            parents.pop()
        drawn[name] = parents[-1][1] if parents else None
        parents.append((depth, name))
    assert set(drawn) == set(ALL)
    for name, parent in drawn.items():
        assert parent is None or issubclass(ALL[name], ALL[parent]), (name, parent)
