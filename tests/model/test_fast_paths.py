"""Only the layer that is looked at leaves the fused kernels, and both paths agree."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_whisper.model import layers
from hooked_whisper.model.layers import unembed

ATTENTIONS = [
    *(f"encoder.blocks.{layer}.attn" for layer in range(2)),
    *(f"decoder.blocks.{layer}.{part}" for layer in range(3) for part in ("attn", "cross_attn")),
]
NORMS = [
    *(f"encoder.blocks.{layer}.{ln}" for layer in range(2) for ln in ("ln1", "ln2")),
    "encoder.ln_final",
    *(f"decoder.blocks.{layer}.{ln}" for layer in range(3) for ln in ("ln1", "ln2", "ln3")),
    "decoder.ln_final",
]


class Spy:
    """The layers that ran PyTorch's fused kernels, by name, in order."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = model
        self.attention: list[str] = []
        self.norms: list[str] = []
        attend, normalize = F.scaled_dot_product_attention, F.layer_norm
        by_weight = {model.get_submodule(name).weight.data_ptr(): name for name in NORMS}
        self.values: dict[int, str] = {}

        def spied_attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.attention.append(self.values[v.data_ptr()])
            return attend(q, k, v, *args, **kwargs)

        def spied_norm(x: Tensor, shape: Any, weight: Tensor, *args: Any) -> Tensor:
            self.norms.append(by_weight[weight.data_ptr()])
            return normalize(x, shape, weight, *args)

        monkeypatch.setattr(F, "scaled_dot_product_attention", spied_attend)
        monkeypatch.setattr(F, "layer_norm", spied_norm)

    def run(self, mel: Tensor, tokens: Tensor, look_at: Any = ()) -> Tensor:
        """Logits, with a hook that reads `look_at`, and one that tells layers by their values."""
        kept = []

        def note(value: Tensor, hook: Any) -> None:
            kept.append(value)  # held, so that no two layers' values have one address
            self.values[value.data_ptr()] = hook.name.removesuffix(".hook_v")

        hooks = [("*.hook_v", note), *((name, lambda value, hook: None) for name in look_at)]
        self.attention.clear()
        self.norms.clear()
        return self.model.run_with_hooks(mel, tokens, fwd_hooks=hooks)


