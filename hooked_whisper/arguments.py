"""Arguments of a wrong type: what goes wrong deep inside is told as what was given.

Functions look for themselves at what is likely to be wrong, and say it best. Where an error of
Python's or PyTorch's comes out of a public one nevertheless, its arguments are held against their
annotations, and the first that does not fit is what is said. A call that goes well is not looked
at, and neither are errors of a user's own functions where all arguments fit.
"""

import functools
import inspect
import numbers
import re
import sys
import typing
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from types import FunctionType, NoneType, SimpleNamespace, UnionType
from typing import Any

from hooked_whisper.errors import ArgumentError, HookedWhisperError, cut, describe

_RAW = (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RuntimeError)
"""What Python and PyTorch raise of values that they cannot work with."""
_CALLS = ("__init__", "__call__", "__getitem__")


def explain_arguments(room: dict[str, Any]) -> None:
    """Have the public functions and classes of a room explain arguments of a wrong type.

    Args:
        room: The `globals()` of the module that has them, with `__all__`.
    """
    for name in room["__all__"]:
        room[name] = explained(room[name])


def explained(public: Any) -> Any:
    """A function that explains, or a class whose methods do; anything else as it is."""
    if isinstance(public, FunctionType):
        home, name = vars(sys.modules[public.__module__]), public.__name__
        found = _explained(public)
        if home.get(name) is public:  # where pickle looks for it
            home[name] = found
        return found
    if isinstance(public, type):
        package = public.__module__.partition(".")[0]
        for part in public.__mro__:
            if part.__module__.partition(".")[0] == package:
                _explain_methods(part)
    return public


def _explain_methods(part: type) -> None:
    is_module = hasattr(part, "register_forward_hook")  # hook points are called all the time
    for name, value in [*vars(part).items()]:
        if name.startswith("_") and (name not in _CALLS or (name == "__call__" and is_module)):
            continue
        if isinstance(value, FunctionType):
            setattr(part, name, _explained(value))
        elif isinstance(value, staticmethod | classmethod):
            setattr(part, name, type(value)(_explained(value.__func__)))


def _explained(function: Any) -> Any:
    if "explains_arguments" in vars(function):
        return function.explains_arguments

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            found = function(*args, **kwargs)
        except _RAW as error:
            if wrong := _wrong(function, args, kwargs, error):
                raise wrong from error
            raise
        return steps(found, args, kwargs) if isinstance(found, Generator) else found

    def steps(found: Generator[Any, Any, Any], args: Any, kwargs: Any) -> Iterator[Any]:
        """A generator looks at its arguments when the first item is asked for."""
        __tracebackhide__ = True
        try:
            return (yield from found)
        except _RAW as error:
            if wrong := _wrong(function, args, kwargs, error):
                raise wrong from error
            raise

    vars(function)["explains_arguments"] = vars(call)["explains_arguments"] = call
    return call


def _wrong(
    function: Callable[..., Any], args: Any, kwargs: Any, error: Exception
) -> ArgumentError | None:
    """What to say of the first argument that does not fit; None where all do, or it is said."""
    if isinstance(error, HookedWhisperError):
        return None
    try:
        given = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:  # Python has said it
        return None
    written = inspect.unwrap(function)
    for name, value in given.arguments.items():
        parameter = given.signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        hint = _resolved(written.__annotations__.get(name, Any), written.__globals__)
        values = value if parameter.kind is parameter.VAR_POSITIONAL else (value,)
        for each in values:
            if not fits(each, hint):
                called = function.__qualname__.removesuffix(".__init__")
                return ArgumentError(
                    f"{name} is {describe(each)}; {called} takes {_said(hint)}. See help({called})."
                )
    return None


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """A type hint; what stands as a text in it may be known to type checkers only."""
    try:
        return typing.get_type_hints(SimpleNamespace(__annotations__={"it": hint}), names)["it"]
    except (NameError, AttributeError, TypeError):
        return Any


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type; what cannot be told fits."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (Any, object, inspect.Parameter.empty):
        return True
    if kind in (None, NoneType):
        return value is None
    if kind in (typing.Union, UnionType):
        return any(fits(value, each) for each in parts)
    if kind is typing.Literal:
        return any(type(value) is type(each) and value == each for each in parts)
    if kind is typing.Annotated:
        return fits(value, parts[0])
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if not isinstance(kind, type):
        return True
    try:
        if not isinstance(value, kind):
            return False
    except TypeError:  # a protocol that is not for this
        return True
    if isinstance(value, str):
        return not parts  # a text is a sequence of texts, and never meant as one
    if isinstance(value, Mapping) and len(parts) == 2:
        return all(fits(key, parts[0]) and fits(each, parts[1]) for key, each in value.items())
    if kind is tuple and parts and parts[-1] is not Ellipsis:
        assert isinstance(value, tuple)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if isinstance(value, Collection) and parts and issubclass(kind, Iterable):
        try:
            return all(fits(each, parts[0]) for each in value)
        except TypeError:  # a tensor without axes
            return False
    return True


def _said(hint: Any) -> str:
    """A type hint without the modules of its names."""
    return cut(re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", inspect.formatannotation(hint)), 250)
