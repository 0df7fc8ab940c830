"""Direct logit attribution: terms written out one by one, and their sum."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import HookNameError, InputError, TokenError
from hooked_whisper.lenses.direct_attribution import direct_attribution

DETAILS = pytest.mark.parametrize("by", ["component", "head", "neuron"])
LENGTHS = pytest.mark.parametrize(("n_rows", "n_pos"), [(1, 1), (3, 20)], ids=str)


@pytest.mark.usefixtures("without_shape_checks")
@DETAILS
@LENGTHS
def test_terms_add_up_to_the_logit(
    by: Any, any_model: Any, make_inputs: Any, n_rows: int, n_pos: int
) -> None:
    mel, tokens = make_inputs(n_rows, n_pos)
    logits = any_model(mel, tokens)
    targets = torch.randint(0, 101, (n_rows, n_pos))
    found = direct_attribution(any_model, mel, tokens, by=by, targets=targets)
    wanted = logits.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(found.logits, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values.sum(dim=0), wanted, atol=1e-4, rtol=0)
    assert found.error < 1e-4


@pytest.mark.usefixtures("without_shape_checks")
@DETAILS
def test_terms_add_up_to_a_difference(by: Any, any_model: Any, make_inputs: Any) -> None:
    mel, tokens = make_inputs(2, 7)
    logits = any_model(mel, tokens)
    found = direct_attribution(any_model, mel, tokens, by=by, targets=5, versus=6, pos=[2, -1])
    wanted = (logits[..., 5] - logits[..., 6])[:, [2, 6]]
    torch.testing.assert_close(found.values.sum(dim=0), wanted, atol=1e-4, rtol=0)
    assert found.positions == (2, 6)


@pytest.mark.usefixtures("without_shape_checks")
@DETAILS
@torch.no_grad()
def test_centred_terms_are_those_less_their_mean_over_the_vocabulary(
    by: Any, any_model: Any, make_inputs: Any
) -> None:
    mel, tokens = make_inputs(1, 2)
    logits = any_model(mel, tokens)
    found = direct_attribution(any_model, mel, tokens, by=by, targets=9, centred=True)
    wanted = logits[..., 9] - logits.mean(dim=-1)
    torch.testing.assert_close(found.logits, wanted, atol=1e-4, rtol=0)
    assert found.error < 1e-4
    _, cache = any_model.run_with_cache(mel, tokens)
    every = [
        direct_attribution(any_model, cache, by=by, targets=token).values
        for token in range(any_model.cfg.d_vocab)
    ]
    own = every[9] - torch.stack(every).mean(dim=0)
    torch.testing.assert_close(found.values, own, atol=1e-4, rtol=1e-4)
    options: dict[str, Any] = {"by": by, "targets": 5, "versus": 6}
    plain = direct_attribution(any_model, mel, tokens, **options)
    assert torch.equal(
        direct_attribution(any_model, mel, tokens, centred=True, **options).values, plain.values
    )


def logit_effect(model: Any, written: Tensor, scale: Tensor, token: int) -> Tensor:
    """What something in the last stream adds to a logit, with the scale as it was."""
    centred = written - written.mean(dim=-1, keepdim=True)
    return (centred / scale * model.decoder.ln_final.weight) @ model.W_U[:, token]


@torch.no_grad()
def test_every_term_by_hand(any_model: Any, make_inputs: Any) -> None:
    model, (mel, tokens) = any_model, make_inputs(2, 5)
    _, cache = model.run_with_cache(mel, tokens)
    scale = cache["decoder", "scale", "ln_final"]
    by_head = direct_attribution(model, cache, by="head", targets=9)
    by_neuron = direct_attribution(model, cache, by="neuron", targets=9)
    whole = direct_attribution(model, cache, targets=9)

    def check(found: Tensor, written: Tensor) -> None:
        wanted = logit_effect(model, written, scale, 9).expand_as(found)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)

    for each in (by_head, by_neuron, whole):
        check(each["embed"], cache["decoder", "embed"])
        check(each["pos_embed"], cache["decoder", "pos_embed"].expand(2, -1, -1))
        bias = model.decoder.ln_final.bias @ model.W_U[:, 9]
        torch.testing.assert_close(each["ln_final_b"], bias.expand(2, 5))
        torch.testing.assert_close(each["b_U"], model.b_U[9].expand(2, 5))
    for layer, block in enumerate(model.decoder.blocks):
        for kind, sign in (("attn", "H"), ("cross_attn", "X")):
            attention = getattr(block, kind)
            check(whole[f"{layer}_{kind}_out"], cache["decoder", layer, f"{kind}_out"])
            check(by_head[f"{layer}_{kind}_b_O"], attention.b_O)
            z = cache["decoder", layer, "z", kind]
            for head in range(3):
                check(by_head[f"L{layer}{sign}{head}"], z[:, :, head] @ attention.W_O[head])
        check(by_head[f"{layer}_mlp_out"], cache["decoder", layer, "mlp_out"])
        check(by_neuron[f"{layer}_mlp_b_out"], block.mlp.b_out)
        post = cache["decoder", layer, "post", "mlp"]
        for neuron in (0, 41, 95):
            written = post[..., neuron, None] * block.mlp.W_out[neuron]
            check(by_neuron[f"L{layer}N{neuron}"], written)


def test_names_and_kinds(tiny_model: Any, make_inputs: Any) -> None:
    inputs = make_inputs(1, 3)
    whole = direct_attribution(tiny_model, *inputs)
    assert whole.labels[:5] == ["embed", "pos_embed", "0_attn_out", "0_cross_attn_out", "0_mlp_out"]
    assert whole.labels[-2:] == ["ln_final_b", "b_U"]
    assert len(whole.labels) == 2 + 3 * 3 + 2
    heads = direct_attribution(tiny_model, *inputs, by="head")
    assert len(heads.labels) == 2 + 3 * (2 * (3 + 1) + 1) + 2
    found = next(each for each in heads.components if each.label == "L1X2")
    assert (found.kind, found.layer, found.index) == ("cross_attn", 1, 2)
    neurons = direct_attribution(tiny_model, *inputs, by="neuron")
    assert len(neurons.labels) == 2 + 3 * (2 + 96 + 1) + 2
    for each in (whole, heads, neurons):
        assert len(set(each.labels)) == len(each.labels)


def test_cached_head_results_are_used(fresh_model: Any, make_inputs: Any) -> None:
    inputs = make_inputs(1, 4)
    plain = direct_attribution(fresh_model, *inputs, by="head", targets=3)
    fresh_model.set_use_attn_result(True)
    _, cache = fresh_model.run_with_cache(*inputs)
    results = direct_attribution(fresh_model, cache, by="head", targets=3)
    torch.testing.assert_close(results.values, plain.values, atol=1e-4, rtol=1e-4)


def test_an_edit_of_the_stream_itself_shows_as_an_error(tiny_model: Any, make_inputs: Any) -> None:
    shift = torch.linspace(-1, 1, 24)
    with tiny_model.hooks([("decoder.blocks.2.hook_resid_post", lambda x, hook: x + shift)]):
        edited = direct_attribution(tiny_model, *make_inputs(1, 4), targets=3)
    assert edited.error > 1e-3
    with tiny_model.hooks([("decoder.blocks.1.hook_mlp_out", lambda x, hook: x + shift)]):
        assert direct_attribution(tiny_model, *make_inputs(1, 4), targets=3).error < 1e-4


def test_the_largest_terms(tiny_model: Any, make_inputs: Any) -> None:
    found = direct_attribution(tiny_model, *make_inputs(2, 4), by="head")
    top = found.top(3, row=1, pos=2)
    values = found.values[:, 1, 2]
    order = values.abs().argsort(descending=True)[:3]
    assert top == [(found.labels[each], float(values[each])) for each in order]
    assert len(found.top(1000)) == len(found.labels)


def test_the_table_has_the_numbers(tiny_model: Any, make_inputs: Any) -> None:
    found = direct_attribution(tiny_model, *make_inputs(2, 4), by="head", pos=[3, 1])
    frame = found.to_dataframe()
    assert len(frame) == len(found.labels) * 2 * 2
    line = frame[(frame.component == "L2X1") & (frame.batch == 1) & (frame.pos == 1)].iloc[0]
    assert (line.kind, line.layer, line["index"]) == ("cross_attn", 2, 1)
    assert line.value == pytest.approx(float(found["L2X1"][1, 1]))
    assert line.target == str(int(found.targets[1, 1]))


def test_refuses_a_component_that_there_is_not(tiny_model: Any, make_inputs: Any) -> None:
    with pytest.raises(InputError, match="no component 'L0H0'; there are embed"):
        direct_attribution(tiny_model, *make_inputs(1, 2))["L0H0"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"versus": 101}, TokenError, "token 101 is out of the vocabulary"),
        ({"targets": torch.zeros(3, 4, dtype=torch.int64)}, TokenError, r"targets have shape \(3,"),
        ({"pos": [9]}, InputError, "decoder positions 0 to 3"),
    ],
    ids=["versus", "targets", "pos"],
)
def test_refuses_before_running(
    options: Any, error: Any, message: str, tiny_model: Any, make_inputs: Any, never_runs: Any
) -> None:
    with never_runs(tiny_model), pytest.raises(error, match=message):
        direct_attribution(tiny_model, *make_inputs(2, 4), **options)


def test_refuses_another_detail(
    tiny_model: Any, make_inputs: Any, never_runs: Any, without_shape_checks: None
) -> None:
    with never_runs(tiny_model), pytest.raises(InputError, match="by is 'layer'; it can be 'comp"):
        direct_attribution(tiny_model, *make_inputs(2, 4), by="layer")  # type: ignore[arg-type]


def test_refuses_a_cache_of_too_little(tiny_model: Any, make_inputs: Any) -> None:
    _, cache = tiny_model.run_with_cache(*make_inputs(1, 3), names_filter="*.hook_resid_post")
    with pytest.raises(HookNameError, match=r"the cache lacks 'decoder\.hook_embed'"):
        direct_attribution(tiny_model, cache)
