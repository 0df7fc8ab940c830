"""Models in memory inside of DistributedDataParallel, torch.compile and peft."""

import copy

import pytest
import torch
from torch import nn

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import ArchitectureError

from .peft_files import adapted
from .test_adapters import ADAPTERS, assert_near, logits
from .test_adapters import CASES as ADAPTER_CASES

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """One process, so that DistributedDataParallel can be made."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def in_ddp(model):
    return nn.parallel.DistributedDataParallel(copy.deepcopy(model))


WRAPPERS = {
    "ddp": in_ddp,
    "compiled": torch.compile,
    "compiled-ddp": lambda model: torch.compile(in_ddp(model)),
    "ddp-compiled": lambda model: nn.parallel.DistributedDataParallel(torch.compile(model)),
    "data-parallel": nn.DataParallel,
}


CASES = [
    pytest.param(name, marks=pytest.mark.slow) if "compiled" in name else name for name in WRAPPERS
]
"""Compiling loads what takes seconds."""


@pytest.mark.parametrize("name", CASES)
def test_wrapped_models(group, hf_model, openai_model, name, tiny_mel, tiny_tokens):
    wrap = WRAPPERS[name]
    theirs = HookedWhisper.from_hf(wrap(copy.deepcopy(hf_model)))
    assert_near(logits(theirs, tiny_mel, tiny_tokens), logits(hf_model, tiny_mel, tiny_tokens))
    if "ddp" in name:  # which takes no sparse buffers, as openai-whisper's alignment heads are
        return
    ours = HookedWhisper.from_openai(wrap(copy.deepcopy(openai_model)))
    with torch.no_grad():
        assert_near(ours(tiny_mel, tiny_tokens), openai_model(tiny_mel, tiny_tokens))


@pytest.mark.slow
def test_parts_that_are_compiled(openai_model, tiny_mel, tiny_tokens):
    theirs = copy.deepcopy(openai_model)
    theirs.encoder = torch.compile(theirs.encoder)
    theirs.decoder.blocks[1] = torch.compile(theirs.decoder.blocks[1])
    ours = HookedWhisper.from_openai(theirs)
    with torch.no_grad():
        assert_near(ours(tiny_mel, tiny_tokens), openai_model(tiny_mel, tiny_tokens))


@pytest.mark.parametrize("name", ADAPTER_CASES)
def test_a_peft_model(hf_model, name, tiny_mel, tiny_tokens):
    theirs = adapted(hf_model, **ADAPTERS[name])
    model = HookedWhisper.from_hf(theirs)
    assert_near(logits(model, tiny_mel, tiny_tokens), logits(theirs, tiny_mel, tiny_tokens))
    with model.adapter(False), theirs.disable_adapter():
        assert_near(logits(model, tiny_mel, tiny_tokens), logits(theirs, tiny_mel, tiny_tokens))


@pytest.mark.slow
def test_a_peft_model_that_is_wrapped(group, hf_model, tiny_mel, tiny_tokens):
    theirs = adapted(hf_model, target_modules=["q_proj"], use_dora=True)
    expected = logits(theirs, tiny_mel, tiny_tokens)
    for wrapped in (torch.compile(theirs), in_ddp(theirs)):
        assert_near(logits(HookedWhisper.from_hf(wrapped), tiny_mel, tiny_tokens), expected)


def test_an_adapter_of_transformers_own(hf_model, tiny_mel, tiny_tokens):
    from peft import LoraConfig

    theirs = copy.deepcopy(hf_model)
    theirs.add_adapter(LoraConfig(target_modules=["fc1"], init_lora_weights=False), "mine")
    model = HookedWhisper.from_hf(theirs)
    assert_near(logits(model, tiny_mel, tiny_tokens), logits(theirs, tiny_mel, tiny_tokens))


def test_which_of_several(hf_model, tiny_mel, tiny_tokens):
    from peft import LoraConfig

    theirs = adapted(hf_model, target_modules=["q_proj"])
    theirs.add_adapter("other", LoraConfig(target_modules=["fc1"], init_lora_weights=False))
    theirs.set_adapter("other")
    model = HookedWhisper.from_hf(theirs)
    assert_near(logits(model, tiny_mel, tiny_tokens), logits(theirs, tiny_mel, tiny_tokens))
    theirs.base_model.set_adapter(["default", "other"])
    with pytest.raises(ArchitectureError, match=r"has 2 active adapters .*'default', 'other'"):
        HookedWhisper.from_hf(theirs)
    theirs.set_adapter("default")
    theirs.merge_adapter()
    with pytest.raises(ArchitectureError, match=r"call unmerge_adapter\(\) first"):
        HookedWhisper.from_hf(theirs)
    theirs.unmerge_adapter()
    with theirs.disable_adapter(), pytest.raises(ArchitectureError, match="is disabled"):
        HookedWhisper.from_hf(theirs)
