"""The tokenizer's files of a Hugging Face folder, from the vocabulary that openai-whisper has.

Source: `convert_openai_to_hf.py` in transformers; `bpe` of tiktoken's `_educational.py`, by which
merges are found out of ranks.
"""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_whisper.config import HookedWhisperConfig, Vocabulary, byte_letters
from hooked_whisper.weights.vocabulary import NAMES, whisper_tokenizer

if TYPE_CHECKING:
    import tiktoken

END = "<|endoftext|>"
_NO_SPEECH = {"<|nospeech|>": "<|nocaptions|>"}
"""What transformers calls it before the third generation."""


def tokenizer_files(cfg: HookedWhisperConfig) -> dict[str, str]:
    """The texts of the files from which `WhisperTokenizer` and `WhisperProcessor` load.

    There are none where the vocabulary begins with none of OpenAI's, or could not be read.
    """
    if cfg.base_vocab not in NAMES or (cfg.vocabulary and cfg.vocabulary.ordinary is None):
        return {}
    tokens = whisper_tokenizer(cfg)
    own = cfg.vocabulary if cfg.vocabulary and cfg.vocabulary.ordinary else None
    vocab, merges = _spelled_vocabulary(own or tokens.encoding)
    old = {} if cfg.base_vocab == 51866 else _NO_SPEECH
    special = {old.get(name, name): each for name, each in tokens.special_tokens.items()}
    is_special = {name: each < tokens.timestamp_begin for name, each in special.items()}
    if cfg.vocabulary is not None:
        special |= dict((*cfg.vocabulary.special, *cfg.vocabulary.text))
        is_special |= {name: True for name, _ in cfg.vocabulary.special}
        is_special |= {name: False for name, _ in cfg.vocabulary.text}
    in_order = sorted(special, key=special.__getitem__)
    added = [_row(name, special[name], is_special[name]) for name in in_order]
    start = ["<|startoftranscript|>", "<|notimestamps|>"]
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _byte_level(add_prefix_space=False),
        "post_processor": _template(start, special),
        "decoder": _byte_level(add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": {**vocab, END: special[END]},
            "merges": merges,
        },
    }
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END)
    config = {
        **names,
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "errors": "replace",
        "model_max_length": 1024,
        "return_attention_mask": False,
        "added_tokens_decoder": {
            str(row["id"]): {key: each for key, each in row.items() if key != "id"} for row in added
        },
    }
    beyond = {name: each for name, each in special.items() if name != END}
    marked = [name for name, each in is_special.items() if each and name != END]
    contents: dict[str, Any] = {
        "tokenizer.json": whole,
        "tokenizer_config.json": config,
        "vocab.json": {**vocab, END: special[END]},
        "added_tokens.json": beyond,
        "special_tokens_map.json": {**names, "additional_special_tokens": marked},
    }
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in contents.items()}
    texts["merges.txt"] = "\n".join(["#version: 0.2", *merges, ""])
    texts["normalizer.json"] = _english_spellings()
    return texts


def _row(token: str, number: int, is_special: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **plain, "special": is_special}


def _byte_level(*, add_prefix_space: bool) -> dict[str, Any]:
    rule = {"trim_offsets": True, "use_regex": True}
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, **rule}


def _template(start: list[str], ids: dict[str, int]) -> dict[str, Any]:
    """What stands before and behind a text."""

    def fixed(token: str, kind: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": kind}}

    before = [fixed(token) for token in start]
    one, two = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [*before, one, fixed(END)],
        "pair": [*before, one, two, fixed(END, 1)],
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (*start, END)
        },
    }


def _english_spellings() -> str:
    """The spellings that the English normalizer makes one; openai-whisper has them."""
    import whisper

    path = Path(whisper.__file__).parent / "normalizers" / "english.json"
    return path.read_text(encoding="utf-8")


@cache
def _spelled_vocabulary(
    tokens: "tiktoken.Encoding | Vocabulary",
) -> tuple[dict[str, int], list[str]]:
    """Ordinary tokens in GPT-2's letters for bytes, and the merges that make them."""
    ranks: dict[bytes, int] = (
        tokens.ranks() if isinstance(tokens, Vocabulary) else tokens._mergeable_ranks
    )
    letters = {byte: letter for letter, byte in byte_letters().items()}
    spelled = {token: "".join(map(letters.__getitem__, token)) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda each: each[1]):
        if len(token) > 1:
            merges.append(" ".join(spelled[part] for part in _parts(ranks, token, rank)))
    return {spelled[token]: rank for token, rank in ranks.items()}, merges


def _parts(ranks: dict[bytes, int], token: bytes, below: int) -> list[bytes]:
    """The two tokens that a token is merged of: what earlier merges make of its bytes."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        each = [ranks.get(parts[i] + parts[i + 1], below) for i in range(len(parts) - 1)]
        least = min(each)
        if least >= below:
            break
        place = each.index(least)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts
