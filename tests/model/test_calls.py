"""What the ways to run a model tell of themselves: in `help`, in a notebook, to an editor."""

import inspect
import itertools
import textwrap
from dataclasses import fields
from typing import Any

import pytest
import torch
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions

from hooked_whisper import HookedWhisper, WhisperCache
from hooked_whisper.model.generate import GenerateOptions
from hooked_whisper.model.openai_api import TranscribeOptions

CALL = ["encoder_output", "stop_at_layer", "loss_per_token"]
HOOKS = ["fwd_hooks", "bwd_hooks", "reset_hooks_end", "clear_contexts"]
SAES = ["saes", "use_error_term", "speech_only"]
CACHE = [
    *["names_filter", "fwd_hooks", "bwd_hooks", "device", "dtype", "remove_batch_dim", "incl_bwd"],
    *["pos_slice", "frame_slice", "reset_hooks_end", "clear_contexts"],
]
RUNS = {
    "run_with_hooks": HOOKS,
    "run_with_cache": CACHE,
    "run_with_saes": SAES,
    "run_with_hooks_with_saes": [*SAES, *HOOKS],
    "run_with_cache_with_saes": [*SAES, *CACHE],
}


@pytest.mark.parametrize(("name", "own"), RUNS.items(), ids=RUNS)
def test_a_run_tells_its_parameters_by_name(name: str, own: list[str]) -> None:
    found = inspect.signature(getattr(HookedWhisper, name)).parameters
    assert list(found) == ["self", "mel", "tokens", "return_type", *own, *CALL]
    assert found["return_type"].default == "logits"
    kinds = {each: found[each].kind for each in (*own, *CALL)}
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", RUNS)
def test_its_help_is_short_and_names_what_it_returns(name: str) -> None:
    method = getattr(HookedWhisper, name)
    assert len(str(inspect.signature(method))) < 520, "five lines of a terminal"
    assert method.__name__ == name and method.__doc__
    result = inspect.signature(method).return_annotation
    assert (result == tuple[Any, WhisperCache]) if "cache" in name else (result is Any)


def test_the_examples_in_their_help_run(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    names = {"torch": torch, "model": tiny_model, "mel": tiny_mel, "tokens": tiny_tokens}
    for method in (HookedWhisper.run_with_cache, HookedWhisper.run_with_hooks):
        _, _, example = (inspect.getdoc(method) or "").partition("For instance, ")
        lines = itertools.takewhile(
            lambda line: not line or line[0] == " ", example.splitlines()[1:]
        )
        exec(textwrap.dedent("\n".join(lines)), names)
    assert names["pattern"].shape == (2, 3, 7, 30)
    assert not names["logits"].isnan().any()


def test_options_are_those_of_openai_whisper() -> None:
    decoding = {each.name for each in fields(DecodingOptions)}
    searching = {"beam_size", "best_of", "patience", "length_penalty", "fp16", "sample_len"}
    own = {"language"} & set(inspect.signature(HookedWhisper.generate).parameters)
    assert set(GenerateOptions.__annotations__) | own == decoding - searching
    parameters = inspect.signature(whisper.transcribe).parameters
    named = {name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    assert set(TranscribeOptions.__annotations__) == named | decoding


def test_an_unknown_argument_is_refused_by_its_name(tiny_model: Any, tiny_mel: Tensor) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'name_filter'"):
        tiny_model.run_with_cache(tiny_mel, name_filter="encoder.*")


def test_dir_leaves_out_what_users_never_call(tiny_model: Any) -> None:
    offered = dir(tiny_model)
    for name in ("check_hooks_to_add", "context_level", "cache_some", "is_caching"):
        assert name not in offered and hasattr(tiny_model, name)
    for name in ("run_with_cache", "to_mel", "generate", "state_dict", "W_U", "hook_dict"):
        assert name in offered
