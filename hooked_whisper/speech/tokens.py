"""Text and tokens, by openai-whisper's tokenizer."""

import difflib
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from hooked_whisper.config import D_VOCABS, HookedWhisperConfig
from hooked_whisper.errors import NoDecoderError, TokenError, describe

if TYPE_CHECKING:
    from whisper.tokenizer import Tokenizer

TASKS = ("transcribe", "translate")


def has_tokenizer(cfg: HookedWhisperConfig) -> bool:
    """Whether the vocabulary is Whisper's, so that the model reads and writes text."""
    return cfg.base_vocab in D_VOCABS


def get_tokenizer(
    cfg: HookedWhisperConfig, language: Any = "en", task: Any = "transcribe"
) -> "Tokenizer":
    """openai-whisper's tokenizer for this model's vocabulary.

    Args:
        cfg: Its `d_vocab` says which vocabulary it is.
        language: A code (`"de"`) or a name (`"german"`); an English-only
            model has English alone. None means English.
        task: `"transcribe"`, or `"translate"` (into English), which an
            English-only model does not have. None means transcribe.

    Raises:
        TokenError: The vocabulary is not Whisper's, or has no such language or task.
        NoDecoderError: The model is an encoder alone.
    """
    cfg.need_decoder()
    if not has_tokenizer(cfg):
        raise TokenError(
            f"d_vocab is {cfg.d_vocab}; Whisper's tokenizer has {D_VOCABS[0]} (English only), "
            f"{D_VOCABS[1]} or {D_VOCABS[2]} tokens. Give this model token ids: an integer tensor "
            "[batch, pos]."
        )
    code = language_code(cfg, language)
    task = "transcribe" if task is None else task
    if task not in TASKS:
        raise TokenError(f"task is {task!r}; it must be 'transcribe' or 'translate'.")
    if task == "translate" and not cfg.is_multilingual:
        raise TokenError(
            f"task is 'translate'; {cfg.model_name!r} is English only and can only transcribe."
        )
    tokenizer = _build_tokenizer(cfg.is_multilingual, cfg.n_languages, code, task)
    if cfg.vocabulary is None:
        return tokenizer
    from hooked_whisper.speech.added_tokens import with_added_tokens

    return with_added_tokens(tokenizer, cfg)


def is_written(token: int, tokenizer: "Tokenizer") -> bool:
    """Whether a token is text: an ordinary one, or one that a fine-tune added as text."""
    return token < tokenizer.eot or token in getattr(tokenizer, "text_ids", ())


@cache
def _build_tokenizer(multilingual: bool, n_languages: int, code: str, task: str) -> "Tokenizer":
    from whisper.tokenizer import get_tokenizer as build

    with warnings.catch_warnings():
        # openai-whisper leaves closing its vocabulary file to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        return build(multilingual, num_languages=n_languages, language=code, task=task)


def language_code(cfg: HookedWhisperConfig, language: Any) -> str:
    """The code of a language that the vocabulary has; None means English."""
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    if language is None:
        return "en"
    name = language.lower() if isinstance(language, str) else ""
    code = TO_LANGUAGE_CODE.get(name, name)
    if not cfg.is_multilingual:
        if code != "en":
            raise TokenError(f"language is {language!r}; {cfg.model_name!r} is English only.")
        return code
    allowed = list(LANGUAGES)[: cfg.n_languages]
    if code not in allowed:
        names = [name for name, c in TO_LANGUAGE_CODE.items() if c in allowed]
        near = difflib.get_close_matches(name, [*allowed, *names], n=3)
        near = near or [part for part in name.split("-") if part in allowed]  # "en-us"
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise TokenError(
            f"language is {language!r}; this model has {len(allowed)} languages, by code "
            f"({', '.join(allowed[:4])}, ...) or English name.{hint}"
        )
    return code


