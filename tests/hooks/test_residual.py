"""The residual stream taken apart, against plain formulas, on both stacks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import CacheError, HookNameError
from hooked_whisper.hooks.cache import WhisperCache

both_stacks = pytest.mark.parametrize("stack", ["encoder", "decoder"])
N_LAYERS = {"encoder": 2, "decoder": 3}
KINDS = {"encoder": ("attn", "mlp"), "decoder": ("attn", "cross_attn", "mlp")}


@pytest.fixture(scope="module")
def model(tiny_cfg: Any, make_model: Any) -> Any:
    return make_model(tiny_cfg)


@pytest.fixture(scope="module")
def cache(model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> WhisperCache:
    with torch.no_grad():
        return model.run_with_cache(tiny_mel, tiny_tokens)[1]


def normalized(parts: Tensor, scale: Tensor) -> Tensor:
    return (parts - parts.mean(-1, keepdim=True)) / scale


class TestAccumulatedResid:
    @both_stacks
    def test_streams_before_every_layer_and_the_last(self, stack: Any, cache: Any) -> None:
        streams, labels = cache.accumulated_resid(stack=stack, return_labels=True)
        n_layers = N_LAYERS[stack]
        assert labels == [*(f"{layer}_pre" for layer in range(n_layers)), "final_post"]
        for layer in range(n_layers):
            assert torch.equal(streams[layer], cache[stack, layer, "resid_pre"])
        assert torch.equal(streams[-1], cache[stack, n_layers - 1, "resid_post"])

    @both_stacks
    @pytest.mark.parametrize("layer", [1, -1], ids=str)
    def test_up_to_a_layer(self, stack: Any, layer: int, cache: Any) -> None:
        streams, labels = cache.accumulated_resid(layer, stack=stack, return_labels=True)
        target = layer % N_LAYERS[stack]
        assert labels == [f"{each}_pre" for each in range(target + 1)]
        assert torch.equal(streams[-1], cache[stack, target, "resid_pre"])

    def test_with_the_streams_inside_the_blocks(self, cache: Any) -> None:
        streams, labels = cache.accumulated_resid(1, incl_mid=True, return_labels=True)
        assert labels == ["0_pre", "0_mid", "0_mid_cross", "1_pre"]
        assert torch.equal(streams[2], cache["decoder", 0, "resid_mid_cross"])
        _, labels = cache.accumulated_resid(1, incl_mid=True, return_labels=True, stack="encoder")
        assert labels == ["0_pre", "0_mid", "1_pre"]

    @both_stacks
    def test_up_to_what_an_mlp_reads(self, stack: Any, cache: Any) -> None:
        streams = cache.accumulated_resid(1, mlp_input=True, stack=stack)
        mid = "resid_mid_cross" if stack == "decoder" else "resid_mid"
        assert torch.equal(streams[-1], cache[stack, 1, mid])

    @both_stacks
    def test_apply_ln_makes_of_the_last_what_the_layer_norm_made(
        self, stack: Any, cache: Any, model: Any
    ) -> None:
        norm = getattr(model, stack).ln_final
        last = cache.accumulated_resid(apply_ln=True, stack=stack)[-1]
        read = cache[f"{stack}.ln_final.hook_normalized"]
        torch.testing.assert_close(last * norm.weight + norm.bias, read, atol=1e-4, rtol=1e-4)


class TestDecomposeResid:
    @both_stacks
    @pytest.mark.parametrize("mlp_input", [False, True])
    @pytest.mark.parametrize("layer", [0, 1, -1, None], ids=str)
    def test_sums_to_the_stream(
        self, layer: int | None, mlp_input: bool, stack: Any, cache: Any
    ) -> None:
        if layer is None and mlp_input:
            with pytest.raises(CacheError, match="layer is None"):
                cache.decompose_resid(layer, mlp_input, stack=stack)
            return
        parts = cache.decompose_resid(layer, mlp_input, stack=stack)
        target = cache.accumulated_resid(layer, mlp_input=mlp_input, stack=stack)[-1]
        torch.testing.assert_close(parts.sum(0), target, atol=1e-4, rtol=1e-4)

    @both_stacks
    def test_components_and_labels(self, stack: Any, cache: Any) -> None:
        parts, labels = cache.decompose_resid(stack=stack, return_labels=True)
        expected = ["embed", "pos_embed"]
        for layer in range(N_LAYERS[stack]):
            expected += [f"{layer}_{kind}_out" for kind in KINDS[stack]]
        assert labels == expected
        for part, label in zip(parts, labels, strict=True):
            layer, _, name = label.partition("_")
            key = (stack, int(layer), name) if layer.isdigit() else (stack, label)
            assert torch.equal(part, cache[key])

    @pytest.mark.parametrize("mode", ["attn", "cross_attn", "mlp"])
    def test_one_kind_of_sublayer(self, mode: Any, cache: Any) -> None:
        parts, labels = cache.decompose_resid(mode=mode, incl_embeds=False, return_labels=True)
        assert labels == [f"{layer}_{mode}_out" for layer in range(3)]
        assert torch.equal(parts[2], cache["decoder", 2, f"{mode}_out"])

    @pytest.mark.parametrize("index", [-1, slice(2, 5), [0, 3]], ids=str)
    def test_positions(self, index: Any, cache: Any) -> None:
        whole = cache.decompose_resid(apply_ln=True)
        part = cache.decompose_resid(apply_ln=True, pos_slice=index)
        torch.testing.assert_close(part, whole[:, :, index])

    @both_stacks
    def test_apply_ln_keeps_the_sum(self, stack: Any, cache: Any) -> None:
        parts = cache.decompose_resid(1, apply_ln=True, stack=stack)
        scale = cache[stack, 1, "scale", "ln1"]
        expected = normalized(cache[stack, 1, "resid_pre"], scale)
        torch.testing.assert_close(parts.sum(0), expected, atol=1e-4, rtol=1e-4)


class TestStackHeadResults:
    @pytest.mark.parametrize(
        ("stack", "part"),
        [("encoder", "attn"), ("decoder", "attn"), ("decoder", "cross_attn")],
    )
    def test_heads_of_a_layer_sum_to_what_it_writes(
        self, stack: Any, part: str, cache: Any, model: Any
    ) -> None:
        results, labels = cache.stack_head_results(
            stack=stack, part=part, model=model, return_labels=True
        )
        n_heads = model.cfg.n_heads(stack)
        sign = "X" if part == "cross_attn" else "H"
        n_layers = N_LAYERS[stack]
        assert labels == [f"L{i}{sign}{h}" for i in range(n_layers) for h in range(n_heads)]
        for layer in range(n_layers):
            heads = results[n_heads * layer : n_heads * (layer + 1)]
            bias = getattr(getattr(model, stack).blocks[layer], part).b_O
            out = cache[stack, layer, f"{part}_out"]
            torch.testing.assert_close(heads.sum(0) + bias, out, atol=1e-4, rtol=1e-4)

    def test_equals_the_cached_results(
        self, fresh_model: Any, cache: Any, model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        fresh_model.set_use_attn_result(True)
        _, with_results = fresh_model.run_with_cache(tiny_mel, tiny_tokens)
        cached = with_results.stack_head_results()
        torch.testing.assert_close(
            cached, cache.stack_head_results(model=model), atol=1e-4, rtol=1e-4
        )

    @pytest.mark.parametrize("layer", [0, 2, None], ids=str)
    def test_with_the_remainder_they_sum_to_the_stream(
        self, layer: int | None, cache: Any, model: Any
    ) -> None:
        parts, labels = cache.stack_head_results(
            layer, incl_remainder=True, model=model, return_labels=True
        )
        assert labels[-1] == "remainder"
        target = cache.accumulated_resid(layer)[-1]
        torch.testing.assert_close(parts.sum(0), target, atol=1e-4, rtol=1e-4)

    def test_without_results_needs_the_model(self, cache: Any) -> None:
        with pytest.raises(CacheError, match=r"Pass model=, or .*set_use_attn_result\(True\)"):
            cache.stack_head_results()

    def test_there_are_none_before_layer_0(self, cache: Any, model: Any) -> None:
        with pytest.raises(CacheError, match="no heads before layer 0"):
            cache.stack_head_results(0, model=model)


class TestApplyLnToStack:
    @pytest.mark.parametrize(
        ("stack", "layer", "mlp_input", "norm"),
        [
            ("encoder", None, False, "encoder.ln_final"),
            ("encoder", 2, False, "encoder.ln_final"),
            ("encoder", 1, False, "encoder.blocks.1.ln1"),
            ("encoder", -1, True, "encoder.blocks.1.ln2"),
            ("decoder", None, False, "decoder.ln_final"),
            ("decoder", 1, False, "decoder.blocks.1.ln1"),
            ("decoder", 1, True, "decoder.blocks.1.ln3"),
        ],
    )
    def test_uses_the_layer_norm_at_the_target(
        self, stack: Any, layer: int | None, mlp_input: bool, norm: str, cache: Any
    ) -> None:
        parts = torch.randn(4, *cache[stack, 0, "resid_pre"].shape)
        expected = normalized(parts, cache[f"{norm}.hook_scale"])
        got = cache.apply_ln_to_stack(parts, layer, mlp_input, stack=stack)
        torch.testing.assert_close(got, expected)

    def test_one_position(self, cache: Any) -> None:
        parts = torch.randn(4, 2, 24)
        expected = normalized(parts, cache["decoder.ln_final.hook_scale"][:, -1])
        torch.testing.assert_close(cache.apply_ln_to_stack(parts, pos_slice=-1), expected)

    def test_needs_the_scale(self, cache: Any) -> None:
        few = cache.subset("*resid*")
        with pytest.raises(HookNameError, match="hook_scale"):
            few.apply_ln_to_stack(torch.randn(4, 2, 7, 24))


class TestLogitAttrs:
    """The components' attributions sum to the logit, less the biases' part of it."""

    @pytest.fixture
    def bias(self, model: Any) -> Tensor:
        return model.decoder.ln_final.bias @ model.W_U + model.b_U

    def test_of_one_token(self, cache: Any, model: Any, bias: Tensor) -> None:
        attrs = cache.logit_attrs(cache.decompose_resid(), 42, model=model)
        expected = cache["decoder", "logits"][..., 42] - bias[42]
        torch.testing.assert_close(attrs.sum(0), expected, atol=1e-4, rtol=1e-4)

    def test_of_a_token_for_each_position(
        self, cache: Any, model: Any, bias: Tensor, tiny_tokens: Tensor
    ) -> None:
        attrs = cache.logit_attrs(cache.decompose_resid(), tiny_tokens, model=model)
        logits = cache["decoder", "logits"].gather(-1, tiny_tokens[..., None])[..., 0]
        torch.testing.assert_close(attrs.sum(0), logits - bias[tiny_tokens], atol=1e-4, rtol=1e-4)

    def test_of_a_difference(self, cache: Any, model: Any, bias: Tensor) -> None:
        attrs = cache.logit_attrs(cache.decompose_resid(), 42, 17, model=model)
        logits = cache["decoder", "logits"] - bias
        torch.testing.assert_close(
            attrs.sum(0), logits[..., 42] - logits[..., 17], atol=1e-4, rtol=1e-4
        )

    def test_at_one_position(self, cache: Any, model: Any, bias: Tensor) -> None:
        parts = cache.decompose_resid(pos_slice=-1)
        wanted = torch.tensor([3, 99])
        attrs = cache.logit_attrs(parts, wanted, pos_slice=-1, model=model)
        expected = cache["decoder", "logits"][[0, 1], -1, wanted] - bias[wanted]
        torch.testing.assert_close(attrs.sum(0), expected, atol=1e-4, rtol=1e-4)

    def test_of_processed_weights(
        self, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        fresh_model.process_weights_()
        _, cache = fresh_model.run_with_cache(tiny_mel, tiny_tokens)
        attrs = cache.logit_attrs(cache.decompose_resid(), 42, model=fresh_model)
        expected = cache["decoder", "logits"][..., 42] - fresh_model.b_U[42]
        torch.testing.assert_close(attrs.sum(0), expected, atol=1e-4, rtol=1e-4)


class TestACacheOfSomeLayers:
    """Its layers are the model's, not those that happen to be in it."""

    @pytest.fixture
    def some(self, model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> WhisperCache:
        names = ["decoder.blocks.0.*", "*embed", "decoder.ln_final.*"]
        return model.run_with_cache(tiny_mel, tiny_tokens, names_filter=names)[1]

    @pytest.mark.parametrize("method", ["accumulated_resid", "decompose_resid"])
    def test_does_not_pass_an_inner_stream_off_as_the_last(
        self, method: str, some: WhisperCache
    ) -> None:
        with pytest.raises(HookNameError, match=r"decoder\.blocks\.1"):
            getattr(some, method)()
        with pytest.raises(HookNameError, match="no hook"):
            some.accumulated_resid(2)
        assert some.decompose_resid(1, return_labels=True)[1][-1] == "0_mlp_out"

    def test_the_last_layer_is_the_models_also_after_a_file(
        self, some: WhisperCache, tmp_path: Any
    ) -> None:
        some.save(tmp_path / "some")
        for cache in (some, some.to(dtype=torch.float64), WhisperCache.load(tmp_path / "some")):
            assert cache.n_layers("decoder") == 3
            with pytest.raises(HookNameError, match=r"decoder\.blocks\.2"):
                cache["decoder", -1, "resid_post"]


class TestWhatTheCacheCannotAnswer:
    @pytest.mark.parametrize("layer", [4, -4], ids=str)
    @pytest.mark.parametrize("method", ["accumulated_resid", "decompose_resid"])
    def test_a_layer_that_is_not_there(self, method: str, layer: int, cache: Any) -> None:
        with pytest.raises(CacheError, match=rf"layer is {layer}; the decoder has 3 layers"):
            getattr(cache, method)(layer)

    @pytest.mark.usefixtures("without_shape_checks")
    def test_a_mode_that_the_stack_has_not(self, cache: Any) -> None:
        with pytest.raises(CacheError, match=r"'cross_attn'; the encoder has .*'all', 'attn'"):
            cache.decompose_resid(mode="cross_attn", stack="encoder")
        with pytest.raises(CacheError, match="mode is 'attention'"):
            cache.decompose_resid(mode="attention")

    def test_activations_that_were_not_kept(self, cache: Any) -> None:
        with pytest.raises(HookNameError, match="hook_embed"):
            cache.subset("*.blocks.*").decompose_resid()

    def test_nothing_before_layer_0(self, cache: Any) -> None:
        with pytest.raises(CacheError, match="no component before layer 0"):
            cache.decompose_resid(0, incl_embeds=False)

    def test_a_position_that_is_not_there(self, cache: Any) -> None:
        with pytest.raises(CacheError, match="has 7 positions"):
            cache.accumulated_resid(pos_slice=7)
