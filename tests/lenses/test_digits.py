"""The lenses on real speech: the digits model, whose truth is known."""

from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.lenses.direct_attribution import direct_attribution
from hooked_whisper.lenses.encoder_lens import encoder_lens
from hooked_whisper.lenses.logit_lens import logit_lens
from hooked_whisper.lenses.source_attribution import source_attribution

# As users run it: a window of 30 s, each of its steps checked, takes three times as long.
pytestmark = pytest.mark.usefixtures("without_shape_checks")

CHOSEN = [0, 1, 3]
"""Recordings of three, three and two digits."""


@pytest.fixture(scope="module")
def model() -> Any:
    return HookedWhisper.from_pretrained("digits", device="cpu")


@pytest.fixture(scope="module")
def spoken() -> Any:
    return [recordings()[each] for each in CHOSEN]


@pytest.fixture(scope="module")
def mels(model: Any, spoken: Any) -> Any:
    return model.to_mel([each.path for each in spoken])


@pytest.fixture(scope="module")
def decodings(model: Any, mels: Any) -> Any:
    """Each recording decoded, with what the lenses need."""
    return [
        model.generate(mels[row], return_cache=True, names_filter="decoder.*")
        for row in range(len(mels))
    ]


def test_transcription_emerges_after_three_encoder_layers(
    model: Any, mels: Any, spoken: Any
) -> None:
    texts = [each.text for each in spoken]
    tokens = model.to_tokens([" " + text for text in texts], append_eot=True)
    lens = encoder_lens(model, mels, tokens, layers=[2, 3, 4], max_new_tokens=12)
    assert lens.emerges_at(texts) == [3, 3, 3]
    assert lens.texts[-1] == texts
    probs = lens.mean_logprobs.exp()
    assert (probs[0] < 0.6).all() and (probs[1] > 0.8).all() and (probs[2] > 0.95).all()


def test_the_lens_finds_each_digit_in_the_cross_attention_of_the_middle_layers(
    model: Any, decodings: Any, spoken: Any
) -> None:
    for decoding, recording in zip(decodings, spoken, strict=True):
        lens = logit_lens(model, decoding)
        heard = [text.strip() for text in model.to_str_tokens(lens.targets[0])]
        assert heard == [*recording.text.split(), "<|endoftext|>"]
        late = lens.labels.index("2_mid_cross")
        assert not lens.target_ranks[late:].any()
        digits = lens.target_probs[:, 0, :-1]
        early = lens.labels.index("0_post")
        assert (digits[early] < 0.6).all() and (digits[late] > 0.6).all()


def digit_positions(decoding: Any, recording: Any) -> slice:
    start = decoding.n_prompt - 1
    return slice(start, start + len(recording.words))


@pytest.mark.parametrize("by", ["component", "head", "neuron"])
def test_attributions_add_up(by: Any, model: Any, decodings: Any) -> None:
    for decoding in decodings:
        found = direct_attribution(model, decoding, by=by, versus=" eight")
        assert found.error < 1e-4
        logits = decoding.cache["decoder", "logits"][:, list(found.positions)]
        wanted = logits.gather(-1, found.targets[..., None])[..., 0]
        wanted = wanted - logits[..., model.to_tokens(" eight", prepend_sot=False)[0, 0]]
        torch.testing.assert_close(found.values.sum(dim=0), wanted, atol=1e-4, rtol=0)


def test_each_digit_is_written_from_its_own_time(model: Any, decodings: Any, spoken: Any) -> None:
    for decoding, recording in zip(decodings, spoken, strict=True):
        pos = digit_positions(decoding, recording)
        words = [(word.start_s, word.end_s) for word in recording.words]
        found = source_attribution(model, decoding, windows_s=words, versus=" seven", pos=pos)
        by_word = found.window_values[:, 0]
        assert by_word.argmax(dim=0).tolist() == list(range(len(words)))
        own, total = by_word.diagonal().sum(), found.head_values.sum(dim=0).sum()
        assert own > 0.9 * total