def to_tokens(
    text: Any,
    cfg: HookedWhisperConfig,
    *,
    prepend_sot: bool = True,
    append_eot: bool = False,
    timestamps: bool = False,
    language: Any = "en",
    task: Any = "transcribe",
) -> Int64[Tensor, "batch pos"]:
    """Tokens of one text, or of several side by side, ready for the decoder.

    A special token spelled out in the text (`"<|0.00|>"`, `"<|nospeech|>"`)
    becomes that token, so that `to_string(..., skip_special=False)` can be
    read back. The text is taken as it is: Whisper writes its words with a
    space before them (`" one"`).

    Args:
        text: A string, or a list of them.
        cfg: The model's configuration.
        prepend_sot: Whether to begin as Whisper's decoder does:
            `<|startoftranscript|>`, language and task (multilingual only),
            `<|notimestamps|>`.
        append_eot: Whether to end with `<|endoftext|>`.
        timestamps: Whether to leave `<|notimestamps|>` out of the beginning.
        language: Of the beginning; see `get_tokenizer`.
        task: Of the beginning; see `get_tokenizer`.

    Returns:
        Tokens on the CPU. Shorter texts are filled up with `<|endoftext|>`
        on the right.

    Raises:
        TokenError: No text, or no such vocabulary, language or task.
    """
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
        raise TokenError(f"{describe(text)} is no text; a string or a list of strings is.")
    if not texts:
        raise TokenError("the list of texts is empty; pass at least one string.")
    tokenizer = get_tokenizer(cfg, language, task)
    start: list[int] = []
    if prepend_sot:
        start += tokenizer.sot_sequence
        start += [] if timestamps else [tokenizer.no_timestamps]
    end = [tokenizer.eot] if append_eot else []
    rows = [start + tokenizer.encode(t, allowed_special="all") + end for t in texts]
    width = max(map(len, rows))
    filled = [row + [tokenizer.eot] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64)


def is_text(
    tokens: Int[Tensor, "batch pos"], cfg: HookedWhisperConfig
) -> Bool[Tensor, "batch pos"]:
    """Which tokens are a row's own, and not what `to_tokens` filled it up with.

    A row ends with its first end-of-text; where another row of the batch has
    none, that one was filled in too, and the row ends before it.
    A vocabulary that is not Whisper's has no padding.

    Source: `whisper.tokenizer`, whose first special token is end-of-text.
    """
    if not has_tokenizer(cfg):
        return torch.ones_like(tokens, dtype=torch.bool)
    is_end = tokens == get_tokenizer(cfg).eot
    n_ends = is_end.long().cumsum(dim=1)
    if bool(is_end.any(dim=1).all()):
        return n_ends - is_end.long() == 0
    return n_ends == 0


def to_string(tokens: Any, cfg: HookedWhisperConfig, *, skip_special: bool = True) -> Any:
    """The text of tokens: a string, or a list of them where there is a batch axis.

    Args:
        tokens: An integer tensor or array `[pos]` or `[batch, pos]`, or a list of
            ids, or a list of such rows, which may differ in length.
        cfg: The model's configuration.
        skip_special: Whether to leave out special tokens (timestamps too)
            instead of spelling them as `<|...|>`.

    Raises:
        TokenError: No integers, or ids out of the vocabulary.
    """
    tokenizer = get_tokenizer(cfg)
    rows, is_batch = _rows(tokens, cfg.d_vocab)
    texts = []
    for row in rows:
        kept = [t for t in row if is_written(t, tokenizer)] if skip_special else row
        texts.append(tokenizer.encoding.decode(kept))
    return texts if is_batch else texts[0]


