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

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from hooked_whisper.config import END_OF_TEXT, HookedWhisperConfig, Vocabulary, byte_letters
from hooked_whisper.errors import ArchitectureError, CheckpointError, ConfigError, shown
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

_N_ORDINARY = 50256
_ORDINARY = ("a5b171fd969735e7", "1f9e9f77b8f8f7a8")
"""Checksums of the ordinary tokens, English only and of all languages, one a line."""
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_SPECIAL = re.compile(r"<\|.*\|>")
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


def own_vocabulary(
    folder: Path | None, cfg: HookedWhisperConfig, told: Told | None
) -> Vocabulary | None:
    """The vocabulary of a fine-tune that has other tokens than a release, as its files name them.

    None where it has a release's, where nothing says which release's it begins with, and where as
    many tokens as another release has are not all named.
    """
    sizes = sorted(told.sizes if told is not None else {cfg.d_vocab} & set(NAMES))
    if len(sizes) > 1:
        sizes = [51866] if cfg.n_mels == 128 else [51865]
    if not sizes or sizes[0] > cfg.d_vocab:
        return None
    ordinary = "" if folder is None else ordinary_tokens(folder, sizes[0], told is not None)
    if sizes[0] == cfg.d_vocab:
        return None if ordinary == "" else Vocabulary(sizes[0], ordinary=ordinary)
    special: dict[int, str] = {}
    text: dict[int, str] = {}
    for token, number, is_special in _named_tokens(folder) if folder is not None else ():
        if sizes[0] <= number < cfg.d_vocab and token:
            (special if is_special else text)[number] = token
    text = {number: token for number, token in text.items() if number not in special}
    if cfg.d_vocab in NAMES and len(special) + len(text) < cfg.d_vocab - sizes[0]:
        return None
    try:
        return Vocabulary(sizes[0], _by_id(special), _by_id(text), ordinary)
    except ConfigError as error:
        raise CheckpointError(f"the tokenizer's files in {folder}: {error}") from error


def ordinary_tokens(folder: Path, base: int, is_told: bool) -> str | None:
    """The tokens of text that a tokenizer's files name, as `Vocabulary.ordinary` has them.

    Empty where they are OpenAI's, or nothing names them; None, with a warning, where they are
    others that do not fit into openai-whisper's decoding.

    Args:
        folder: Where these files are.
        base: The vocabulary whose special tokens the model has.
        is_told: Whether a config says so, which goes before the tokenizer's files.
    """
    letters, held = byte_letters(), dict[str, Any]()
    ids: dict[str, Any] = _json(folder / "vocab.json")
    merges: Any = _lines(folder / "merges.txt")
    if not _are_openais(ids, merges):
        held = _json(folder / "tokenizer.json")
        model = held.get("model")
        if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
            ids, merges = model["vocab"], model.get("merges")
    if not set(letters) <= set(ids) or _are_openais(ids, merges):
        return ""
    try:
        pairs = [each.split(" ") if isinstance(each, str) else each for each in merges]
        made = [first + second for first, second in pairs]
        numbers = [ids[token] for token in made]
        if not merges or numbers != sorted(set(numbers)) or not _is_plain(held):
            raise ValueError("they are not merged in the order of their ids by GPT-2's rule")
        kept = {ids[token]: token for token in (*letters, *made)}
        end = END_OF_TEXT[base]
        if max(kept) >= end or (not is_told and ids.get("<|endoftext|>", end) != end):
            raise ValueError(f"special tokens are not from {end} on, as Whisper's are")
        lines = "\n".join(kept.get(number, "") for number in range(max(kept) + 1))
        return Vocabulary(base, ordinary=lines).ordinary
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        warnings.warn(
            f"the tokenizer in {folder} has other ordinary tokens than OpenAI's, and cannot be "
            f"read ({str(error)[:120]}): give this model token ids, and decode what it writes with "
            "its own tokenizer.",
            stacklevel=2,
        )
        return None


def _are_openais(ids: Mapping[str, Any], merges: Any) -> bool:
    """Whether ordinary tokens and the number of merges, where there are any, are OpenAI's."""
    tokens, numbers = list(ids)[:_N_ORDINARY], list(ids.values())[:_N_ORDINARY]
    if numbers != list(range(_N_ORDINARY)):
        by_id = {number: token for token, number in ids.items() if type(number) is int}
        tokens = [by_id.get(number, "") for number in range(_N_ORDINARY)]
    checksum = xxhash.xxh3_64("\n".join(tokens).encode("utf-8", "replace")).hexdigest()
    n_merges = len(merges) if isinstance(merges, list) else 0
    return checksum in _ORDINARY and (not n_merges or n_merges >= _N_ORDINARY - 256)


def _is_plain(held: Mapping[str, Any]) -> bool:
    """Whether texts are cut before merging as GPT-2 does, and not changed."""
    cut = held.get("pre_tokenizer", _BYTE_LEVEL)
    return (
        held.get("normalizer") is None
        and isinstance(cut, dict)
        and _BYTE_LEVEL.items() <= ({"use_regex": True, **cut}.items())
    )


def _lines(path: Path) -> list[str]:
    """The merges of `merges.txt`."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if is_file(path) else []
    except (OSError, UnicodeDecodeError):
        return []
    return [line for line in lines if line and not line.startswith("#version")]


def _by_id(tokens: Mapping[int, str]) -> tuple[tuple[str, int], ...]:
    return tuple((token, number) for number, token in sorted(tokens.items()))


def _named_tokens(folder: Path) -> Iterator[tuple[str, int, bool]]:
    """Every token that a tokenizer's files name, with its id and whether it is no text.

    Later ones go first. Ordinary tokens are spelled in GPT-2's letters for bytes.
    """
    extra = _json(folder / "special_tokens_map.json").get("additional_special_tokens")
    marked = {_content(each) for each in extra} if isinstance(extra, list) else set()
    for name in ("vocab.json", "added_tokens.json", "tokenizer.json", "tokenizer_config.json"):
        values = _json(folder / name)
        model = values.get("model")
        ordinary = model.get("vocab") if isinstance(model, dict) else values
        if name != "tokenizer_config.json" and isinstance(ordinary, dict):
            for token, number in ordinary.items():
                if isinstance(token, str) and type(number) is int:
                    is_special = token in marked or bool(_SPECIAL.fullmatch(token))
                    yield (
                        (token if name == "added_tokens.json" else _spelled(token)),
                        number,
                        is_special,
                    )
        for row, number in _added_rows(values):
            yield row["content"], number, bool(row.get("special")) or row["content"] in marked


def _added_rows(values: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    listed, decoder = values.get("added_tokens"), values.get("added_tokens_decoder")
    rows = (
        [(row, row.get("id")) for row in listed or () if isinstance(row, dict)]
        if isinstance(listed, list)
        else []
    )
    if isinstance(decoder, dict):
        rows += [
            (row, int(key)) for key, row in decoder.items() if key.isdecimal() and len(key) < 9
        ]
    for row, number in rows:
        if isinstance(row, dict) and isinstance(row.get("content"), str) and type(number) is int:
            yield row, number


def _json(path: Path) -> dict[str, Any]:
    """A tokenizer's file; nothing where it is not there or cannot be read."""
    import msgspec  # reads a large vocabulary three times as fast

    try:
        values = msgspec.json.decode(path.read_bytes()) if is_file(path) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _content(each: Any) -> Any:
    """The text of a token that is given as such or with its settings."""
    text = each.get("content") if isinstance(each, dict) else each
    return text if isinstance(text, str) else None


def _spelled(token: str) -> str:
    """A token of a byte-level vocabulary as text, where it is whole characters."""
    letters = byte_letters()
    try:
        return bytes(letters[letter] for letter in token).decode()
    except (KeyError, UnicodeDecodeError):
        return token


def as_it_says(
    loaded: LoadedWeights,
    told: Told | None,
    d_vocab: int | None,
    own: Vocabulary | None = None,
) -> LoadedWeights:
    """The weights as they are, with their first `d_vocab` tokens, or refused where it is unclear.

    Args:
        told: What lies beside the weights says; None where nothing does.
        d_vocab: What the caller says, which goes before all else.
        own: What `own_vocabulary` has found.

    Raises:
        ArchitectureError: The size means another vocabulary than what is beside it says.
    """
    cfg, held = loaded.cfg, loaded.cfg.d_vocab
    if own is not None and d_vocab is None:
        loaded.cfg = replace(cfg, vocabulary=own)
        return loaded
    if d_vocab is not None:
        cfg.need_decoder()
    if d_vocab is not None:
        if type(d_vocab) is not int or not 1 <= d_vocab <= held:
            raise ArchitectureError(
                f"d_vocab is {shown(d_vocab)}; {loaded.source} has {held} tokens, and the first 1 "
                f"to {held} of them can be kept."
            )
        if own is not None and own.ordinary != "" and d_vocab in NAMES:
            loaded.cfg = cfg = replace(cfg, vocabulary=Vocabulary(d_vocab, ordinary=own.ordinary))
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
    is_own = cfg.vocabulary is not None and cfg.vocabulary.ordinary != ""
    unspoken = () if is_own else tokens.non_speech_tokens
    return sorted({*unspoken, *special, tokens.no_speech})
