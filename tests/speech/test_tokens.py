"""Tokens are openai-whisper's, for each of its three vocabularies."""

import gc
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import TokenError
from hooked_whisper.speech import (
    check_tokens,
    get_tokenizer,
    to_str_tokens,
    to_string,
    to_tokens,
)

ENGLISH = HookedWhisperConfig.for_release("tiny.en")
MULTI = HookedWhisperConfig.for_release("tiny")
THIRD = HookedWhisperConfig.for_release("turbo")
CONFIGS = [
    pytest.param(ENGLISH, id="tiny.en"),
    pytest.param(MULTI, id="tiny"),
    pytest.param(THIRD, id="turbo"),
]
TEXTS = [
    " And so my fellow Americans, ask not what your country can do for you.",
    "Grüße, 你好, 🎤!",
    "  two  spaces\n",
    "",
]


class TestTokenizer:
    @pytest.mark.parametrize("cfg", CONFIGS)
    def test_has_the_models_vocabulary(self, cfg: HookedWhisperConfig) -> None:
        assert get_tokenizer(cfg).encoding.n_vocab == cfg.d_vocab

    def test_is_made_once(self) -> None:
        assert get_tokenizer(MULTI, "german") is get_tokenizer(MULTI, "de")

    def test_leaves_no_open_file(self) -> None:
        from whisper.tokenizer import get_encoding
        from whisper.tokenizer import get_tokenizer as openai_tokenizer

        from hooked_whisper.speech.tokens import _build_tokenizer

        for cached in (_build_tokenizer, openai_tokenizer, get_encoding):
            cached.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            get_tokenizer(ENGLISH)
            gc.collect()

    @pytest.mark.parametrize(
        ("language", "code"),
        [("de", "de"), ("German", "de"), ("EN", "en"), ("castilian", "es"), (None, "en")],
    )
    def test_language_by_code_or_name(self, language: str | None, code: str) -> None:
        assert get_tokenizer(MULTI, language).language == code

    def test_cantonese_came_with_large_v3(self) -> None:
        assert get_tokenizer(THIRD, "yue").language == "yue"
        with pytest.raises(TokenError, match=r"language is 'yue'; this model has 99 languages"):
            get_tokenizer(MULTI, "yue")

    @pytest.mark.parametrize(
        ("cfg", "options", "match"),
        [
            pytest.param(MULTI, {"language": "klingon"}, r"'klingon'; .*99 languages", id="none"),
            pytest.param(MULTI, {"language": "germn"}, r"Did you mean 'german'", id="misspelt"),
            pytest.param(MULTI, {"language": "en-US"}, r"'en-US'.*Did you mean 'en'", id="region"),
            pytest.param(MULTI, {"language": 3}, r"language is 3;", id="number"),
            pytest.param(ENGLISH, {"language": "de"}, r"'de'; 'tiny\.en' is English", id="english"),
            pytest.param(MULTI, {"task": "summarise"}, r"'transcribe' or 'translate'", id="task"),
            pytest.param(ENGLISH, {"task": "translate"}, r"can only transcribe", id="translate"),
            pytest.param(
                HookedWhisperConfig.for_release("tiny", d_vocab=1000),
                {},
                r"d_vocab is 1000; Whisper's tokenizer has 51864 .*Give this model token ids",
                id="small vocabulary",
            ),
            pytest.param(
                HookedWhisperConfig.for_release("tiny", d_vocab=51867),
                {},
                r"d_vocab is 51867;",
                id="large vocabulary",
            ),
        ],
    )
    def test_says_what_is_wrong(
        self, cfg: HookedWhisperConfig, options: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(TokenError, match=match):
            get_tokenizer(cfg, **options)


class TestToTokens:
    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("cfg", CONFIGS)
    def test_equals_openai_whisper(self, cfg: HookedWhisperConfig, text: str) -> None:
        from whisper.tokenizer import get_tokenizer as openai_tokenizer

        openai = openai_tokenizer(cfg.is_multilingual, num_languages=cfg.n_languages)
        expected = [*openai.sot_sequence_including_notimestamps, *openai.encode(text)]
        assert to_tokens(text, cfg).tolist() == [expected]

    @pytest.mark.parametrize(
        ("cfg", "options", "spelled"),
        [
            (MULTI, {}, "<|startoftranscript|><|en|><|transcribe|><|notimestamps|> one"),
            (MULTI, {"timestamps": True}, "<|startoftranscript|><|en|><|transcribe|> one"),
            (MULTI, {"prepend_sot": False}, " one"),
            (MULTI, {"prepend_sot": False, "append_eot": True}, " one<|endoftext|>"),
            (
                MULTI,
                {"language": "de", "task": "translate", "timestamps": True},
                "<|startoftranscript|><|de|><|translate|> one",
            ),
            (ENGLISH, {}, "<|startoftranscript|><|notimestamps|> one"),
            (ENGLISH, {"timestamps": True}, "<|startoftranscript|> one"),
        ],
    )
    def test_beginning_and_end(
        self, cfg: HookedWhisperConfig, options: dict[str, Any], spelled: str
    ) -> None:
        tokens = to_tokens(" one", cfg, **options)
        assert to_string(tokens[0], cfg, skip_special=False) == spelled

    def test_known_ids(self) -> None:
        assert to_tokens(" one", MULTI, append_eot=True).tolist() == [
            [50258, 50259, 50359, 50363, 472, 50257]
        ]

    @pytest.mark.parametrize("cfg", CONFIGS)
    def test_shorter_texts_are_filled_with_eot(self, cfg: HookedWhisperConfig) -> None:
        tokens = to_tokens([" one", " one two three"], cfg)
        eot = get_tokenizer(cfg).eot
        assert tokens.dtype == torch.int64
        assert tokens[0].tolist() == [*to_tokens(" one", cfg)[0].tolist(), eot, eot]
        assert tokens[1:].tolist() == to_tokens(" one two three", cfg).tolist()

    @pytest.mark.parametrize("cfg", CONFIGS)
    def test_spelled_special_tokens_are_read_back(self, cfg: HookedWhisperConfig) -> None:
        tokens = to_tokens("<|0.00|> one<|1.20|>", cfg, timestamps=True, append_eot=True)
        spelled = to_string(tokens[0], cfg, skip_special=False)
        assert "<|0.00|> one<|1.20|><|endoftext|>" in spelled
        assert torch.equal(to_tokens(spelled, cfg, prepend_sot=False), tokens)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            pytest.param(None, r"^None is no text", id="none"),
            pytest.param(7, r"^7 is no text", id="number"),
            pytest.param(b"one", r"^bytes is no text", id="bytes"),
            pytest.param(["one", 2], r"^list is no text; a string or a list", id="mixed"),
            pytest.param(
                torch.tensor([1]),
                r"^a tensor of shape \(1,\) and dtype torch.int64 is no text",
                id="tokens",
            ),
            pytest.param([], r"the list of texts is empty", id="empty list"),
        ],
    )
    def test_says_what_is_wrong(self, text: Any, match: str) -> None:
        with pytest.raises(TokenError, match=match):
            to_tokens(text, MULTI)


