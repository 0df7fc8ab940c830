"""Which vocabulary a model has, where its size may mislead.

Whisper's three vocabularies differ by a token or two: 51,864 (English only), 51,865
(99 languages) and 51,866 (100). One token added in a fine-tune makes the next one of a
model by size, and its text gibberish. What lies beside the weights says which it is.

| | English | 99 languages | 100 languages |
|---|---|---|---|
| `<|endoftext|>` | 50256 | 50257 | 50257 |
| `<|startoftranscript|>` | 50257 | 50258 | 50258 |
| `<|notimestamps|>` | 50362 | 50363 | 50364 |

Source: openai-whisper's `tokenizer.py`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import ArchitectureError, CheckpointError, shown
from hooked_whisper.weights.files import FirstRows, is_file, read_json
from hooked_whisper.weights.loaded import LoadedWeights

if TYPE_CHECKING:
    from whisper.tokenizer import Tokenizer

NAMES = {51864: "English only", 51865: "99 languages", 51866: "100 languages"}
"""Each vocabulary by its size."""
TOKENIZER_FILES = (
    "added_tokens.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
)

_EMBEDDING = "decoder.token_embedding.weight"
_ENGLISH, _MULTILINGUAL = frozenset({51864}), frozenset({51865, 51866})
_BY_NO_TIMESTAMPS = {50362: {51864}, 50363: {51865}, 50364: {51866}}
_BY_END = {50256: _ENGLISH, 50257: _MULTILINGUAL}
_BY_START = {50257: _ENGLISH, 50258: _MULTILINGUAL}
_BY_BRACKET = {357: _ENGLISH, 522: _MULTILINGUAL}


@dataclass(frozen=True)
class Told:
    """What something says about the vocabulary: the sizes that it leaves, and the words for it."""

    sizes: frozenset[int]
    by: str


NATIVE = Told(frozenset(NAMES), "this package's own config")
"""A config of ours was made for its weights: any vocabulary is what its size says."""


def told_by(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Told | None:
    """What a transformers model's two configs say; the most exact goes first.

    The ids in `config.json` count only where they are a Whisper's: transformers'
    defaults mix those of two vocabularies.
    """
    name = "generation_config.json"
    for key, meaning in (("no_timestamps_token_id", _BY_NO_TIMESTAMPS),):
        if sizes := _look_up(meaning, generation.get(key)):
            return Told(sizes, f"{key} in {name} is {generation[key]}")
    languages = generation.get("lang_to_id")
    if isinstance(languages, dict) and languages:
        has_cantonese = "<|yue|>" in languages
        sizes = frozenset({51866}) if has_cantonese else _MULTILINGUAL
        return Told(sizes, f"lang_to_id in {name} lists {len(languages)} languages")
    said = generation.get("is_multilingual")
    if isinstance(said, bool):
        sizes = _MULTILINGUAL if said else _ENGLISH
        return Told(sizes, f"is_multilingual in {name} is {said}")
    for values, where in ((generation, name), (config, "config.json")):
        ids = [
            values.get(key) for key in ("bos_token_id", "eos_token_id", "decoder_start_token_id")
        ]
        if ids == [50257, 50256, 50257]:
            return Told(_ENGLISH, f"{where} ends texts with 50256 and begins them with 50257")
        if ids[1:] == [50257, 50258]:
            return Told(_MULTILINGUAL, f"{where} ends texts with 50257 and begins them with 50258")
    return None


def told_by_files(folder: Path) -> Told | None:
    """What the tokenizer's files in a folder say; they are no condition for loading."""
    for name in TOKENIZER_FILES:
        path = folder / name
        if not is_file(path):
            continue
        try:
            told = told_by_tokens(_token_ids(read_json(path)), name)
        except CheckpointError:
            continue
        if told is not None:
            return told
    return None


