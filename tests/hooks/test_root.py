"""Temporary and lasting hooks on a model: attached, fired, and gone in time (trap 6)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import (
    CacheError,
    HookDisabledError,
    HookError,
    HookNameError,
    TokenError,
)

PATTERN = "decoder.blocks.2.cross_attn.hook_pattern"
EMBED = "decoder.hook_embed"


def attached(model: Any) -> list[str]:
    """Names that have a hook of any kind, ours or torch's own."""
    return [name for name, point in model.hook_dict.items() if point.is_hooked]


def nothing(value: Tensor, hook: Any) -> None:
    pass


class Broken(Exception):
    pass


def breaks(value: Tensor, hook: Any) -> None:
    raise Broken(hook.name)


def interrupts(value: Tensor, hook: Any) -> None:
    raise KeyboardInterrupt


class Counter:
    """A hook that counts how often it fires, by name."""

    def __init__(self) -> None:
        self.fired: dict[str, int] = {}

    def __call__(self, value: Tensor, *, hook: Any) -> None:
        self.fired[hook.name] = self.fired.get(hook.name, 0) + 1


class TestHookNames:
    def test_globs(self, tiny_model: Any) -> None:
        assert tiny_model.hook_names("decoder.*.hook_pattern") == [
            f"decoder.blocks.{layer}.{part}.hook_pattern"
            for layer in range(3)
            for part in ("attn", "cross_attn")
        ]

    def test_all_names_are_paths_in_the_tree(self, tiny_model: Any) -> None:
        modules = dict(tiny_model.named_modules())
        for name in tiny_model.hook_names():
            assert modules[name].name == name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("decoder.blocks.3.cross_attn.hook_pattern", "decoder blocks 0 to 2"),
            ("encoder.blocks.2.hook_resid_pre", "encoder blocks 0 to 1"),
            ("decoder.blocks.1.cross_attn.hook_pat", "Nearest: .*cross_attn.hook_pattern"),
            ("encoder.blocks.0.cross_attn.hook_q", "Nearest: .*blocks.0.cross_attn.hook_q"),
            ("encoder.blocks.0.hook_resid_mid_cross", "Nearest: .*blocks.0.hook_resid_mid"),
            ("blocks.0.hook_resid_pre", "Nearest: .*blocks.0.hook_resid_pre"),
            ("encoder.*.hook_logits", "no hook matches"),
        ],
    )
    @pytest.mark.parametrize("call", ["cache", "hooks", "context", "add", "names"])
    def test_trap_2_unknown_name(
        self, call: str, name: str, message: str, tiny_model: Any, tiny_mel: Tensor
    ) -> None:
        # The first of the two is right: nothing may be attached of it.
        pairs = [(EMBED, nothing), (name, nothing)]
        with pytest.raises(HookNameError, match=message):
            if call == "cache":
                tiny_model.run_with_cache(tiny_mel, names_filter=[EMBED, name])
            elif call == "hooks":
                tiny_model.run_with_hooks(tiny_mel, fwd_hooks=pairs)
            elif call == "context":
                with tiny_model.hooks(bwd_hooks=pairs):
                    pytest.fail("the block ran")
            elif call == "add":
                tiny_model.add_hook([EMBED, name], nothing)
            else:
                tiny_model.hook_names(name)
        assert attached(tiny_model) == []

    @pytest.mark.parametrize(
        ("name", "flag"),
        [
            ("decoder.blocks.1.cross_attn.hook_result", "use_attn_result"),
            ("encoder.blocks.1.hook_q_input", "use_split_qkv_input"),
            ("decoder.blocks.1.hook_cross_k_input", "use_split_qkv_input"),
            ("encoder.*.hook_attn_in", "use_attn_in"),
            (("decoder", 0, "mlp_in"), "use_hook_mlp_in"),
        ],
        ids=str,
    )
    def test_trap_3_a_flag_that_is_off(
        self, name: Any, flag: str, tiny_model: Any, tiny_mel: Tensor
    ) -> None:
        message = rf"{flag} is on; it is off\. Turn it on with model\.set_{flag}\(True\)"
        with pytest.raises(HookDisabledError, match=message):
            tiny_model.run_with_cache(tiny_mel, names_filter=name)
        with pytest.raises(HookDisabledError, match=message):
            tiny_model.run_with_hooks(tiny_mel, fwd_hooks=[(EMBED, nothing), (name, nothing)])
        with pytest.raises(HookDisabledError, match=message):
            tiny_model.add_hook(name, nothing)
        assert attached(tiny_model) == []

    @pytest.mark.parametrize(
        "pair", [EMBED, (EMBED,), (EMBED, len, 1), (EMBED, "nothing"), (EMBED, None)], ids=str
    )
    @pytest.mark.usefixtures("without_shape_checks")
    def test_what_is_no_pair_of_name_and_function(
        self, pair: Any, tiny_model: Any, tiny_mel: Tensor
    ) -> None:
        with pytest.raises(HookError, match="Pass pairs of a name and a function"):
            tiny_model.run_with_hooks(tiny_mel, fwd_hooks=[(EMBED, nothing), pair])
        assert attached(tiny_model) == []


