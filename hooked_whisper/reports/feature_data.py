"""What a page has of all features: their examples, and the sound that these need."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

from hooked_whisper.config import POSITION_S
from hooked_whisper.data.labelling import PHONE, times_by_attention
from hooked_whisper.data.windows import AudioWindow
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.examples import (
    BYTES_PER_S,
    Excerpt,
    ExcerptBudget,
    FeatureExample,
    Range,
    feature_examples,
)
from hooked_whisper.reports.feature_activations import (
    FeatureActivations,
    OneFeature,
    token_names,
)
from hooked_whisper.reports.html import encode_values
from hooked_whisper.reports.sites import FeatureSite, PageOptions
from hooked_whisper.speech.alignment import Times
from hooked_whisper.speech.labels import TimedLabel, values_at
from hooked_whisper.speech.tokens import get_tokenizer, has_tokenizer, is_written

AROUND_S = 1.0
"""What is played and drawn around an example, on each side."""
CLIP_FIELDS = ("window", "part", "position", "value", "start", "end", "first", "curve")
"""The numbers of an example in the page's data, in order."""
INTERVAL_FIELDS = ("low", "high", "share")
"""What follows them where the example is a sample of the range."""
_BYTES_PER_CLIP = 320
_BYTES_OF_PAGE = 150_000


@dataclass(frozen=True, eq=False)
class FeatureData:
    """What the page has of each chosen feature, and the sound that belongs to it.

    Args:
        activations: Where the features are active.
        examples: Of each feature: its greatest, then those of its range.
        ranges: Its values.
        words: What is said at its greatest examples, the most frequent first.
        phones: The same for phones.
        sounds: The excerpts whose sound stands in the page.
        tokens: By window, the tokens that count and their times; in the decoder.
    """

    activations: FeatureActivations
    examples: list[list[FeatureExample]]
    ranges: list[Range]
    words: list[str | None]
    phones: list[str | None]
    sounds: list[Excerpt]
    tokens: dict[int, tuple[list[str], Times]]

    @property
    def top(self) -> list[list[FeatureExample]]:
        """The greatest examples alone."""
        return [_top(examples) for examples in self.examples]

    @property
    def windows(self) -> list[int]:
        """The windows that the page shows, by number."""
        return sorted({example.window for examples in self.examples for example in examples})

    @property
    def n_clips(self) -> int:
        """Examples on the page."""
        return sum(map(len, self.examples))

    @property
    def n_without_sound(self) -> int:
        """Those without sound."""
        return sum(example.part < 0 for examples in self.examples for example in examples)

    def window_data(self, written: dict[int, str]) -> dict[str, Any]:
        """What the page says about each window that it shows."""
        found = {}
        for number in self.windows:
            window = self.activations.windows[number]
            found[str(number)] = {
                "name": window.name,
                "start": window.start_s,
                "text": window.text,
                "written": written.get(number),
                "words": [[round(a, 3), round(b, 3), word] for a, b, word in window.words or ()],
                "phones": [[round(a, 3), round(b, 3), phone] for a, b, phone in _phones(window)],
                "labels": {name: str(value) for name, value in window.labels.items()},
            }
            if number in self.tokens:
                found[str(number)]["tokens"] = self.tokens[number][0]
        return found

    def clip_data(self) -> list[list[list[Any]]]:
        """For each feature its examples, each a list of what `CLIP_FIELDS` names."""
        found = []
        for index, examples in enumerate(self.examples):
            feature = self.activations.of(index)
            found.append([self._clip(example, feature, self.ranges[index]) for example in examples])
        return found

    def _clip(self, example: FeatureExample, feature: OneFeature, values: Range) -> list[Any]:
        window, excerpt = example.window, example.excerpt
        first = self.activations.first
        end = first + self.activations.n_positions[window]
        if not self.tokens:
            first = floor(excerpt.start_s / POSITION_S + 1e-9)
            end = min(end, ceil(excerpt.end_s / POSITION_S - 1e-9))
        curve = self.activations.curve(feature, window, first, end)
        clip = {
            "window": window,
            "part": example.part,
            "position": example.position,
            "value": float(f"{example.value:.5g}"),
            "start": round(excerpt.start_s, 3),
            "end": round(excerpt.end_s, 3),
            "first": first,
            "curve": encode_values(curve, values.low, values.high)["bytes"],
        }
        numbers = (float(f"{number:.4g}") for number in example.interval)
        return [*(clip[name] for name in CLIP_FIELDS), *numbers]