def told_by_tokens(ids: Mapping[str, Any], name: str) -> Told | None:
    """What the ids of a few tokens say; the most exact goes first.

    Args:
        ids: Of each token.
        name: What to call the file that they are from.
    """
    for token, meaning in (
        ("<|notimestamps|>", _BY_NO_TIMESTAMPS),
        ("<|startoftranscript|>", _BY_START),
        ("<|endoftext|>", _BY_END),
    ):
        if sizes := _look_up(meaning, ids.get(token)):
            return Told(sizes, f"{token} in {name} is {ids[token]}")
    return None


def told_by_words(words: Sequence[bytes], name: str) -> Told | None:
    """What a list of tokens without the special ones says: where a bracket stands in it."""
    place = words.index(b" (") if b" (" in words else None
    sizes = _look_up(_BY_BRACKET, place)
    return Told(sizes, f"' (' in {name} is {place}") if sizes else None


def as_it_says(loaded: LoadedWeights, told: Told | None, d_vocab: int | None) -> LoadedWeights:
    """The weights as they are, with their first `d_vocab` tokens, or refused where it is unclear.

    Args:
        told: What lies beside the weights says; None where nothing does.
        d_vocab: What the caller says, which goes before all else.

    Raises:
        ArchitectureError: The size means another vocabulary than what is beside it says.
    """
    cfg, held = loaded.cfg, loaded.cfg.d_vocab
    if d_vocab is not None:
        cfg.need_decoder()
    if d_vocab is not None:
        if type(d_vocab) is not int or not 1 <= d_vocab <= held:
            raise ArchitectureError(
                f"d_vocab is {shown(d_vocab)}; {loaded.source} has {held} tokens, and the first 1 "
                f"to {held} of them can be kept."
            )
        if d_vocab < held:
            loaded.tensors[_EMBEDDING] = FirstRows(loaded.tensors[_EMBEDDING], d_vocab)
            loaded.cfg = replace(cfg, d_vocab=d_vocab)
        return loaded
    if told is None and held == 51866 and cfg.n_mels == 80:
        told = Told(frozenset({51864, 51865}), "n_mels is 80, which no release with it has")
    if held in NAMES and told is not None and held not in told.sizes:
        fitting = [size for size in sorted(told.sizes) if size < held]
        others = " or ".join(
            f"d_vocab={size} ({NAMES[size]}; the tokens behind are left out)" for size in fitting
        )
        raise ArchitectureError(
            f"{loaded.source} has {held} tokens, as the vocabulary of Whisper with "
            f"{NAMES[held]}, but {told.by}: tokens were added, or the files do not belong "
            f"together. Say which it is: from_pretrained(..., {others + ' or ' if others else ''}"
            f"d_vocab={held} ({NAMES[held]}))."
        )
    return loaded


def _look_up(meaning: Mapping[int, Any], token: Any) -> frozenset[int] | None:
    return frozenset(meaning[token]) if type(token) is int and token in meaning else None


def _token_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    """Ids by token, out of any of a tokenizer's files."""
    listed = values.get("added_tokens")  # tokenizer.json
    if isinstance(listed, list):
        rows = [row for row in listed if isinstance(row, dict)]
        return {
            row["content"]: row.get("id") for row in rows if isinstance(row.get("content"), str)
        }
    decoder = values.get("added_tokens_decoder")  # tokenizer_config.json
    if isinstance(decoder, dict):
        return {
            row["content"]: int(number)
            for number, row in decoder.items()
            if isinstance(row, dict) and isinstance(row.get("content"), str) and number.isdecimal()
        }
    return dict(values)


def whisper_tokenizer(cfg: HookedWhisperConfig) -> "Tokenizer":
    """openai-whisper's tokenizer of a vocabulary in `NAMES`."""
    from whisper.tokenizer import get_tokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # openai-whisper leaves a file open
        return get_tokenizer(cfg.is_multilingual, num_languages=cfg.n_languages)


def suppressed_tokens(cfg: HookedWhisperConfig) -> list[int]:
    """What OpenAI's decoding never writes: what nobody says, and tokens of the beginning."""
    tokens = whisper_tokenizer(cfg)
    special = (tokens.sot, tokens.translate, tokens.transcribe, tokens.sot_lm, tokens.sot_prev)
    return sorted({*tokens.non_speech_tokens, *special, tokens.no_speech})
