"""A hook point refuses what cannot take the activation's place (trap 4)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import HookDisabledError, HookError, HookResultError
from hooked_whisper.hooks.points import HookPoint

WRONG = {
    "shape": (
        lambda value: value[:, :1],
        r"shape \(2, 1, 24\).*\(2, 30, 24\) = \[batch pos d_model\]",
    ),
    "axes": (lambda value: value[0], r"shape \(30, 24\).*= \[batch pos d_model\]"),
    "broadcast": (lambda value: value.mean(), r"shape \(\).*= \[batch pos d_model\]"),
    "dtype": (lambda value: value.half(), "dtype torch.float16.*dtype torch.float32"),
    "integers": (lambda value: value.long(), "dtype torch.int64.*dtype torch.float32"),
    "device": (lambda value: value.to("meta"), "device meta.*device cpu"),
    "array": (lambda value: value.numpy(), "returned a ndarray; it must return a tensor"),
    "tuple": (lambda value: (value,), "returned a tuple"),
    "number": (lambda value: 0.0, "returned a float"),
    "False": (lambda value: False, "returned a bool"),
}
NAME = "encoder.blocks.1.hook_resid_pre"


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
class TestTrap4WrongResultsAreRefused:
    @torch.no_grad()
    def test_forward(
        self,
        change: Callable[[Tensor], Any],
        message: str,
        tiny_model: Any,
        tiny_mel: Tensor,
        tiny_tokens: Tensor,
    ) -> None:
        before = tiny_model(tiny_mel, tiny_tokens)
        with pytest.raises(HookResultError, match=rf"hooked at '{NAME}' .*{message}"):
            tiny_model.run_with_hooks(
                tiny_mel, tiny_tokens, fwd_hooks=[(NAME, lambda value, hook: change(value))]
            )
        assert torch.equal(tiny_model(tiny_mel, tiny_tokens), before)

    def test_backward(
        self,
        change: Callable[[Tensor], Any],
        message: str,
        tiny_model: Any,
        tiny_mel: Tensor,
        tiny_tokens: Tensor,
    ) -> None:
        loss = tiny_model.run_with_hooks(
            tiny_mel,
            tiny_tokens,
            "loss",
            bwd_hooks=[(NAME, lambda gradient, hook: change(gradient))],
        )
        with pytest.raises(HookResultError, match=rf"hooked at '{NAME}' .*{message}"):
            loss.backward()


def point(flag: str | None = None) -> HookPoint:
    made = HookPoint("batch pos", flag=flag)
    made.name = "stack.hook_x"
    return made


class TestHookPoint:
    def test_without_hooks_is_the_identity(self) -> None:
        value = torch.randn(2, 3)
        assert point()(value) is value

    def test_none_leaves_the_value(self) -> None:
        made, value = point(), torch.randn(2, 3)
        made.add_hook(lambda value, hook: None)
        assert made(value) is value

    @pytest.mark.usefixtures("without_shape_checks")
    def test_refuses_a_direction_that_there_is_not(self) -> None:
        made = point()
        with pytest.raises(HookError, match="dir is 'forward'"):
            made.add_hook(lambda value, hook: None, "forward")
        assert not made.is_hooked

    def test_hooks_run_in_order_each_on_the_last_result(self) -> None:
        made = point()
        made.add_hook(lambda value, hook: value + 1)
        made.add_hook(lambda value, hook: value * 10)
        made.add_hook(lambda value, hook: value - 3, prepend=True)
        assert made(torch.full((1, 1), 5.0)).item() == (5 - 3 + 1) * 10

    def test_function_gets_the_point(self) -> None:
        made, seen = point(), []
        made.add_hook(lambda value, hook: seen.append((hook.name, hook.axes)))
        made(torch.zeros(1, 1))
        assert seen == [("stack.hook_x", ("batch", "pos"))]

    def test_context_is_the_users(self) -> None:
        made = point()
        made.add_hook(lambda value, hook: hook.ctx.update(seen=value.sum().item()))
        made(torch.ones(2, 2))
        assert made.ctx == {"seen": 4}
        made.clear_context()
        assert made.ctx == {}

    @pytest.mark.parametrize("direction", ["fwd", "bwd"])
    def test_trap_3_refuses_hooks_while_its_flag_is_off(self, direction: Any) -> None:
        made = point(flag="use_x")
        with pytest.raises(HookDisabledError, match=r"'stack.hook_x' .*set_use_x\(True\)"):
            made.add_hook(lambda value, hook: None, direction)
        assert not made.is_hooked

    @pytest.mark.parametrize("direction", ["fwd", "bwd"])
    def test_handle_takes_the_hook_away(self, direction: Any) -> None:
        made = point()
        handle = made.add_hook(lambda value, hook: None, direction)
        assert made.is_hooked and made.has_hooks(direction)
        handle.hook.remove()
        assert not made.is_hooked

    @pytest.mark.parametrize("direction", ["fwd", "bwd"])
    def test_remove_hooks_takes_away_all_but_permanent_ones(self, direction: Any) -> None:
        made = point()
        made.add_hook(lambda value, hook: None, direction)
        made.add_hook(lambda value, hook: None, direction, is_permanent=True)
        made.remove_hooks(direction)
        assert made.is_hooked
        made.remove_hooks(direction, including_permanent=True)
        assert not made.is_hooked

    def test_backward_hook_without_gradients_does_nothing(self) -> None:
        made, seen = point(), []
        made.add_hook(lambda gradient, hook: seen.append(gradient), "bwd")
        with torch.no_grad():
            assert not made(torch.zeros(1, 1)).requires_grad
        assert seen == []

    def test_backward_hook_where_nothing_before_needs_a_gradient(self) -> None:
        made, seen = point(), []
        made.add_hook(lambda gradient, hook: seen.append(gradient), "bwd")
        value = torch.ones(2, 2)
        (3 * made(value)).sum().backward()
        assert seen[0].eq(3).all()
        assert not value.requires_grad and value.grad is None


def test_a_former_name_works_and_says_the_new_one() -> None:
    point, value = HookPoint("batch"), torch.ones(2)
    with pytest.warns(DeprecationWarning, match="clone_if_hooked"):
        assert point.own(value) is value
