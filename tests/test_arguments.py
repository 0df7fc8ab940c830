"""Arguments of a wrong type are told by their name and annotation; everything else is as it was."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.arguments import explained, fits
from hooked_whisper.errors import ArgumentError, TokenError

Vectors = Float[Tensor, "vector width"]

FITS: list[tuple[Any, Any]] = [
    (1, int), (np.int64(1), int), (1, float), (1.5, float | int), (None, int | None),
    ("a", Literal["a", "b"]), ("a", str), ("a", str | Sequence[str]), ([], list[int]),
    ([1, 2], Sequence[int]), ((1, "a"), tuple[int, str]), ((1, 2, 3), tuple[int, ...]),
    ({"a": 1}, Mapping[str, int]), ({"a": object()}, Mapping[str, Any]),
    (len, Callable[[Any], int]), (torch.zeros(2, 3), Vectors), (torch.zeros(2, 3), Tensor),
    (object(), Any), (object(), "Unknown"),
]  # fmt: skip
DOES_NOT: list[tuple[Any, Any]] = [
    ("1", int), (True, int), (1.5, int), (None, int), ("c", Literal["a", "b"]), (1, Literal[True]),
    ("ab", Sequence[str]), ([1, "a"], Sequence[int]), ((1,), tuple[int, str]),
    ([1], tuple[int, ...]),
    ({"a": "b"}, Mapping[str, int]), ({1: 1}, Mapping[str, int]), (1, Callable[[Any], int]),
    (torch.zeros(2), Vectors), (torch.zeros(2, 3).int(), Vectors), ([[1.0]], Vectors),
    (torch.tensor(3), Collection[int]), ({"a": 1}, list[int]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint"), FITS)
def test_it_fits(value: Any, hint: Any) -> None:
    assert fits(value, hint)


@pytest.mark.parametrize(("value", "hint"), DOES_NOT)
def test_it_does_not_fit(value: Any, hint: Any) -> None:
    assert not fits(value, hint)


def norms(vectors: Any, times: int = 1, *more: int, function: Any = None) -> Any:
    if function is not None:
        return function()
    return vectors.norm(dim=-1) * times + sum(more)


norms.__annotations__ |= {"vectors": Vectors, "function": Callable[[], Any] | None}


@explained
class Thing:
    def __init__(self, n: int) -> None:
        self.n = n + 1

    def add(self, other: "Thing") -> int:
        return self.n + other.n

    @classmethod
    def of(cls, n: int) -> "Thing":
        return cls(n * 2)

    @staticmethod
    def tokens(n: int) -> Iterator[int]:
        if n == 0:
            raise TokenError("none")
        yield from (1 // each for each in range(n, -n, -1))


SAID: dict[str, tuple[Callable[[], Any], str]] = {
    "tensor": (lambda: explained(norms)("ab"), r"'ab'; norms takes Float\[Tensor, 'vector"),
    "second": (lambda: explained(norms)(torch.ones(2, 3), []), "times is list; norms takes int"),
    "more": (lambda: explained(norms)(torch.ones(2, 3), 1, 2, "3"), "more is '3'"),
    "class": (lambda: Thing("1"), r"n is '1'; Thing takes int. See help\(Thing\)"),
    "method": (lambda: Thing(1).add(5), "other is 5; Thing.add takes Thing"),
    "class method": (lambda: Thing.of(None), "n is None; Thing.of takes int"),
    "generator": (lambda: list(Thing.tokens("2")), "n is '2'; Thing.tokens takes int"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), SAID.values(), ids=SAID)
def test_it_is_said_of_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        call()
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is not None


def test_what_is_right_is_as_it_was() -> None:
    assert explained(norms)(torch.full((2, 4), 3.0), 2).tolist() == [12.0, 12.0]
    assert explained(norms) is norms and explained(norms.__wrapped__) is norms  # by its home
    assert Thing.of(2).add(Thing(1)) == 7
    assert next(Thing.tokens(2)) == 0


def test_errors_that_are_not_of_the_arguments_types_pass() -> None:
    def users() -> None:
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        explained(norms)(torch.ones(2, 3), function=users)
    with pytest.raises(ZeroDivisionError):
        list(Thing.tokens(1))
    with pytest.raises(TokenError, match="none"):
        list(Thing.tokens(0))
    with pytest.raises(TypeError, match="missing 1 required") as caught:
        explained(norms)()
    assert not isinstance(caught.value, ArgumentError)


def test_ids_of_tokens_are_integers() -> None:
    assert not fits(torch.ones(2), int | Int[Tensor, "..."])
