"""What run_with_cache keeps, of which positions, in what form; and that its parts add up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import CacheError, HookNameError, InputError, MelError


class TestRunWithCache:
    @torch.no_grad()
    def test_caching_leaves_the_logits(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        plain = tiny_model(tiny_mel, tiny_tokens)
        fused, _ = tiny_model.run_with_cache(
            tiny_mel, tiny_tokens, names_filter=["*resid*", "*.hook_[qkvz]", "*mlp*", "*normalized"]
        )
        assert torch.equal(fused, plain)
        explicit, _ = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
        torch.testing.assert_close(explicit, plain, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_residual_identities(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
        cfg = tiny_model.cfg
        for stack, layers in (("encoder", cfg.n_audio_layers), ("decoder", cfg.n_text_layers)):
            for layer in range(layers):

                def at(name: str, stack: str = stack, layer: int = layer) -> Tensor:
                    return cache[stack, layer, name]

                before = cache[stack, layer - 1, "resid_post"] if layer else None
                if before is None:
                    before = cache[stack, "embed"] + cache[stack, "pos_embed"]
                assert torch.equal(at("resid_pre"), before)
                assert torch.equal(at("resid_mid"), at("resid_pre") + at("attn_out"))
                last_mid = at("resid_mid")
                if stack == "decoder":
                    last_mid = at("resid_mid_cross")
                    assert torch.equal(last_mid, at("resid_mid") + at("cross_attn_out"))
                assert torch.equal(at("resid_post"), last_mid + at("mlp_out"))

    @torch.no_grad()
    def test_patterns_are_probabilities_and_causal_in_the_decoder_only(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
        for name in tiny_model.hook_names("*.hook_pattern"):
            pattern = cache[name]
            torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
            scores = cache[name.replace("hook_pattern", "hook_attn_scores")]
            torch.testing.assert_close(scores.softmax(-1), pattern)
            is_causal = name.startswith("decoder") and ".attn." in name
            later = torch.ones(pattern.shape[-2:], dtype=torch.bool).triu(1)
            assert (scores.isneginf() == (later & is_causal)).all()
            assert (pattern.eq(0) == (later & is_causal)).all()

    @pytest.mark.parametrize(
        "index", [3, -1, slice(1, 5), slice(None, None, 2), [0, 6, -2]], ids=str
    )
    @torch.no_grad()
    def test_pos_slice_keeps_decoder_positions(
        self, index: Any, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        _, whole = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, pos_slice=index)
        for name in whole:
            axes = whole.axes(name)
            axis = next((each for each in ("pos", "query") if each in axes), "")
            if name.startswith("encoder") or not axis:
                assert torch.equal(cache[name], whole[name]), name
                continue
            place = (slice(None),) * axes.index(axis) + (index,)
            assert torch.equal(cache[name], whole[name][place]), name
            kept = tuple(each for each in axes if each != axis or not isinstance(index, int))
            assert cache.axes(name) == kept, name

    @pytest.mark.parametrize("index", [3, -1, slice(1, 5), [0, 6, -2]], ids=str)
    @torch.no_grad()
    def test_frame_slice_keeps_encoder_positions(
        self, index: Any, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        _, whole = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, frame_slice=index)
        positions = torch.arange(tiny_model.cfg.n_audio_ctx)[index]
        for name in whole:
            axes = whole.axes(name)
            if name.startswith("decoder"):
                assert torch.equal(cache[name], whole[name]), name
            elif "frame" in axes:  # two for each position
                frames = torch.stack([2 * positions, 2 * positions + 1], dim=-1).flatten()
                assert torch.equal(cache[name], whole[name][..., frames]), name
            else:
                dim = axes.index("query" if "query" in axes else "pos")
                place = (slice(None),) * dim + (index,)
                assert torch.equal(cache[name], whole[name][place]), name

    @pytest.mark.parametrize("index", [7, -8, [0, 7], torch.tensor([9])], ids=str)
    def test_pos_slice_out_of_range(
        self, index: Any, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(CacheError, match=r"out of range: 'decoder\..*' has 7 positions"):
            tiny_model.run_with_cache(tiny_mel, tiny_tokens, pos_slice=index)

    @pytest.mark.parametrize("index", [30, -31, [0, 30]], ids=str)
    def test_frame_slice_out_of_range(
        self, index: Any, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(CacheError, match=r"out of range: 'encoder\..*' has 30 positions"):
            tiny_model.run_with_cache(tiny_mel, tiny_tokens, frame_slice=index)

    @torch.no_grad()
    def test_remove_batch_dim(self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> None:
        _, whole = tiny_model.run_with_cache(tiny_mel[:1], tiny_tokens[:1])
        output, cache = tiny_model.run_with_cache(
            tiny_mel[:1], tiny_tokens[:1], remove_batch_dim=True
        )
        assert output.shape[0] == 1
        assert not cache.has_batch_dim and whole.has_batch_dim
        for name in whole:
            assert torch.equal(cache[name], whole[name][0])
            assert cache.axes(name) == whole.axes(name)[1:]

    def test_remove_batch_dim_needs_a_batch_of_one(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(CacheError, match=r"needs a batch of 1; .* has a batch of 2"):
            tiny_model.run_with_cache(tiny_mel, tiny_tokens, remove_batch_dim=True)

    @torch.no_grad()
    def test_dtype_and_device(self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> None:
        _, whole = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
        logits, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, dtype=torch.bfloat16)
        assert logits.dtype == torch.float32
        assert all(torch.equal(cache[name], whole[name].bfloat16()) for name in whole)
        assert cache.nbytes == whole.nbytes // 2
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, device="meta")
        assert all(value.device.type == "meta" for value in cache.values())

    @pytest.mark.parametrize(
        "call",
        [
            lambda model, mel, tokens: model.run_with_cache(mel, tokens, incl_bwd=True),
            lambda model, mel, tokens: model.run_with_cache(mel, tokens, "both", incl_bwd=True),
            lambda model, mel, tokens: model.run_with_cache(mel, incl_bwd=True),
        ],
        ids=["logits", "both", "encoder"],
    )
    def test_gradients_need_one_number(
        self, call: Callable[..., Any], tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(CacheError, match=r'incl_bwd needs one number.*return_type="loss"'):
            call(tiny_model, tiny_mel, tiny_tokens)
        assert all(each.requires_grad for each in tiny_model.parameters())

    def test_gradients_of_chosen_names_also_without_grad_mode(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        name = "encoder.blocks.1.hook_resid_post"
        with torch.no_grad():
            _, cache = tiny_model.run_with_cache(
                tiny_mel, tiny_tokens, "loss", names_filter=name, incl_bwd=True
            )
        assert list(cache) == [name, name + "_grad"]
        assert cache[name + "_grad"].count_nonzero() > 0


class TestNothingIsLeftOutInSilence:
    @pytest.mark.parametrize(
        ("names_filter", "call"),
        [
            ("decoder.hook_logits", {"stop_at_layer": ("encoder", 0)}),
            (["encoder.hook_mel", ("decoder", 0, "z")], {"stop_at_layer": ("encoder", 1)}),
            ("encoder.blocks.1.*", {"stop_at_layer": ("encoder", 1)}),
        ],
        ids=["a name", "one of several", "a glob"],
    )
    def test_hooks_that_cannot_fire_in_the_run(
        self, names_filter: Any, call: Any, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(HookNameError, match="did not fire in this run"):
            tiny_model.run_with_cache(tiny_mel, tiny_tokens, names_filter=names_filter, **call)

    def test_a_decoders_hook_without_tokens(self, tiny_model: Any, tiny_mel: Tensor) -> None:
        with pytest.raises(HookNameError, match="need tokens"):
            tiny_model.run_with_cache(tiny_mel, names_filter="decoder.hook_logits")
        _, cache = tiny_model.run_with_cache(tiny_mel, names_filter="*.hook_resid_post")
        assert list(cache) == tiny_model.hook_names("encoder.*.hook_resid_post")

    def test_gradients_in_inference_mode(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with torch.inference_mode(), pytest.raises(CacheError, match="inference_mode"):
            tiny_model.run_with_cache(tiny_mel, tiny_tokens, return_type="loss", incl_bwd=True)

    def test_a_slice_of_no_positions(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(CacheError, match="chooses none of the 7 positions"):
            tiny_model.run_with_cache(
                tiny_mel, tiny_tokens, names_filter="decoder.*z", pos_slice=slice(100, 200)
            )

    def test_a_folder_that_is_not_there(
        self, tiny_model: Any, tiny_mel: Tensor, tmp_path: Any
    ) -> None:
        _, cache = tiny_model.run_with_cache(tiny_mel, names_filter="encoder.hook_embed")
        with pytest.raises(CacheError, match="cannot be written"):
            cache.save(tmp_path / "missing" / "cache")


REFUSED = {
    "int8": ({"dtype": torch.int8}, "dtype is torch.int8"),
    "bool": ({"dtype": torch.bool}, "dtype is torch.bool"),
    "complex": ({"dtype": torch.complex64}, "dtype is torch.complex64"),
    "float8": ({"dtype": torch.float8_e4m3fn}, "dtype is torch.float8"),
    "text": ({"dtype": "x"}, "dtype is 'x'"),
    "pos_slice text": ({"pos_slice": "x"}, "'x' chooses no positions"),
    "pos_slice back": ({"pos_slice": slice(None, None, -1)}, "chooses no positions"),
    "pos_slice float": ({"pos_slice": 0.5}, "0.5 chooses no positions"),
    "frame_slice": ({"frame_slice": {}}, "chooses no positions"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.usefixtures("without_shape_checks")
def test_options_that_no_cache_has(
    options: Any, message: str, tiny_model: Any, tiny_mel: Tensor
) -> None:
    with pytest.raises(CacheError, match=message):
        tiny_model.run_with_cache(tiny_mel, **options)
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.usefixtures("without_shape_checks")
def test_an_encoder_output_that_is_not_finite(
    bad: float, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    output = tiny_model(tiny_mel).detach()
    output[0, 3, 5] = bad
    with pytest.raises(InputError, match="encoder_output has 1 values that are NaN or inf"):
        tiny_model(None, tiny_tokens, encoder_output=output)
    with pytest.raises(InputError, match="resid has 1 values"):
        tiny_model.run_from(("encoder", 1), output)
    for other in (torch.ones(2, 30, 24).long(), torch.ones(2, 30, 24).to_sparse(), "x"):
        with pytest.raises(InputError, match="encoder_output is"):
            tiny_model(None, tiny_tokens, encoder_output=other)


@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda mel: mel.to(torch.float8_e4m3fn)])
@pytest.mark.usefixtures("without_shape_checks")
def test_mels_that_cannot_be_computed_with(change: Any, tiny_model: Any, tiny_mel: Tensor) -> None:
    with pytest.raises(MelError, match=r"mel (is|has dtype) torch"):
        tiny_model(change(tiny_mel))
