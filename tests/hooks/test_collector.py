"""Cached tensors have memory of their own, which nothing changes afterwards (trap 5)."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.config import FLAGS


def memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def tensors_of(output: Any) -> list[Tensor]:
    if output is None:
        return []
    return [output] if isinstance(output, Tensor) else list(output)


RUNS: dict[str, dict[str, Any]] = {
    "everything": {},
    "both outputs": {"return_type": "both"},
    "loss and gradients": {"return_type": "loss", "incl_bwd": True},
    "stop in the encoder": {"stop_at_layer": ("encoder", 1)},
    "stop before the encoder's blocks": {"stop_at_layer": ("encoder", 0)},
    "stop in the decoder": {"stop_at_layer": ("decoder", -1)},
    "stop after the decoder's blocks": {"stop_at_layer": ("decoder", 3)},
    "positions": {"pos_slice": slice(None), "frame_slice": slice(None)},
    "fewer positions": {"pos_slice": [0, -1], "frame_slice": slice(3, 9)},
    "one position": {"pos_slice": -1, "frame_slice": 4},
    "device and dtype": {"device": "cpu", "dtype": torch.float32},
    "names": {"names_filter": ["*.hook_resid_*", "*.hook_embed", "*_out", "*conv2"]},
    "logits": {"names_filter": "decoder.hook_logits"},
    "hooks that edit": {"fwd_hooks": [("*.hook_resid_pre", lambda value, hook: value.mul_(1.5))]},
}
MODELS = {
    "flags off": {},
    "every flag": dict.fromkeys(FLAGS, True),
    "one head": {"n_audio_heads": 1, "n_text_heads": 1, **dict.fromkeys(FLAGS, True)},
}


@pytest.fixture(scope="module")
def models(tiny_cfg: Any, make_model: Any) -> dict[str, Any]:
    # Of this module's own: its tests write into the weights.
    return {name: make_model(replace(tiny_cfg, **changes)) for name, changes in MODELS.items()}


@pytest.mark.usefixtures("without_shape_checks")
class TestTrap5CachedTensorsNeverChange:
    @pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
    @pytest.mark.parametrize("kind", MODELS)
    def test_they_have_memory_of_their_own(
        self,
        kind: str,
        run: dict[str, Any],
        models: dict[str, Any],
        tiny_mel: Tensor,
        tiny_tokens: Tensor,
    ) -> None:
        model, mel, tokens = models[kind], tiny_mel.clone(), tiny_tokens.clone()
        output, cache = model.run_with_cache(mel, tokens, **run)
        owners = [memory(value) for value in cache.values()]
        assert len(set(owners)) == len(owners)
        others = [mel, tokens, *model.parameters(), *model.encoder.buffers(), *tensors_of(output)]
        assert not {memory(each) for each in others} & set(owners)
        assert not any(value.requires_grad for value in cache.values())

    @pytest.mark.parametrize("kind", ["flags off", "every flag"])
    def test_an_encoder_output_that_is_passed_in_is_not_shared(
        self, kind: str, models: dict[str, Any], tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        given = models[kind](tiny_mel).detach()
        logits, cache = models[kind].run_with_cache(tokens=tiny_tokens, encoder_output=given)
        before = {name: value.clone() for name, value in cache.items()}
        given.zero_()
        logits.detach().zero_()
        assert all(torch.equal(cache[name], before[name]) for name in cache)

    @pytest.mark.parametrize("run", [{}, {"incl_bwd": True}], ids=["plain", "gradients"])
    def test_edits_of_inputs_outputs_and_parameters_do_not_reach_them(
        self,
        run: dict[str, Any],
        fresh_model: Any,
        tiny_mel: Tensor,
        tiny_tokens: Tensor,
    ) -> None:
        mel, tokens = tiny_mel.clone(), tiny_tokens.clone()
        return_type = "loss" if run else "both"
        output, cache = fresh_model.run_with_cache(mel, tokens, return_type, **run)
        before = {name: value.clone() for name, value in cache.items()}
        with torch.no_grad():
            for each in [mel, tokens, *fresh_model.parameters(), *fresh_model.encoder.buffers()]:
                each.zero_()
            for each in tensors_of(output):
                each.detach().fill_(7)
        fresh_model(mel, tokens)
        assert all(torch.equal(cache[name], before[name]) for name in cache)

    @torch.no_grad()
    def test_what_a_hook_kept_and_changes_later_does_not_reach_them(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        kept: list[Tensor] = []
        _, cache = tiny_model.run_with_cache(
            tiny_mel, tiny_tokens, fwd_hooks=[(None, lambda value, hook: kept.append(value))]
        )
        before = {name: value.clone() for name, value in cache.items()}
        for value in kept:
            value.zero_()
        assert all(torch.equal(cache[name], before[name]) for name in cache)

    @torch.no_grad()
    def test_what_a_hook_returned_and_changes_later_does_not_reach_them(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        mine: dict[str, Tensor] = {}

        def replace_by_mine(value: Tensor, hook: Any) -> Tensor:
            mine[hook.name] = torch.full_like(value, 0.5)
            return mine[hook.name]

        name = "encoder.blocks.0.hook_mlp_out"
        _, cache = tiny_model.run_with_cache(
            tiny_mel, tiny_tokens, fwd_hooks=[(name, replace_by_mine)]
        )
        mine[name].zero_()
        assert cache[name].eq(0.5).all()

    @pytest.mark.parametrize("kind", ["flags off", "every flag"])
    @torch.no_grad()
    def test_an_edit_in_place_changes_only_its_own_and_later_activations(
        self, kind: str, models: dict[str, Any], tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        model, order = models[kind], []
        model.run_with_hooks(
            tiny_mel, tiny_tokens, fwd_hooks=[(None, lambda value, hook: order.append(hook.name))]
        )
        _, plain = model.run_with_cache(tiny_mel, tiny_tokens)
        for name in order[:: 5 if kind == "flags off" else 8]:
            _, cache = model.run_with_cache(
                tiny_mel, tiny_tokens, fwd_hooks=[(name, lambda value, hook: value.add_(1))]
            )
            at = order.index(name)
            assert torch.equal(cache[name], plain[name] + 1), name
            for earlier in order[:at]:
                assert torch.equal(cache[earlier], plain[earlier]), (name, earlier)

    def test_they_are_the_values_after_all_hooks(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        name = "decoder.blocks.1.attn.hook_z"
        seen: list[Tensor] = []
        hooks = [
            (name, lambda value, hook: value + 1),
            (name, lambda value, hook: seen.append(value.clone())),
            (name, lambda value, hook: value * 2),
        ]
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, fwd_hooks=hooks)
        torch.testing.assert_close(cache[name], 2 * seen[0])
