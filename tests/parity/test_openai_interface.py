"""The attributes and methods of openai-whisper's class, with the same results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

# openai-whisper leaves its vocabulary's file open.
pytestmark = pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning")


def test_sizes(family: Any) -> None:
    assert family.hooked.dims == family.openai.dims
    for name in ("is_multilingual", "num_languages", "device"):
        assert getattr(family.hooked, name) == getattr(family.openai, name), name


def test_embed_audio_and_logits(short: Any, assert_same: Callable[..., None]) -> None:
    ours = short.hooked.embed_audio(short.mel[:1])
    theirs = short.openai.embed_audio(short.mel[:1])
    assert_same(ours, theirs, "embed_audio")
    tokens = short.tokens[:1, :6]
    ours, theirs = short.hooked.logits(tokens, ours), short.openai.logits(tokens, theirs)
    assert_same(ours, theirs, "logits")


@pytest.mark.parametrize("size", ["short", "large-v3", "turbo", "digits"])
def test_detect_language(make_family: Any, size: str) -> None:
    import whisper

    family = make_family(size)
    tokens, probabilities = family.hooked.detect_language(family.mel)
    their_tokens, their_probabilities = whisper.detect_language(family.openai, family.mel)
    assert torch.equal(tokens, their_tokens)
    assert probabilities == their_probabilities
    assert len(probabilities[0]) == family.hooked.num_languages
    one_token, one_row = family.hooked.detect_language(family.mel[0])
    assert one_token == tokens[0]
    assert one_row == pytest.approx(probabilities[0], abs=1e-5)


def test_detect_language_of_an_english_model(make_family: Any) -> None:
    model = make_family("tiny.en").hooked
    with pytest.raises(ValueError, match="can't perform lang id"):
        model.detect_language(make_family("tiny.en").mel)


def test_alignment_heads_are_the_later_half_by_default(family: Any) -> None:
    if family.hooked.cfg.model_name == "digits":
        pytest.skip("a trained model has alignment heads of its own")
    ours, theirs = family.hooked.alignment_heads, family.openai.alignment_heads
    assert torch.equal(ours.to_dense(), theirs.to_dense())


def test_alignment_heads_from_openais_table(make_family: Any, make_reference: Any) -> None:
    """The table of Tiny, set on a copy of either class, and carried along."""
    import whisper

    from hooked_whisper import HookedWhisper

    short = make_family("short").hooked
    ours, theirs = HookedWhisper.from_openai(make_reference(short)), make_reference(short)
    dump = whisper._ALIGNMENT_HEADS["tiny"]
    ours.set_alignment_heads(dump)
    theirs.set_alignment_heads(dump)
    assert torch.equal(ours.alignment_heads.to_dense(), theirs.alignment_heads.to_dense())
    again = HookedWhisper.from_openai(theirs)
    assert torch.equal(again.alignment_heads.to_dense(), theirs.alignment_heads.to_dense())


@pytest.mark.parametrize("reference", ["openai", "hf"])
@pytest.mark.parametrize("size", ["tiny.en", "large-v3", "turbo"])
def test_models_in_memory_come_over(
    make_family: Any, size: str, reference: str, assert_same: Callable[..., None]
) -> None:
    """Through the package's own renaming, to the same logits."""
    from hooked_whisper import HookedWhisper

    family = make_family(size)
    copied = getattr(HookedWhisper, f"from_{reference}")(getattr(family, reference))
    mel, tokens = family.mel[:1], family.tokens[:1, :4]
    assert_same(copied(mel, tokens), family.openai(mel, tokens), "logits")