def feature_data(
    site: FeatureSite, activations: FeatureActivations, options: PageOptions
) -> FeatureData:
    """Choose the examples of all features, and the sound for which the file has room.

    Room goes to every feature's greatest example first, then to every second one.
    """
    tokens: dict[int, tuple[list[str], Times]] = {}

    def excerpt_of(window: int, position: int) -> Excerpt:
        if site.stack == "encoder":
            return _around(activations, window, position)
        if window not in tokens:
            tokens[window] = _timed_tokens(site, activations, window)
        span = tokens[window][1][position - activations.first]
        length_s = activations.windows[window].seconds
        if span is None:
            return Excerpt(window, 0.0, length_s)
        return Excerpt(window, max(0.0, span[0] - AROUND_S), min(length_s, span[1] + AROUND_S))

    n_top = ceil(options.n_clips / 2)
    examples, ranges = [], []
    for index, number in enumerate(activations.chosen):
        found, values = feature_examples(
            activations,
            activations.of(index),
            excerpt_of,
            n_top=n_top,
            n_range=options.n_clips - n_top,
            seed=options.seed + number,
        )
        examples.append(found)
        ranges.append(values)
    bytes_left = options.max_mb * 1e6 - _BYTES_OF_PAGE - _BYTES_PER_CLIP * sum(map(len, examples))
    budget = ExcerptBudget(activations.windows, max(0.0, bytes_left) / BYTES_PER_S)
    for rank in range(options.n_clips):
        for some in examples:
            if rank < len(some):
                budget.take(some[rank].excerpt)
    sounds = budget.excerpts()
    words, phones = [], []
    for some in examples:
        top = _top(some)
        words.append(_most_common([_said(site, activations, tokens, each) for each in top]))
        of_each = [_phone(site, activations.windows[each.window], each) for each in top]
        phones.append(_most_common(of_each))
    examples = _with_parts(examples, sounds)
    return FeatureData(activations, examples, ranges, words, phones, sounds, tokens)


def _with_parts(
    examples: list[list[FeatureExample]], sounds: list[Excerpt]
) -> list[list[FeatureExample]]:
    """The same examples, each with the number of the sound that holds its excerpt."""
    by_window: dict[int, list[int]] = {}
    for number, sound in enumerate(sounds):
        by_window.setdefault(sound.window, []).append(number)

    def part(example: FeatureExample) -> int:
        numbers = by_window.get(example.window, [])
        return next((i for i in numbers if sounds[i].holds(example.excerpt)), -1)

    return [[replace(one, part=part(one)) for one in some] for some in examples]


def _top(examples: list[FeatureExample]) -> list[FeatureExample]:
    return [example for example in examples if not example.interval]


def _around(activations: FeatureActivations, window: int, position: int) -> Excerpt:
    """An encoder position and so many seconds on each side, within the sound of its window."""
    middle_s = (position + 0.5) * POSITION_S
    length_s = activations.windows[window].seconds
    if position >= activations.windows[window].n_positions:  # padding, which has no sound
        length_s = activations.n_positions[window] * POSITION_S
    return Excerpt(window, max(0.0, middle_s - AROUND_S), min(length_s, middle_s + AROUND_S))


def _said(
    site: FeatureSite,
    activations: FeatureActivations,
    tokens: dict[int, tuple[list[str], Times]],
    example: FeatureExample,
) -> str | None:
    """The word that is said at an example, where one is known; in the decoder, its token."""
    if site.stack == "decoder":
        return tokens[example.window][0][example.position - activations.first].strip()
    middle_s = (example.position + 0.5) * POSITION_S
    return values_at(activations.windows[example.window].words, [middle_s])[0]


def _phones(window: AudioWindow) -> tuple[TimedLabel, ...]:
    return window.spans.get(PHONE, ())


def _phone(site: FeatureSite, window: AudioWindow, example: FeatureExample) -> str | None:
    """The phone that is said at an example of the encoder, where one is known."""
    if site.stack == "decoder":
        return None
    return values_at(_phones(window), [(example.position + 0.5) * POSITION_S])[0]


def _most_common(words: Sequence[str | None]) -> str | None:
    """Words, the most frequent first, each with how often it is there."""
    counts = Counter(word for word in words if word).most_common(3)
    return ", ".join(f"{word} ×{n}" if n > 1 else word for word, n in counts) or None


def _timed_tokens(
    site: FeatureSite, activations: FeatureActivations, window: int
) -> tuple[list[str], Times]:
    """The tokens of a window that count, and when each is spoken."""
    tokens, first = activations.tokens[window], activations.first
    times = token_times(site.model, activations.windows[window], tokens)
    return token_names(site.model, tokens)[first:], times[first:]


def token_times(model: HookedWhisper, window: AudioWindow, tokens: Sequence[int]) -> Times:
    """Start and end of each token in its window, in seconds; None for those without a time.

    By the words' known times, or else by the model's cross-attention. Tokens of
    one word share the word's time. The last token of the prompt, which writes
    the first word, has that word's.
    """
    times: Times = [None] * len(tokens)
    if not has_tokenizer(model.cfg):
        return times
    tokenizer = get_tokenizer(model.cfg, window.language if model.cfg.is_multilingual else None)
    written = [i for i, token in enumerate(tokens) if is_written(token, tokenizer)]
    if not written:
        return times
    _, groups = tokenizer.split_to_word_tokens([*(tokens[i] for i in written), tokenizer.eot])
    rest = iter(written)
    words = [[next(rest) for _ in group] for group in groups[:-1]]
    if window.words and len(window.words) == len(words):
        spans: Times = [(start, end) for start, end, _ in window.words]
    else:
        spoken = times_by_attention(model, window, tokens, written[0])
        ends = [(spoken[places[0]], spoken[places[-1]]) for places in words]
        spans = [(first[0], last[1]) if first and last else None for first, last in ends]
    for places, span in zip(words, spans, strict=True):
        for place in places:
            times[place] = span
    if written[0] > 0:
        times[written[0] - 1] = spans[0]
    return times
