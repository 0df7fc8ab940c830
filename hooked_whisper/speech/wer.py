"""How many words of a transcript are wrong: the one place that says what a word is."""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

from hooked_whisper.errors import InputError

Normalize = Literal["auto", "basic", "english"] | bool | Callable[[str], str]
"""What is done to texts before their words are compared.

`"auto"`, the default everywhere: `"english"` for English and `"basic"` for other
languages; and where one of two English texts says digits one by one, all numbers of both
are taken digit by digit: "six nine zero two", "6 9 0 2" and "6902" are the same four
words. `"basic"`: openai-whisper's for any language, without case and punctuation.
`"english"`: its English one, with which published error rates are made; it also takes
fillers away, spells alike, and joins spelled-out numbers: "three one four" becomes the
one word "314", so that a wrong digit counts as a wrong whole. False: the texts as they
are. A function: one of your own.

Source: Radford et al. 2022, appendix C.
"""


_DIGIT = "(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|[0-9])"
_RUN = re.compile(rf"\b{_DIGIT}(?: {_DIGIT})+\b")
"""Digits that are said, or written, one by one; of words without case and punctuation."""


def is_english(language: str | None) -> bool:
    """Whether it is English, by its code or name; None is."""
    return language is None or language.lower() in ("en", "english")


def normalizer(normalize: Normalize = "auto", language: str | None = None) -> Callable[[str], str]:
    """What makes a text its words, a space between them.

    Args:
        normalize: See `Normalize`.
        language: Of the text; None is English.

    Raises:
        InputError: Another name.

    >>> normalizer()("Put it DOWN, please! I've 20 colours.")
    'put it down please i have 20 colors'
    >>> normalizer(language="de")("Leg's HIN, bitte!")
    'leg s hin bitte'
    """
    if isinstance(normalize, str) and normalize == "auto":
        of_language = normalizer("english" if is_english(language) else "basic")
        # openai-whisper's English one leaves a dot of three, which is no word.
        return lambda text: " ".join(filter(_has_letters, of_language(text).split()))
    if normalize is True:
        warnings.warn(
            'normalize=True is OpenAI\'s English normalizer; say normalize="english". '
            'The default is "auto".',
            DeprecationWarning,
            stacklevel=3,
        )
        normalize = "english"
    if normalize is False:
        return _words
    if callable(normalize):
        function = normalize
        return lambda text: _words(function(text))
    if normalize not in ("basic", "english"):
        raise InputError(
            f'normalize is {normalize!r}; it can be "auto", "basic", "english", False or a '
            "function."
        )
    return lambda text: _words(_openais(normalize)(text))


def comparable(
    reference: str, text: str, normalize: Normalize = "auto", language: str | None = None
) -> tuple[str, str]:
    """The words of two texts, a space between them, so that what is the same is written alike.

    Args:
        reference: One text.
        text: The other.
        normalize: What is done to both; see `Normalize`.
        language: Of both; None is English.

    >>> comparable("Six, nine, zero, two.", "6902")
    ('6 9 0 2', '6 9 0 2')
    """
    words = normalizer(normalize, language)
    pair = words(reference), words(text)
    if normalize != "auto" or not is_english(language):
        return pair
    runs = [run for text in (reference, text) for run in _RUN.findall(normalizer("basic")(text))]
    if all(set(run.split()) == {"oh"} for run in runs):  # none, or exclamations
        return pair

    def digit_by_digit(text: str) -> str:
        spaced = words(re.sub(r"(?<=\d),?(?=\d)", " ", text))  # or a first 0 would be lost
        spaced = _words(re.sub(r"(\d)", r" \1 ", spaced))
        return re.sub(r"\bone\b", "1", spaced)  # as openai-whisper writes a single 1

    return digit_by_digit(reference), digit_by_digit(text)


def word_error_rate(
    references: str | Sequence[str],
    transcripts: str | Sequence[str],
    normalize: Normalize = "auto",
    language: str | Sequence[str | None] | None = None,
) -> float:
    """Words put in, left out or replaced, as a share of all words of the references.

    0 for the same words; above 1 where more was put in than was said. Words written
    where nothing is said count as put in; NaN where no reference has a word and some
    transcript has.

    Args:
        references: What is said, in one recording or in several.
        transcripts: What was written, one for each.
        normalize: What is done to both before; see `Normalize`.
        language: Of all texts, or of each; None is English.

    Raises:
        InputError: Not as many of each, or no such normalizer.

    Source: `n_wrong_words`.

    >>> word_error_rate("Three, one, four.", "three one five")
    0.3333333333333333
    """
    said, written = (
        [each] if isinstance(each, str) else list(each) for each in (references, transcripts)
    )
    is_one = language is None or isinstance(language, str)
    languages: Any = [language] * len(said) if is_one else language
    if not len(said) == len(written) == len(languages):
        raise InputError(
            f"{len(said)} references, {len(written)} transcripts and {len(languages)} languages do "
            "not match; pass one for each."
        )
    normalizer(normalize)  # refuses one that there is not, also where there is no text
    pairs = [
        comparable(reference, text, normalize, spoken)
        for reference, text, spoken in zip(said, written, languages, strict=True)
    ]
    n_words = sum(len(reference.split()) for reference, _ in pairs)
    n_wrong = sum(n_wrong_words(*pair) for pair in pairs)
    if not n_words:
        return math.nan if n_wrong else 0.0
    return n_wrong / n_words


def n_wrong_words(reference: str, text: str) -> int:
    """The fewest words to put in, take out or replace that make one text of the other.

    Source: `jiwer.process_words`, which takes no empty reference.

    >>> n_wrong_words("three one four", "three four four"), n_wrong_words("", "six")
    (1, 1)
    """
    import jiwer

    if not reference.split():
        return len(text.split())
    found = jiwer.process_words(reference, text)
    return int(found.substitutions + found.deletions + found.insertions)


def _has_letters(word: str) -> bool:
    return any(map(str.isalnum, word))


def _words(text: str) -> str:
    return " ".join(text.split())


@cache
def _openais(name: str) -> Any:
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    with warnings.catch_warnings():
        # openai-whisper leaves closing its table of spellings to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        return BasicTextNormalizer() if name == "basic" else EnglishTextNormalizer()