@pytest.fixture
def spy(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    with torch.no_grad():
        yield Spy(tiny_model, monkeypatch)


def test_everything_is_fused_without_a_look(
    spy: Spy, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    spy.run(
        tiny_mel, tiny_tokens, ["*.hook_[qkz]", "*resid*", "*.hook_normalized", "*.hook_p[or]*"]
    )
    assert spy.attention == ATTENTIONS
    assert spy.norms == NORMS


@pytest.mark.parametrize("hook", ["hook_pattern", "hook_attn_scores"])
@pytest.mark.parametrize("layer", ATTENTIONS)
def test_only_the_layer_whose_pattern_or_scores_are_touched(
    layer: str, hook: str, spy: Spy, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    fused = spy.run(tiny_mel, tiny_tokens)
    logits = spy.run(tiny_mel, tiny_tokens, [f"{layer}.{hook}"])
    assert spy.attention == [each for each in ATTENTIONS if each != layer]
    assert spy.norms == NORMS
    torch.testing.assert_close(logits, fused, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", NORMS)
def test_only_the_layer_norm_whose_scale_is_touched(
    layer: str, spy: Spy, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    fused = spy.run(tiny_mel, tiny_tokens)
    logits = spy.run(tiny_mel, tiny_tokens, [f"{layer}.hook_scale"])
    assert spy.norms == [each for each in NORMS if each != layer]
    assert spy.attention == ATTENTIONS
    torch.testing.assert_close(logits, fused, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("direction", ["cache", "backward hook", "permanent hook"])
def test_every_way_of_looking_counts_and_ends(
    direction: str, fresh_model: Any, monkeypatch: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    calls = []
    attend = F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    name, seen = "encoder.blocks.1.attn.hook_pattern", []

    def look(value: Tensor, hook: Any) -> None:
        seen.append(value.shape)

    if direction == "cache":
        _, cache = fresh_model.run_with_cache(tiny_mel, tiny_tokens, names_filter=name)
        seen.append(cache[name].shape)
    elif direction == "backward hook":
        fresh_model.run_with_hooks(
            tiny_mel, tiny_tokens, "loss", bwd_hooks=[(name, look)]
        ).backward()
    else:
        fresh_model.add_perma_hook(name, look)
        fresh_model(tiny_mel, tiny_tokens)
        fresh_model.reset_hooks(including_permanent=True)
    assert seen == [(2, 2, 30, 30)]
    assert len(calls) == len(ATTENTIONS) - 1
    fresh_model(tiny_mel, tiny_tokens)
    assert len(calls) == 2 * len(ATTENTIONS) - 1


@pytest.mark.parametrize("flag", [None, "use_attn_in", "use_split_qkv_input", "use_attn_result"])
@pytest.mark.parametrize("n_queries", [1, 7, 30])
def test_some_positions_of_a_block_are_those_of_all(
    fresh_model: Any, n_queries: int, flag: str | None
) -> None:
    """They read all the others, which are not computed."""
    if flag is not None:
        getattr(fresh_model, f"set_{flag}")(True)
    block = fresh_model.encoder.blocks[1]
    resid = torch.randn(2, 30, 24)
    some, all_of_them = block(resid, n_queries=n_queries), block(resid)
    assert some.shape == (2, n_queries, 24)
    assert torch.allclose(some, all_of_them[:, :n_queries], atol=1e-6)


@pytest.mark.parametrize("has_key_bias", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("n_pos", [1, 5])
def test_few_queries_read_the_encoder_as_through_keys_and_values(
    fresh_model: Any, n_pos: int, has_key_bias: bool
) -> None:
    if has_key_bias:
        fresh_model.process_weights_(center_writing_weights=False)
    attention = fresh_model.decoder.blocks[1].cross_attn
    with torch.no_grad():
        for bias in (attention.query.bias, attention.value.bias, attention.out.bias):
            bias.normal_()
        if has_key_bias:
            attention.key.bias.normal_()
        queries, source = torch.randn(2, n_pos, 24), torch.randn(2, 30, 24)
        direct = attention.write_from(queries, source)
        assert torch.allclose(direct, attention(queries, source, source)[0], atol=1e-5)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "processed"])
def test_logits_of_some_tokens_are_those_of_all(fresh_model: Any, is_tied: bool) -> None:
    decoder = fresh_model.decoder
    if not is_tied:
        fresh_model.process_weights_()
        torch.nn.init.normal_(decoder.unembedding.bias)
    with torch.no_grad():
        resid = torch.randn(2, 3, 24)
        some = decoder.finish(resid, [7, 3, 100])
        assert torch.allclose(some, decoder.finish(resid)[..., [7, 3, 100]], atol=1e-6)


@pytest.fixture(params=[1, 2])
def n_threads(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(layers, "_FASTEST", {})
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", range(3), ids=["whole", "pieces", "ahead"])
@pytest.mark.parametrize("n_rows", [51864, 51865, 5003])
def test_a_single_position_is_unembedded_every_way_with_the_same_bits(
    n_rows: int, way: int, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_fastest_of", lambda ways, *_: ways[way])
    weight = torch.randn(n_rows, 64)
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(1, 1, 64)
            logits = unembed(x, weight)
            assert torch.equal(logits, x @ weight.T) and logits.shape == (1, 1, n_rows)
    assert layers._FASTEST.keys() == {(n_threads, n_rows, 64)}


def test_where_pieces_have_other_bits_the_whole_is_multiplied(
    n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args, out: multiply(*args, out=out).add_(1e-6))
    weight = torch.randn(5000, 64)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(1, 1, 64)
            assert torch.equal(unembed(x, weight), x @ weight.T)


def test_the_fastest_way_with_the_same_bits_is_taken(n_threads: int) -> None:
    def slow(x: Tensor, weight: Tensor) -> Tensor:
        for _ in range(30):
            product = x @ weight.T
        return product

    def quick(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    def wrong(x: Tensor, weight: Tensor) -> Tensor:
        return x.new_zeros(1, 1, len(weight))

    x, weight = torch.randn(1, 1, 64), torch.randn(5000, 64)
    assert layers._fastest_of([slow, quick, wrong], x, weight) is quick
    assert layers._fastest_of([slow, wrong], x, weight) is slow


@pytest.mark.parametrize("shape", [(1, 3, 64), (2, 1, 64)], ids=["positions", "rows"])
def test_several_positions_and_gradients_take_the_plain_product(
    shape: tuple[int, ...], n_threads: int
) -> None:
    weight = torch.randn(5000, 64, requires_grad=True)
    with torch.no_grad():
        x = torch.randn(shape)
        assert torch.equal(unembed(x, weight), x @ weight.T)
    assert unembed(torch.randn(1, 1, 64), weight).requires_grad
    assert not layers._FASTEST