class TestToString:
    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("cfg", CONFIGS)
    def test_gives_the_text_back(self, cfg: HookedWhisperConfig, text: str) -> None:
        assert to_string(to_tokens(text, cfg, append_eot=True)[0], cfg) == text

    @pytest.mark.parametrize(
        ("tokens", "expected"),
        [
            pytest.param(torch.tensor([472, 732]), " one two", id="tensor"),
            pytest.param(torch.tensor([[472], [732]]), [" one", " two"], id="batch"),
            pytest.param(np.array([472, 732], np.int32), " one two", id="array"),
            pytest.param([472, 732], " one two", id="list"),
            pytest.param([np.int64(472), torch.tensor(732)], " one two", id="list of scalars"),
            pytest.param([torch.tensor([472]), [732]], [" one", " two"], id="list of tensors"),
            pytest.param([[472, 732], [], [732]], [" one two", "", " two"], id="ragged"),
            pytest.param((472, 50257, 50364), " one", id="special tokens left out"),
            pytest.param([], "", id="empty"),
            pytest.param(torch.zeros(1, 0, dtype=torch.int64), [""], id="empty batch"),
        ],
    )
    def test_forms_of_tokens(self, tokens: Any, expected: Any) -> None:
        assert to_string(tokens, MULTI) == expected

    def test_first_special_token_is_eot(self) -> None:
        """50256 is `<|endoftext|>` in English vocabularies and an ordinary token elsewhere."""
        assert to_string([50256], ENGLISH, skip_special=False) == "<|endoftext|>"
        assert to_string([50256], ENGLISH) == ""
        assert to_string([50257], MULTI, skip_special=False) == "<|endoftext|>"

    @pytest.mark.parametrize("call", [to_string, to_str_tokens])
    @pytest.mark.parametrize(
        ("tokens", "match"),
        [
            pytest.param([472, 51865], r"token 51865 at position 1 .*0 to 51864", id="too high"),
            pytest.param([-1], r"token -1 at position 0 is out of the vocabulary", id="negative"),
            pytest.param(torch.tensor([1.5]), r"token 0 is 1\.5; tokens are integers", id="float"),
            pytest.param([True], r"token 0 is True; tokens are integers", id="bool"),
            pytest.param(["one"], r"token 0 is 'one'; tokens are integers", id="strings"),
            pytest.param(torch.zeros(1, 1, 1).long(), r"token 0 is \[0\]", id="three axes"),
            pytest.param(
                torch.tensor(5),
                r"^a tensor of shape \(\) and dtype torch.int64 holds no tokens",
                id="scalar",
            ),
            pytest.param(5, r"^5 holds no tokens", id="number"),
            pytest.param(None, r"^None holds no tokens", id="none"),
        ],
    )
    def test_says_what_is_wrong(self, call: Any, tokens: Any, match: str) -> None:
        with pytest.raises(TokenError, match=match):
            call(tokens, MULTI)


