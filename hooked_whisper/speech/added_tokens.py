"""openai-whisper's tokenizer with the tokens that a fine-tune has added, or has instead."""

from functools import cache
from typing import Any

import tiktoken
from whisper.tokenizer import Tokenizer

from hooked_whisper.config import HookedWhisperConfig, Vocabulary
from hooked_whisper.errors import TokenError


def with_added_tokens(
    tokenizer: Tokenizer, cfg: HookedWhisperConfig, timestamps: bool = True
) -> Tokenizer:
    """A tokenizer with the added tokens of a model's vocabulary, and `text_ids`, those of text.

    Args:
        tokenizer: openai-whisper's, of the vocabulary that the others were added to.
        cfg: Of the model.
        timestamps: Whether tokens from the first timestamp on count as such. openai-whisper takes
            those behind the timestamps for some; without any, `timestamp_begin` is behind all.
    """
    if cfg.vocabulary is None:
        return tokenizer
    own = Tokenizer(
        encoding=_encoding(tokenizer.encoding, cfg.vocabulary, cfg.d_vocab),
        num_languages=tokenizer.num_languages,
        language=tokenizer.language,
        task=tokenizer.task,
    )
    first, texts = own.timestamp_begin, dict(cfg.vocabulary.text)
    ids = frozenset(texts.values())

    def encode(text: str, **options: Any) -> list[int]:
        if cfg.vocabulary is not None and cfg.vocabulary.ordinary is None:
            raise TokenError(
                f"the tokenizer of {cfg.model_name!r} has ordinary tokens of its own, which could "
                "not be read. Give token ids, made with its own tokenizer."
            )
        allowed = options.pop("allowed_special", set())
        allowed = allowed if allowed == "all" else {*allowed, *texts}
        return list(own.encoding.encode(text, allowed_special=allowed, **options))

    def decode(token_ids: list[int], **options: Any) -> str:
        kept = [token for token in token_ids if token < first or token in ids]
        return str(own.encoding.decode(kept, **options))

    begin = first if timestamps else own.encoding.n_vocab
    vars(own).update(encode=encode, decode=decode, text_ids=ids, timestamp_begin=begin)
    if cfg.vocabulary.ordinary is None:
        vars(own).update(non_speech_tokens=())
    return own


@cache
def _encoding(base: tiktoken.Encoding, vocabulary: Vocabulary, d_vocab: int) -> tiktoken.Encoding:
    """The tokens of both; ids that nobody has named are spelled as `<|id|>`."""
    named = dict((*vocabulary.special, *vocabulary.text))
    ranks = base._mergeable_ranks
    if vocabulary.ordinary != "":
        ranks = vocabulary.ranks() if vocabulary.ordinary else {b"\0": d_vocab}  # it needs one
    taken = {*ranks.values(), *base._special_tokens.values(), *named.values()}
    rest = set(range(d_vocab)) - taken
    return tiktoken.Encoding(
        name=f"{base.name} with added tokens",
        pat_str=base._pat_str,
        mergeable_ranks=ranks,
        special_tokens={**base._special_tokens, **{f"<|{each}|>": each for each in rest}, **named},
    )
