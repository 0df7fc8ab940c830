"""What a transcript is judged by: one number for a text.

Metrics of logits are in `metrics`. These are told apart by `reads_transcript`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hooked_whisper.errors import MetricError, describe
from hooked_whisper.metrics.base import metric_name
from hooked_whisper.speech.tokens import get_tokenizer
from hooked_whisper.speech.wer import Normalize, comparable, normalizer, word_error_rate


class TranscriptMetric(ABC):
    """One number for a text."""

    reads_transcript: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, text: str) -> float:
        """The metric of one transcript."""


@dataclass(frozen=True)
class WordErrorRate(TranscriptMetric):
    """Words put in, left out or replaced, as a share of the reference's words.

    0 for the same words; above 1 where more was put in than was said.

    Args:
        reference: What is said.
        normalize: What is done to both before; see `speech.wer.Normalize`.
        language: Of both; None is English.

    Raises:
        MetricError: A reference without words.

    Source: `speech.wer.word_error_rate`.

    >>> WordErrorRate("Put that one down.")("put this one down")
    0.25
    """

    reference: str
    normalize: Normalize = "auto"
    language: str | None = None

    def __post_init__(self) -> None:
        check_reference(self.reference)
        if not normalizer(self.normalize, self.language)(self.reference):
            raise MetricError(
                f"the reference {self.reference!r} has no words left when it is normalized. "
                "Give what is said, or normalize=False."
            )

    def __call__(self, text: str) -> float:
        return word_error_rate(self.reference, text, self.normalize, self.language)


@dataclass(frozen=True)
class TokenErrorRate(TranscriptMetric):
    """Whisper tokens put in, left out or replaced, as a share of the reference's tokens.

    Nothing is normalized but the space at either end: case and punctuation count.

    Args:
        tokenizer: A HookedWhisper, or anything with `encode(text)`.
        reference: What is said.

    Raises:
        MetricError: An empty reference, or something without a tokenizer.
        TokenError: The model's vocabulary is not Whisper's.

    Source: `jiwer.wer` over token ids in place of words.
    """

    tokenizer: Any = field(repr=False)
    reference: str
    _wanted: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_reference(self.reference)
        if hasattr(self.tokenizer, "cfg"):
            object.__setattr__(self, "tokenizer", get_tokenizer(self.tokenizer.cfg))
        if isinstance(self.tokenizer, str) or not hasattr(self.tokenizer, "encode"):
            raise MetricError(
                f"{describe(self.tokenizer)} has no tokenizer. Give a HookedWhisper, or one of "
                "openai-whisper's tokenizers."
            )
        object.__setattr__(self, "_wanted", tuple(self._encode(self.reference)))

    def __call__(self, text: str) -> float:
        import jiwer

        wanted, written = (" ".join(map(str, ids)) for ids in (self._wanted, self._encode(text)))
        return float(jiwer.wer(wanted, written))

    def _encode(self, text: str) -> list[int]:
        # Whisper writes its words with a space before them.
        text = text.strip()
        return list(self.tokenizer.encode(" " + text)) if text else []


@dataclass(frozen=True)
class ExactTranscript(TranscriptMetric):
    """1 where the transcript is the reference, else 0; how wide a space is does not count.

    Args:
        reference: What is said.
        normalize: What is done to both first, for instance "auto"; see `WordErrorRate`.
        language: Of both; None is English.

    Raises:
        MetricError: An empty reference.

    >>> ExactTranscript("seven eight")(" seven eight")
    1.0
    """

    reference: str
    normalize: Normalize = False
    language: str | None = None

    def __post_init__(self) -> None:
        check_reference(self.reference)

    def __call__(self, text: str) -> float:
        reference, text = comparable(self.reference, text, self.normalize, self.language)
        return float(text == reference)


@dataclass(frozen=True)
class Repetition(TranscriptMetric):
    """Share of a text's runs of n words that have come before in it: 0 none, towards 1 a loop.

    Args:
        n: Words in a run. A text of fewer has no repetition: 0.

    Raises:
        MetricError: n is no positive integer.

    Source: 1 - distinct-n of Li et al. 2016.

    >>> Repetition(n=1)("so so so what")
    0.5
    """

    n: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise MetricError(f"n is {self.n!r}; it must be a number of words, 1 or more.")

    def __call__(self, text: str) -> float:
        words = text.split()
        runs = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return 1 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass(frozen=True)
class CompressionRatio(TranscriptMetric):
    """Length of a text over its compressed length: Whisper takes above 2.4 for a loop.

    A short text is under 1; an empty one 0.

    Source: `whisper.utils.compression_ratio`.
    """

    def __call__(self, text: str) -> float:
        from whisper.utils import compression_ratio

        return float(compression_ratio(text))


@dataclass(frozen=True)
class FunctionTranscriptMetric(TranscriptMetric):
    """A transcript metric of one's own; see `as_transcript_metric`."""

    function: Callable[[str], Any]

    def __call__(self, text: str) -> float:
        return check_value(self.function(text), self.function)


def as_transcript_metric(function: Any) -> TranscriptMetric:
    """A metric from any function of a text to a number.

    Args:
        function: A `TranscriptMetric` is returned as it is.

    Raises:
        MetricError: No function; or, when called, a result that is no finite number.

    >>> as_transcript_metric(lambda text: len(text.split()))(" three one four")
    3.0
    """
    if isinstance(function, TranscriptMetric):
        return function
    if getattr(function, "reads_transcript", None) is False:
        raise MetricError(
            f"{function!r} judges logits, but a text is what is judged here. Give a metric of "
            "the text, such as WordErrorRate(reference)."
        )
    if not callable(function):
        raise MetricError(
            f"{function!r} is no metric. Give one such as WordErrorRate(reference), or a function "
            "of a text that returns a number."
        )
    return FunctionTranscriptMetric(function)


def check_value(value: Any, metric: Any = None) -> float:
    """What a transcript metric returned, if it is one finite number."""
    name = "the metric" if metric is None else f"the metric {metric_name(metric)}"
    try:
        number = float(value) if not isinstance(value, str) else None
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None:
        raise MetricError(f"{name} returned {describe(value)}. It must return one number.")
    if not math.isfinite(number):
        raise MetricError(f"{name} returned {number}. It must return a finite number.")
    return number


def check_reference(reference: Any) -> None:
    """Refuse a reference that is no text, or holds none."""
    if not isinstance(reference, str):
        raise MetricError(f"the reference is {describe(reference)}; it must be a string.")
    if not reference.strip():
        raise MetricError(
            f"the reference is {reference!r}, which holds no words, so that there is no error "
            "rate. To judge a transcript of silence, count its words: "
            "as_transcript_metric(lambda text: len(text.split()))."
        )
