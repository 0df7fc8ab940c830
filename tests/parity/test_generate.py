"""Hooked decoding: the tokens of both references, and a cache like that of one pass."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.config import FLAGS

# openai-whisper leaves its vocabulary's file open.
pytestmark = pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning")

UNSUPPRESSED = {"suppress_tokens": ""}
ENDLESS = {"suppress_tokens": [50256, 50257]}
"""Without end-of-text, so that every test sees as many steps as it asks for."""


@pytest.fixture
def flagged(short: Any) -> Iterator[Any]:
    """A model with every hook point switched on."""
    model = HookedWhisper.from_openai(short.openai)
    for flag in FLAGS:
        getattr(model, f"set_{flag}")(True)
    return model


class TestCache:
    @pytest.mark.parametrize(("size", "batch"), [("short", 3), ("tiny.en", 1), ("turbo", 3)])
    def test_equals_one_pass_for_every_name(self, make_family: Any, size: str, batch: int) -> None:
        family = make_family(size)
        check_cache(family.hooked, family.mel[:batch], max_new_tokens=5, **ENDLESS)

    def test_equals_one_pass_for_names_behind_flags(self, short: Any, flagged: Any) -> None:
        check_cache(flagged, short.mel, max_new_tokens=3, **ENDLESS)

    def test_equals_one_pass_when_sampled(self, short: Any) -> None:
        options = {"max_new_tokens": 6, "temperature": 1.0, "names_filter": "decoder.*", **ENDLESS}
        check_cache(short.hooked, short.mel, **options)

    def test_equals_one_pass_over_more_than_the_caches_first_room(self, short: Any) -> None:
        names = ["decoder.hook_pos_embed", "decoder.blocks.3.*"]
        options = {"max_new_tokens": 66, "names_filter": names, **ENDLESS}
        tokens = check_cache(short.hooked, short.mel, **options)
        assert tokens.shape[1] == 4 + 66

    def test_equals_one_pass_with_the_full_window(self, digits: Any) -> None:
        """Of the encoder its streams: each of its patterns takes 54 MB."""
        names = ["encoder.*hook_resid*", "decoder.*"]
        check_cache(digits.hooked, digits.mel[:2], max_new_tokens=3, names_filter=names, **ENDLESS)


class TestTokens:
    @pytest.mark.parametrize(
        ("size", "batch", "temperature"),
        [
            pytest.param("short", 1, 0.0, id="short-1-greedy"),
            pytest.param("short", 3, 0.8, id="short-3-sampled"),
            pytest.param("tiny.en", 3, 0.0, id="tiny.en-3-greedy"),
            pytest.param("turbo", 3, 0.8, id="turbo-3-sampled"),
            pytest.param("digits", 3, 0.0, id="digits-3-greedy"),
        ],
    )
    def test_are_those_of_whisper_decode(
        self, make_family: Any, size: str, batch: int, temperature: float
    ) -> None:
        import whisper

        family = make_family(size)
        mel, common = family.mel[:batch], {"language": "en", "temperature": temperature}
        options = {**common, "without_timestamps": True, "suppress_blank": False}
        torch.manual_seed(3)
        ours = family.hooked.generate(mel, 7, **common)
        torch.manual_seed(3)
        theirs = whisper.decode(
            family.openai, mel, whisper.DecodingOptions(**options, fp16=False, sample_len=7)
        )
        rows = written(ours, 50257 if family.hooked.is_multilingual else 50256)
        assert rows == [their.tokens for their in theirs]
        assert ours.texts == [text.strip() for text in family.hooked.to_string(rows)]
        assert ours.avg_logprob.tolist() == pytest.approx([their.avg_logprob for their in theirs])
        no_speech = [their.no_speech_prob for their in theirs]
        assert ours.no_speech_prob.tolist() == pytest.approx(no_speech)

    @pytest.mark.parametrize(
        ("size", "batch", "attention"),
        [
            ("short", 1, "eager"),
            ("short", 3, "sdpa"),
            ("digits", 3, "sdpa"),
        ],
    )
    def test_are_those_of_transformers(
        self, make_family: Any, size: str, batch: int, attention: str
    ) -> None:
        family = make_family(size)
        n_new = 12 if size == "short" else 6
        ours = family.hooked.generate(family.mel[:batch], n_new, **UNSUPPRESSED)
        with family.hf_attention(attention) as hf:
            theirs = hf_greedy(hf, family.mel[:batch], n_new)
        eot = hf.config.eos_token_id
        for our, their in zip(written(ours, eot), theirs.tolist(), strict=True):
            start = 4 if their[0] == eot + 1 else 0  # some versions return the prompt too
            assert our == until(their[start:], eot)


def check_cache(model: Any, mel: Tensor, **options: Any) -> Tensor:
    """That the collected cache is the cache of one teacher-forced pass over the same tokens."""
    generation = model.generate(mel, return_cache=True, **options)
    tokens = generation.tokens[:, :-1]
    assert tokens.shape[1] > generation.n_prompt, "nothing was decoded step by step"
    names = model.hook_names(options.get("names_filter"))
    _, one_pass = model.run_with_cache(mel, tokens, names_filter=names)
    assert list(generation.cache) == list(one_pass) == names
    for name in names:
        ours, theirs = generation.cache[name], one_pass[name]
        assert ours.shape == theirs.shape, name
        assert generation.cache.axes(name) == one_pass.axes(name)
        torch.testing.assert_close(
            ours, theirs, atol=1e-4, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    return generation.tokens


def hf_greedy(hf: Any, mel: Tensor, n_new: int) -> Tensor:
    """Greedy tokens of transformers' own generate, with the prompt that ours has by default."""
    return hf.generate(
        mel,
        language="en",
        task="transcribe",
        return_timestamps=False,
        force_unique_generate_call=True,
        max_new_tokens=n_new,
    )


def written(generation: Any, eot: int) -> list[list[int]]:
    return [until(row, eot) for row in generation.tokens[:, generation.n_prompt :].tolist()]


def until(row: list[int], eot: int) -> list[int]:
    return row[: row.index(eot)] if eot in row else row