def to_str_tokens(tokens: Any, cfg: HookedWhisperConfig, *, prepend_sot: bool = True) -> list[str]:
    r"""One readable string for each token, for axes and tables.

    Special tokens are spelled as `<|...|>`; a token that holds part of a
    character shows its bytes (`\xe4\xbd`).

    Args:
        tokens: Tokens of one text, `[pos]` or `[1, pos]`; or a text, which
            `to_tokens` turns into them.
        cfg: The model's configuration.
        prepend_sot: For a text, whether its tokens begin as the decoder does.

    Raises:
        TokenError: Several rows, no integers, or ids out of the vocabulary.
    """
    if isinstance(tokens, str):
        tokens = to_tokens(tokens, cfg, prepend_sot=prepend_sot)
    encoding = get_tokenizer(cfg).encoding
    rows, _ = _rows(tokens, cfg.d_vocab)
    if len(rows) != 1:
        raise TokenError(
            f"tokens hold {len(rows)} rows; strings are for one: model.to_str_tokens(tokens[0])."
        )
    pieces = encoding.decode_tokens_bytes(rows[0])
    return [piece.decode("utf-8", errors="backslashreplace") for piece in pieces]


def _rows(tokens: Any, d_vocab: int) -> tuple[list[list[int]], bool]:
    """Rows of checked token ids, and whether there was a batch axis."""
    values = _plain(tokens)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TokenError(
            f"{describe(tokens)} holds no tokens; an integer tensor [pos] or [batch, pos] does, "
            "or a list of ids."
        )
    values = [_plain(value) for value in values]
    is_batch = bool(values) and all(isinstance(row, list | tuple) for row in values)
    rows = [_row(row, d_vocab) for row in (values if is_batch else [values])]
    return rows, is_batch


def _plain(value: Any) -> Any:
    """A tensor or array as Python's lists and numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _row(values: Sequence[Any], d_vocab: int) -> list[int]:
    """Checked token ids of one text."""
    row = []
    for pos, value in enumerate(map(_plain, values)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TokenError(f"token {pos} is {value!r}; tokens are integers.")
        if not 0 <= value < d_vocab:
            raise TokenError(_out_of_vocabulary(value, f"position {pos}", d_vocab))
        row.append(value)
    return row


def check_tokens(tokens: Any, d_vocab: int, n_text_ctx: int, offset: int = 0) -> None:
    """Refuse what are no tokens for a decoder of these sizes.

    Args:
        tokens: What a model was given.
        d_vocab: Tokens of its vocabulary.
        n_text_ctx: Positions of its decoder.
        offset: Positions that a KV cache holds already.

    Raises:
        TokenError: Not an integer tensor `[batch, pos]`, empty, too many for
            the positions that are left, or out of the vocabulary.
    """
    if n_text_ctx == 0:
        raise NoDecoderError
    remedy = "Make them with model.to_tokens(text)."
    if not isinstance(tokens, Tensor):
        raise TokenError(f"tokens are {describe(tokens)}; they must be a tensor. {remedy}")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise TokenError(
            f"tokens have dtype {tokens.dtype}; they must be torch.int64 or torch.int32. {remedy}"
        )
    shape = tuple(tokens.shape)
    if tokens.ndim != 2:
        hint = "Add the batch axis: tokens[None]." if tokens.ndim == 1 else remedy
        raise TokenError(f"tokens have shape {shape}; their axes are [batch, pos]. {hint}")
    if tokens.numel() == 0:
        raise TokenError(f"tokens have shape {shape}: there are none. {remedy}")
    if offset + shape[1] > n_text_ctx:
        held = f" after {offset} in the KV cache" if offset else ""
        raise TokenError(
            f"{shape[1]} tokens{held} are too many; the decoder has {n_text_ctx} positions. "
            "Cut them: tokens[:, :n]."
        )
    if tokens.is_meta:
        return
    low, high = (int(bound) for bound in torch.aminmax(tokens))
    if low < 0 or high >= d_vocab:
        bad = (tokens < 0) | (tokens >= d_vocab)
        row, pos = bad.nonzero()[0].tolist()
        where = f"row {row}, position {pos}"
        raise TokenError(_out_of_vocabulary(int(tokens[row, pos]), where, d_vocab) + f" {remedy}")


def _out_of_vocabulary(token: int, where: str, d_vocab: int) -> str:
    return f"token {token} at {where} is out of the vocabulary: ids go from 0 to {d_vocab - 1}."
