"""TransformerLens-style weights are views of the model's own, with TransformerLens's shapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

ATTENTIONS = ["encoder.blocks.1.attn", "decoder.blocks.2.attn", "decoder.blocks.0.cross_attn"]


def of(model: Any, path: str) -> Any:
    """A module by its path."""
    return model.get_submodule(path)


@pytest.mark.parametrize("path", ATTENTIONS)
def test_shapes_of_attention_weights(path: str, tiny_model: Any) -> None:
    attention = of(tiny_model, path)
    head, d_head = (2, 12) if path.startswith("encoder") else (3, 8)
    for name in ("W_Q", "W_K", "W_V"):
        assert getattr(attention, name).shape == (head, 24, d_head)
    assert attention.W_O.shape == (head, d_head, 24)
    for name in ("b_Q", "b_K", "b_V"):
        assert getattr(attention, name).shape == (head, d_head)
    assert attention.b_O.shape == (24,)
    assert attention.b_K.eq(0).all()


@torch.no_grad()
@pytest.mark.parametrize("path", ATTENTIONS)
def test_attention_by_its_plain_formula(
    path: str, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
    attention, stack = of(tiny_model, path), path.split(".")[0]
    norm = path.replace("cross_attn", "ln2").replace("attn", "ln1")
    x = source = cache[f"{norm}.hook_normalized"]
    if "cross" in path:
        source = cache["encoder.ln_final.hook_normalized"]
    q = torch.einsum("bpm,hmd->bphd", x, attention.W_Q) + attention.b_Q
    k = torch.einsum("bpm,hmd->bphd", source, attention.W_K) + attention.b_K
    v = torch.einsum("bpm,hmd->bphd", source, attention.W_V) + attention.b_V
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if stack == "decoder" and "cross" not in path:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    z = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
    out = torch.einsum("bqhd,hdm->bqm", z, attention.W_O) + attention.b_O
    for name, expected in {"q": q, "k": k, "v": v, "attn_scores": scores, "z": z}.items():
        torch.testing.assert_close(cache[f"{path}.hook_{name}"], expected, atol=1e-4, rtol=1e-4)
    block, _, part = path.rpartition(".")
    torch.testing.assert_close(cache[f"{block}.hook_{part}_out"], out, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_mlp_by_its_plain_formula(tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> None:
    _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
    mlp = tiny_model.decoder.blocks[1].mlp
    assert mlp.W_in.shape == (24, 96) and mlp.W_out.shape == (96, 24)
    pre = cache["decoder", 1, "normalized", "ln3"] @ mlp.W_in + mlp.b_in
    torch.testing.assert_close(cache["decoder", 1, "pre"], pre, atol=1e-5, rtol=1e-5)
    post = 0.5 * pre * (1 + torch.erf(pre / 2**0.5))
    torch.testing.assert_close(cache["decoder", 1, "post"], post, atol=1e-5, rtol=1e-5)
    out = post @ mlp.W_out + mlp.b_out
    torch.testing.assert_close(cache["decoder", 1, "mlp_out"], out, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_embedding_and_unembedding_by_their_plain_formulas(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
    assert torch.equal(cache["decoder", "embed"], tiny_model.W_E[tiny_tokens])
    assert torch.equal(cache["decoder", "pos_embed"], tiny_model.W_pos[:7].expand(2, -1, -1))
    positions = tiny_model.encoder.W_pos.expand(2, -1, -1)
    assert torch.equal(cache["encoder", "pos_embed"], positions)
    logits = cache["decoder.ln_final.hook_normalized"] @ tiny_model.W_U + tiny_model.b_U
    torch.testing.assert_close(cache["decoder", "logits"], logits, atol=1e-5, rtol=1e-5)
    assert tiny_model.W_U.shape == (24, 101) and tiny_model.b_U.eq(0).all()


VIEWS: dict[str, tuple[Callable[[Any], Tensor], str]] = {
    f"{path}.{name}": (lambda m, path=path, name=name: getattr(of(m, path), name), f"{path}.{own}")
    for path in ATTENTIONS
    for name, own in {
        "W_Q": "query.weight",
        "W_K": "key.weight",
        "W_V": "value.weight",
        "W_O": "out.weight",
        "b_Q": "query.bias",
        "b_V": "value.bias",
        "b_O": "out.bias",
    }.items()
} | {
    "mlp.W_in": (lambda m: m.encoder.blocks[0].mlp.W_in, "encoder.blocks.0.mlp.fc_in.weight"),
    "mlp.b_in": (lambda m: m.encoder.blocks[0].mlp.b_in, "encoder.blocks.0.mlp.fc_in.bias"),
    "mlp.W_out": (lambda m: m.decoder.blocks[0].mlp.W_out, "decoder.blocks.0.mlp.fc_out.weight"),
    "mlp.b_out": (lambda m: m.decoder.blocks[0].mlp.b_out, "decoder.blocks.0.mlp.fc_out.bias"),
    "W_E": (lambda m: m.W_E, "decoder.token_embedding.weight"),
    "W_U": (lambda m: m.W_U, "decoder.token_embedding.weight"),
    "W_pos": (lambda m: m.W_pos, "decoder.positional_embedding"),
    "encoder.W_pos": (lambda m: m.encoder.W_pos, "encoder.positional_embedding"),
}


@torch.no_grad()
@pytest.mark.usefixtures("without_shape_checks")
def test_an_edit_in_place_edits_the_model(
    fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    before = fresh_model(tiny_mel, tiny_tokens)
    for name, (view, own) in VIEWS.items():
        parameter = fresh_model.state_dict()[own]
        kept = parameter.clone()
        value = view(fresh_model)
        assert value.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr(), name
        first = (0,) * (value.ndim - 1)
        value[first] += torch.randn(value[first].shape)
        assert (parameter != kept).sum() == value[first].numel(), name
        assert (fresh_model(tiny_mel, tiny_tokens) - before).abs().max() > 1e-4, name
        parameter.copy_(kept)
    assert torch.equal(fresh_model(tiny_mel, tiny_tokens), before)


def test_gradients_reach_the_parameters_through_a_view(fresh_model: Any) -> None:
    fresh_model.encoder.blocks[0].attn.W_Q[1].sum().backward()
    gradient = fresh_model.encoder.blocks[0].attn.query.weight.grad
    assert gradient[:12].eq(0).all() and gradient[12:].eq(1).all()


@pytest.mark.parametrize(("stack", "parts"), [("encoder", [""]), ("decoder", ["", "cross_"])])
def test_weights_stacked_over_layers(stack: str, parts: list[str], tiny_model: Any) -> None:
    stacked = getattr(tiny_model, stack)
    for part in parts:
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            value = getattr(stacked, part + name)
            assert len(value) == len(stacked.blocks)
            for layer, block in enumerate(stacked.blocks):
                own = block.cross_attn if part else block.attn
                assert torch.equal(value[layer], getattr(own, name)), (part, name)
    for name in ("W_in", "b_in", "W_out", "b_out"):
        value = getattr(stacked, name)
        assert all(
            torch.equal(value[layer], getattr(block.mlp, name))
            for layer, block in enumerate(stacked.blocks)
        )