class TestToStrTokens:
    def test_one_string_for_each_token(self) -> None:
        assert to_str_tokens(to_tokens(" one two", MULTI, append_eot=True), MULTI) == [
            "<|startoftranscript|>",
            "<|en|>",
            "<|transcribe|>",
            "<|notimestamps|>",
            " one",
            " two",
            "<|endoftext|>",
        ]

    def test_text(self) -> None:
        assert to_str_tokens(" one two", MULTI, prepend_sot=False) == [" one", " two"]
        assert to_str_tokens(" one", ENGLISH)[:2] == ["<|startoftranscript|>", "<|notimestamps|>"]

    def test_part_of_a_character_shows_its_bytes(self) -> None:
        strings = to_str_tokens("你", ENGLISH, prepend_sot=False)
        assert strings == [r"\xe4\xbd", r"\xa0"]
        assert to_str_tokens("你", MULTI, prepend_sot=False) == ["你"]

    @pytest.mark.parametrize("cfg", CONFIGS)
    def test_every_token_has_a_string(self, cfg: HookedWhisperConfig) -> None:
        strings = to_str_tokens(list(range(cfg.d_vocab)), cfg)
        assert len(strings) == cfg.d_vocab
        assert strings[-1] == "<|30.00|>"

    def test_several_rows(self) -> None:
        with pytest.raises(TokenError, match=r"2 rows; .*to_str_tokens\(tokens\[0\]\)"):
            to_str_tokens([[472], [732]], MULTI)

    def test_text_is_no_list_of_tokens_for_to_string(self) -> None:
        with pytest.raises(TokenError, match=r"^' one' holds no tokens"):
            to_string(" one", MULTI)


class TestCheckTokens:
    @pytest.mark.parametrize(
        ("tokens", "offset"),
        [
            pytest.param(torch.tensor([[0, 100]]), 0, id="whole vocabulary"),
            pytest.param(torch.zeros(3, 20, dtype=torch.int32), 0, id="full context of int32"),
            pytest.param(torch.zeros(1, 1, dtype=torch.int64), 19, id="last step of a cache"),
            pytest.param(torch.zeros(1, 5, dtype=torch.int64, device="meta"), 0, id="meta"),
        ],
    )
    def test_takes(self, tokens: torch.Tensor, offset: int) -> None:
        check_tokens(tokens, d_vocab=101, n_text_ctx=20, offset=offset)

    @pytest.mark.parametrize(
        ("tokens", "offset", "match"),
        [
            pytest.param([[1, 2]], 0, r"tokens are list; they must be a tensor", id="list"),
            pytest.param(" one", 0, r"tokens are ' one'; .*model\.to_tokens", id="text"),
            pytest.param(None, 0, r"tokens are None", id="none"),
            pytest.param(torch.zeros(1, 3), 0, r"dtype torch\.float32", id="floats"),
            pytest.param(torch.zeros(1, 3).bool(), 0, r"dtype torch\.bool", id="bool"),
            pytest.param(torch.zeros(1, 3).to(torch.uint8), 0, r"torch\.uint8", id="uint8"),
            pytest.param(torch.tensor([1, 2]), 0, r"\(2,\).*tokens\[None\]", id="no batch axis"),
            pytest.param(torch.tensor(1), 0, r"shape \(\)", id="scalar"),
            pytest.param(torch.zeros(1, 1, 1).long(), 0, r"\(1, 1, 1\)", id="three axes"),
            pytest.param(torch.zeros(1, 0).long(), 0, r"\(1, 0\): there are none", id="empty"),
            pytest.param(torch.zeros(0, 4).long(), 0, r"there are none", id="no rows"),
            pytest.param(torch.zeros(1, 21).long(), 0, r"21 tokens are too many; .*20", id="many"),
            pytest.param(
                torch.zeros(1, 2).long(), 19, r"2 tokens after 19 in the KV cache", id="cache"
            ),
            pytest.param(
                torch.tensor([[1, 2], [3, 101]]),
                0,
                r"token 101 at row 1, position 1 is out of the vocabulary: ids go from 0 to 100",
                id="too high",
            ),
            pytest.param(torch.tensor([[1, -2]]), 0, r"token -2 at row 0, position 1", id="low"),
        ],
    )
    def test_says_what_is_wrong(self, tokens: Any, offset: int, match: str) -> None:
        with pytest.raises(TokenError, match=match):
            check_tokens(tokens, d_vocab=101, n_text_ctx=20, offset=offset)