FILTERS = {
    "name": (PATTERN, 1),
    "glob": ("decoder.*.hook_pattern", 6),
    "list": ([PATTERN, EMBED], 2),
    "tuple": ((PATTERN, EMBED), 2),
    "set": ({PATTERN, EMBED}, 2),
    "list of globs": (["*.hook_embed", "*.hook_q"], 10),
    "shorthand": (("decoder", 2, "pattern", "cross_attn"), 1),
    "function": (lambda name: name.endswith("hook_z"), 8),
}


@pytest.mark.parametrize(("names_filter", "count"), FILTERS.values(), ids=FILTERS)
@torch.no_grad()
def test_filters_mean_the_same_everywhere(
    names_filter: Any, count: int, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    counter = Counter()
    tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(names_filter, counter)])
    names = tiny_model.hook_names(names_filter)
    assert len(names) == count
    assert counter.fired == dict.fromkeys(names, 1)
    _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, names_filter=names_filter)
    assert list(cache) == names
    tiny_model.add_hook(names_filter, nothing)
    assert sorted(attached(tiny_model)) == sorted(names)
    tiny_model.reset_hooks()


class TestTrap6NothingIsLeftBehind:
    @pytest.mark.parametrize(
        ("hook", "error"),
        [(breaks, Broken), (interrupts, KeyboardInterrupt)],
        ids=["error", "ctrl-c"],
    )
    @pytest.mark.parametrize(
        "run",
        [
            lambda model, *args, **hooks: model.run_with_hooks(*args, **hooks),
            lambda model, *args, **hooks: model.run_with_cache(*args, **hooks),
            lambda model, *args, **hooks: model.run_with_cache(
                *args, **hooks, return_type="loss", incl_bwd=True
            ),
        ],
        ids=["hooks", "cache", "cache with gradients"],
    )
    @pytest.mark.parametrize("name", ["encoder.hook_mel", PATTERN, "decoder.hook_logits"])
    def test_after_a_hook_that_raises(
        self,
        name: str,
        run: Callable[..., Any],
        hook: Any,
        error: type[BaseException],
        tiny_model: Any,
        tiny_mel: Tensor,
        tiny_tokens: Tensor,
    ) -> None:
        with pytest.raises(error):
            run(tiny_model, tiny_mel, tiny_tokens, fwd_hooks=[("*", nothing), (name, hook)])
        assert attached(tiny_model) == []
        assert all(each.grad is None and each.requires_grad for each in tiny_model.parameters())

    def test_after_a_backward_hook_that_raises(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(Broken):
            tiny_model.run_with_cache(
                tiny_mel, tiny_tokens, "loss", incl_bwd=True, bwd_hooks=[(EMBED, breaks)]
            )
        assert attached(tiny_model) == []
        assert all(each.grad is None and each.requires_grad for each in tiny_model.parameters())

    def test_after_an_error_of_the_model(self, tiny_model: Any, tiny_mel: Tensor) -> None:
        too_many = torch.zeros(2, 999, dtype=torch.long)
        with pytest.raises(TokenError, match="999"):
            tiny_model.run_with_cache(tiny_mel, too_many, fwd_hooks=[(EMBED, nothing)])
        assert attached(tiny_model) == []

    @pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_after_an_error_in_the_block(self, error: Any, tiny_model: Any) -> None:
        with pytest.raises(error), tiny_model.hooks([(PATTERN, nothing)], [(EMBED, nothing)]):
            assert attached(tiny_model) == [PATTERN, EMBED]
            raise error
        assert attached(tiny_model) == []

    def test_nested_contexts_take_away_their_own_only(self, tiny_model: Any) -> None:
        with tiny_model.hooks([(EMBED, nothing)]):
            with pytest.raises(Broken), tiny_model.hooks([(PATTERN, nothing), (EMBED, nothing)]):
                assert len(tiny_model.hook_dict[EMBED].fwd_hooks) == 2
                raise Broken
            assert attached(tiny_model) == [EMBED]
            assert len(tiny_model.hook_dict[EMBED].fwd_hooks) == 1
        assert attached(tiny_model) == []

    @torch.no_grad()
    def test_a_run_inside_a_context_leaves_the_contexts_hooks(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        counter = Counter()
        with tiny_model.hooks([(EMBED, counter)]):
            tiny_model.run_with_cache(tiny_mel, tiny_tokens)
            with pytest.raises(Broken):
                tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(PATTERN, breaks)])
            tiny_model(tiny_mel, tiny_tokens)
        assert counter.fired == {EMBED: 3}
        assert attached(tiny_model) == []

    def test_after_positions_that_do_not_exist(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(CacheError, match="out of range"):
            tiny_model.run_with_cache(tiny_mel, tiny_tokens, pos_slice=7)
        assert attached(tiny_model) == []


class TestLastingHooks:
    @torch.no_grad()
    def test_add_and_reset(self, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> None:
        before = fresh_model(tiny_mel, tiny_tokens)
        fresh_model.add_hook("*.cross_attn.hook_z", lambda value, hook: torch.zeros_like(value))
        assert not torch.equal(fresh_model(tiny_mel, tiny_tokens), before)
        fresh_model.reset_hooks()
        assert torch.equal(fresh_model(tiny_mel, tiny_tokens), before)

    def test_permanent_hooks_survive(
        self, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        counter = Counter()
        fresh_model.add_perma_hook(EMBED, counter)
        fresh_model.reset_hooks()
        fresh_model.run_with_cache(tiny_mel, tiny_tokens)
        with pytest.raises(Broken):
            fresh_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(PATTERN, breaks)])
        assert counter.fired == {EMBED: 2}
        assert attached(fresh_model) == [EMBED]
        fresh_model.reset_hooks(including_permanent=True)
        assert attached(fresh_model) == []

    @torch.no_grad()
    def test_the_cache_holds_what_lasting_hooks_made(
        self, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        fresh_model.add_hook(EMBED, lambda value, hook: torch.ones_like(value))
        _, cache = fresh_model.run_with_cache(tiny_mel, tiny_tokens)
        assert cache[EMBED].eq(1).all()

    @torch.no_grad()
    def test_hooks_can_be_left_on(
        self, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        counter = Counter()
        fresh_model.run_with_hooks(
            tiny_mel, tiny_tokens, fwd_hooks=[(EMBED, counter)], reset_hooks_end=False
        )
        fresh_model(tiny_mel, tiny_tokens)
        assert counter.fired == {EMBED: 2}
        fresh_model.reset_hooks()
        assert attached(fresh_model) == []

    def test_contexts_are_cleared_when_asked(self, fresh_model: Any) -> None:
        for clear in (False, True):
            with fresh_model.hooks([(EMBED, nothing)], clear_contexts=clear):
                fresh_model.hook_dict[EMBED].ctx["kept"] = 1
            assert fresh_model.hook_dict[EMBED].ctx == ({} if clear else {"kept": 1})


@torch.no_grad()
def test_trap_8_a_replacement_hides_and_loses_no_other_hook_on_its_point(
    fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    """As a spliced autoencoder would replace the activation between other hooks."""
    name = "encoder.blocks.0.hook_resid_post"
    seen: dict[str, Tensor] = {}

    def look(label: str) -> Callable[..., None]:
        return lambda value, hook: seen.update({label: value.clone()})

    fresh_model.add_perma_hook(name, look("permanent"))
    fresh_model.add_hook(name, look("before"))
    splice = (name, lambda value, hook: value.round())
    _, cache = fresh_model.run_with_cache(
        tiny_mel, tiny_tokens, fwd_hooks=[splice, (name, look("after"))]
    )
    _, plain = fresh_model.run_with_cache(tiny_mel, tiny_tokens)
    assert torch.equal(seen["permanent"], plain[name])
    assert torch.equal(seen["before"], plain[name])
    assert torch.equal(seen["after"], plain[name].round())
    assert torch.equal(cache[name], plain[name].round())
    assert len(fresh_model.hook_dict[name].fwd_hooks) == 2
    fresh_model.reset_hooks()
    assert attached(fresh_model) == [name]
