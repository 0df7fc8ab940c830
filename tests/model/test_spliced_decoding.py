"""Autoencoders while the model decodes: greedy, beam search, word times; on a human voice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings

# As users run it: a window of 30 s, each of its steps checked, takes three times as long.
pytestmark = pytest.mark.usefixtures("without_shape_checks")

AUDIO, TEXT = "encoder.blocks.2.hook_resid_post", "decoder.blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def digits() -> HookedWhisper:
    return HookedWhisper.from_pretrained("digits", device="cpu")


@pytest.fixture(scope="module")
def saes(plain_autoencoder: Callable[..., Any]) -> dict[str, Any]:
    return {AUDIO: plain_autoencoder(96, 40), TEXT: plain_autoencoder(96, 30, seed=1)}


def assert_same(found: Any, wanted: Any) -> None:
    """The same transcript; of probabilities, an error term gives back all but the last bits."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize(
    "options",
    [{"word_timestamps": True}, {"beam_size": 3}],
    ids=["greedy, words", "beam"],
)
def test_with_the_error_term_transcribing_is_unchanged(
    digits: HookedWhisper, saes: dict[str, Any], options: dict[str, Any]
) -> None:
    """The autoencoders run all the way: a hook inside each sees every step."""
    recording = recordings()[0]
    options = {"language": "en", **options}
    clean = digits.transcribe(recording.path, **options)
    fired: dict[str, int] = {}

    def count(value: Tensor, hook: Any) -> None:
        fired[hook.name] = fired.get(hook.name, 0) + 1

    with digits.saes(saes, use_error_term=True), digits.hooks([("*acts_post", count)]):
        assert_same(digits.transcribe(recording.path, **options), clean)
    assert fired[f"{AUDIO}.hook_sae_acts_post"] in (1, 2)
    assert fired[f"{TEXT}.hook_sae_acts_post"] > 3


def test_the_latents_of_decoding_are_those_of_one_pass(
    digits: HookedWhisper, saes: dict[str, Any]
) -> None:
    mel = digits.to_mel(recordings()[0].path)
    names = [f"{TEXT}.hook_sae_acts_post", f"{TEXT}.hook_sae_output", TEXT]
    with digits.saes(saes, use_error_term=True):
        result = digits.generate(mel, return_cache=True, names_filter=names)
        assert result.cache is not None
        n_pos = result.cache[TEXT].shape[1]
        with torch.no_grad():
            _, cache = digits.run_with_cache(mel, result.tokens[:, :n_pos], names_filter=names)
    for name in names:
        torch.testing.assert_close(result.cache[name], cache[name], rtol=1e-4, atol=1e-4)


def test_without_the_error_term_it_acts(digits: HookedWhisper, saes: dict[str, Any]) -> None:
    """Untrained autoencoders destroy the transcript; taking them out brings it back."""
    recording = recordings()[0]
    mel = digits.to_mel(recording.path)
    with digits.saes(saes):
        spoilt = digits.generate(mel, max_new_tokens=6).texts[0]
    assert spoilt.strip() != recording.text
    assert digits.generate(mel).texts[0].strip() == recording.text
