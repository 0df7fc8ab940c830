"""Which language is spoken: told for all recordings or for each, or found out by the model."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import InputError
from hooked_whisper.hooks.points import without_hooks
from hooked_whisper.model.calls import WhisperBase
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import get_tokenizer, has_tokenizer, language_code

Language = str | Sequence[str | None] | None
"""Of what is said: a code or a name for all recordings, one for each, or None.

None has a multilingual model find out; an English-only model hears English.
"""


def told_languages(
    cfg: HookedWhisperConfig, language: Language, n_rows: int | None = None
) -> list[str | None]:
    """The code of each row's language, None where the model has to find out.

    Args:
        cfg: Of the model.
        language: Of all rows, or of each.
        n_rows: How many rows there are; None checks alone.

    Raises:
        InputError: Not as many languages as rows.
        TokenError: A language that the vocabulary does not have.
    """
    is_one = language is None or isinstance(language, str)
    each: list[str | None] = [language] if is_one else list(language)  # type: ignore[list-item,arg-type]
    if is_one:
        each *= 1 if n_rows is None else n_rows
    elif n_rows is not None and len(each) != n_rows:
        raise InputError(
            f"{len(each)} languages and {n_rows} recordings do not match. Pass one for each, None "
            "where the model is to find out, or one for all."
        )
    if cfg.is_multilingual:
        return [None if code is None else language_code(cfg, code) for code in each]
    warn_english_only(cfg, each)
    return ["en"] * len(each)


def warn_english_only(cfg: HookedWhisperConfig, languages: Sequence[str | None]) -> None:
    """Say that an English-only model takes no other language.

    Source: `whisper.transcribe.cli`, which says the same.
    """
    other = [each for each in languages if each and each.lower() not in ("en", "english")]
    if other and not cfg.is_multilingual:
        warnings.warn(
            f"{cfg.model_name!r} is an English-only model and was given language {other[0]!r}; it "
            "takes what it hears for English. For other languages take a model without .en.",
            stacklevel=4,
        )


@torch.no_grad()
def find_languages(
    model: WhisperBase,
    encoder_output: Float[Tensor, "batch pos d_model"],
    language: Language = None,
) -> list[str]:
    """The code of each recording's language: what is told, else what a multilingual model hears.

    The decoder reads the start token alone for it, without its hooks.

    Args:
        model: The model.
        encoder_output: Of the recordings.
        language: See `Language`.

    Raises:
        InputError: Not as many languages as recordings.
        TokenError: No such language.

    Source: `whisper.decoding.detect_language`, which this calls.
    """
    from whisper.decoding import detect_language

    told = told_languages(model.cfg, language, len(encoder_output))
    unknown = [row for row, code in enumerate(told) if code is None]
    if unknown:
        tokenizer = get_tokenizer(model.cfg)
        heard = encoder_output if len(unknown) == len(told) else encoder_output[unknown]
        with without_hooks():
            _, shares = detect_language(model, heard, tokenizer)
        for row, share in zip(unknown, shares, strict=True):
            told[row] = max(share, key=share.__getitem__)
    return [str(code) for code in told]


def spoken_language(model: WhisperBase, mel: Mel, language: str | None = None) -> str | None:
    """The language of one recording: as told, or what a multilingual model hears."""
    if language is not None or not model.cfg.is_multilingual or not has_tokenizer(model.cfg):
        return language
    return find_languages(model, model.encoder(mel))[0]


def put_languages(
    model: WhisperBase, rows: Sequence[Sequence[int]], languages: Sequence[str]
) -> list[list[int]]:
    """Rows of tokens that begin as Whisper's do, or are empty, with another language in each."""
    if not model.cfg.is_multilingual:
        return [list(row) for row in rows]
    tokenizer = get_tokenizer(model.cfg)
    return [
        [row[0], tokenizer.to_language_token(code), *row[2:]] if row else []
        for row, code in zip(rows, languages, strict=True)
    ]


def language_of_tokens(cfg: HookedWhisperConfig, tokens: Sequence[int]) -> str | None:
    """The language that a row's beginning names; None where it names none."""
    if not cfg.is_multilingual or not has_tokenizer(cfg):
        return None
    tokenizer = get_tokenizer(cfg)
    codes = dict(zip(tokenizer.all_language_tokens, tokenizer.all_language_codes, strict=True))
    return next((codes[token] for token in tokens if token in codes), None)
