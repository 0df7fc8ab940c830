"""Weights into a module."""

from dataclasses import replace

import pytest
import torch

from hooked_whisper.errors import CheckpointError, WeightNameError, WeightsError, WeightShapeError
from hooked_whisper.weights import assign_weights, from_openai_state, load_weights
from hooked_whisper.weights.rename import openai_name


def contents(module):
    return {name: (value, value.clone()) for name, value in module.state_dict().items()}


def assert_unchanged(module, before):
    for name, value in module.state_dict().items():
        tensor, values = before[name]
        assert value.data_ptr() == tensor.data_ptr()
        assert torch.equal(value, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_everything_gets_the_dtype(openai_model, make_module, tiny_cfg, dtype):
    module = make_module(tiny_cfg)
    assign_weights(module, from_openai_state(openai_model), device="cpu", dtype=dtype)
    theirs = openai_model.state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(value, theirs[openai_name(name)].to(dtype)), name
    assert all(isinstance(value, torch.nn.Parameter) for value in module.parameters())
    assert [name for name, _ in module.named_buffers()] == ["encoder.positional_embedding"]


def test_frozen_parameters_stay_frozen(openai_model, make_module, tiny_cfg):
    module = make_module(tiny_cfg)
    module.encoder.conv1.bias.requires_grad_(False)
    assign_weights(module, from_openai_state(openai_model), device="cpu", dtype=torch.float32)
    assert not module.encoder.conv1.bias.requires_grad
    assert module.encoder.conv1.weight.requires_grad


def test_weights_are_used_once(openai_model, make_module, tiny_cfg):
    loaded = from_openai_state(openai_model)
    assign_weights(make_module(tiny_cfg), loaded, device="cpu", dtype=torch.float32)
    with pytest.raises(WeightsError, match="weights of this Whisper were used already; load them"):
        assign_weights(make_module(tiny_cfg), loaded, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"n_text_layers": 4},
            WeightNameError,
            r"lacks 24 tensors: decoder\.blocks\.3",
        ),
        ({"n_text_layers": 2}, WeightNameError, r"holds 24 tensors that .*: decoder\.blocks\.2"),
        (
            {"n_mels": 128},
            WeightShapeError,
            r"'encoder\.conv1\.weight' in this Whisper is \(24, 80, 3\); .* needs \(24, 128",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_a_model_of_another_config_stays_as_it_was(
    openai_model, make_module, tiny_cfg, changes, error, message
):
    module = make_module(replace(tiny_cfg, **changes), device="cpu")
    before = contents(module)
    with pytest.raises(error, match=message):
        assign_weights(module, from_openai_state(openai_model), device="cpu", dtype=torch.float16)
    assert_unchanged(module, before)


def test_a_file_that_breaks_while_it_is_read_leaves_the_model(
    checkpoint, write_pt, make_module, tiny_cfg
):
    path = write_pt(checkpoint)
    loaded = load_weights(path)
    path.write_bytes(path.read_bytes()[:5000])
    module = make_module(tiny_cfg, device="cpu")
    before = contents(module)
    with pytest.raises(CheckpointError, match="cut short"):
        assign_weights(module, loaded, device="cpu", dtype=torch.float32)
    assert_unchanged(module, before)


def test_an_omitted_tensor_needs_values_in_the_model(openai_model, make_module, tiny_cfg):
    loaded = from_openai_state(openai_model)
    del loaded.tensors["encoder.positional_embedding"]
    loaded.omitted = ("encoder.positional_embedding",)
    with pytest.raises(WeightNameError, match=r"leaves out 'encoder.pos.*', and the"):
        assign_weights(make_module(tiny_cfg), loaded, device="cpu", dtype=torch.float32)
