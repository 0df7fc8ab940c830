"""How many words of a transcript are wrong: the one place that says what a word is."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

from hooked_whisper.errors import InputError

Normalize = Literal["basic", "english"] | bool | Callable[[str], str]
"""What is done to texts before their words are compared.

`"basic"`, the default everywhere: openai-whisper's for any language, without case
and punctuation. `"english"`: its English one, with which published error rates are
made; it also takes fillers away, spells alike, and joins spelled-out numbers:
"three one four" becomes the one word "314", so that a wrong digit counts as a wrong
whole. False: the texts as they are. A function: one of your own.

Source: Radford et al. 2022, appendix C.
"""


def normalizer(normalize: Normalize = "basic") -> Callable[[str], str]:
    """What makes a text its words, a space between them.

    Raises:
        InputError: Another name.

    >>> normalizer()("Put it DOWN, please!")
    'put it down please'
    """
    if normalize is True:
        warnings.warn(
            'normalize=True is OpenAI\'s English normalizer; say normalize="english". '
            'The default is "basic".',
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
            f'normalize is {normalize!r}; it can be "basic", "english", False or a function.'
        )
    return lambda text: _words(_openais(normalize)(text))


def word_error_rate(
    references: str | Sequence[str],
    transcripts: str | Sequence[str],
    normalize: Normalize = "basic",
) -> float:
    """Words put in, left out or replaced, as a share of all words of the references.

    0 for the same words; above 1 where more was put in than was said. Words written
    where nothing is said count as put in; NaN where no reference has a word and some
    transcript has.

    Args:
        references: What is said, in one recording or in several.
        transcripts: What was written, one for each.
        normalize: What is done to both before; see `Normalize`.

    Raises:
        InputError: Not as many of each, or no such normalizer.

    Source: `n_wrong_words`.

    >>> word_error_rate("Three, one, four.", "three one five")
    0.3333333333333333
    """
    words = normalizer(normalize)
    said, written = (
        [words(text) for text in ([each] if isinstance(each, str) else each)]
        for each in (references, transcripts)
    )
    if len(said) != len(written):
        raise InputError(
            f"{len(said)} references and {len(written)} transcripts do not match; "
            "pass one for each."
        )
    n_words = sum(len(text.split()) for text in said)
    n_wrong = sum(map(n_wrong_words, said, written))
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


def _words(text: str) -> str:
    return " ".join(text.split())


@cache
def _openais(name: str) -> Any:
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    with warnings.catch_warnings():
        # openai-whisper leaves closing its table of spellings to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        return BasicTextNormalizer() if name == "basic" else EnglishTextNormalizer()
