"""The moments of all features with their curves, and the sound that they need."""

from collections import Counter
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import torch

from hooked_whisper.data.windows import AudioWindow
from hooked_whisper.reports.alignment import token_times
from hooked_whisper.reports.attention_words import Times
from hooked_whisper.reports.examples import Moment, Range, around, curve, moments_of, words_at
from hooked_whisper.reports.excerpts import BYTES_PER_S, Part, Room, part_of
from hooked_whisper.reports.feature_activations import POSITION_S, Measured, token_names
from hooked_whisper.reports.media import encode_values
from hooked_whisper.reports.sites import FeatureSite

AROUND_S = 1.0
"""What is played and drawn around a moment, on each side."""
_BYTES_PER_CLIP = 320
_BYTES_OF_PAGE = 150_000


@dataclass(frozen=True)
class Clip:
    """A moment on the page.

    Args:
        moment: Which.
        start_s: Where its player begins, in its window.
        end_s: Where it ends.
        first: The first position of the curve.
        curve: The activations from there on, as bytes.
        part: The number of the part that holds its sound; None without sound.
    """

    moment: Moment
    start_s: float
    end_s: float
    first: int
    curve: str
    part: int | None


@dataclass(frozen=True, eq=False)
class Entries:
    """What the page has of each chosen feature, and the sound that belongs to it.

    Args:
        clips: Of each feature: its greatest moments, then those of its range.
        top: The greatest moments alone.
        ranges: Its values.
        words: What is said at the greatest moments, the most frequent first.
        parts: Stretches of sound.
        tokens: By window, the tokens that count and their times; in the decoder.
    """

    clips: list[list[Clip]]
    top: list[list[Moment]]
    ranges: list[Range]
    words: list[str | None]
    parts: list[Part]
    tokens: dict[int, tuple[list[str], Times]]

    @property
    def windows(self) -> list[int]:
        """The windows that the page shows, by number."""
        return sorted({clip.moment.window for each in self.clips for clip in each})

    @property
    def n_clips(self) -> int:
        """Moments on the page."""
        return sum(map(len, self.clips))

    @property
    def n_without_sound(self) -> int:
        """Those without sound."""
        return sum(clip.part is None for each in self.clips for clip in each)

    def window_data(self, windows: list[AudioWindow], written: dict[int, str]) -> dict[str, Any]:
        """What the page says about each window that it shows."""
        found = {}
        for i in self.windows:
            each = windows[i]
            found[str(i)] = {
                "name": each.name,
                "start": each.start_s,
                "text": each.text,
                "written": written.get(i),
                "words": [[round(a, 3), round(b, 3), word] for a, b, word in each.words or ()],
                "labels": {name: str(value) for name, value in each.labels.items()},
            }
            if i in self.tokens:
                found[str(i)]["tokens"] = self.tokens[i][0]
        return found

    def clip_data(self) -> list[list[list[Any]]]:
        """For each feature its clips as short lists; `features.js` names their places."""
        return [[_as_list(clip) for clip in each] for each in self.clips]


def make_entries(
    site: FeatureSite, measured: Measured, n_clips: int, max_mb: float, seed: int
) -> Entries:
    """Choose the moments of all features, and the sound for which the file has room.

    Room goes to every feature's greatest moment first, then to every second one.
    """
    n_top = ceil(n_clips / 2)
    chosen = [
        moments_of(measured, measured.of(place), n_top, n_clips - n_top, seed + feature)
        for place, feature in enumerate(measured.chosen)
    ]
    moments, ranges = [each[0] for each in chosen], [each[1] for each in chosen]
    tokens = _tokens(site, measured, moments)
    times = {id(each): _time(each, measured, tokens) for some in moments for each in some}
    bytes_left = max_mb * 1e6 - _BYTES_OF_PAGE - _BYTES_PER_CLIP * sum(map(len, moments))
    room = Room(measured.windows, max(0.0, bytes_left) / BYTES_PER_S)
    kept = set()
    for rank in range(n_clips):
        for some in moments:
            if rank < len(some) and room.take(some[rank].window, *times[id(some[rank])]):
                kept.add(id(some[rank]))
    parts = room.parts()
    places = {each: [i for i, p in enumerate(parts) if p.window == each] for each in
              {part.window for part in parts}}  # fmt: skip
    clips = []
    for place, some in enumerate(moments):
        active = measured.of(place)
        clips.append([
            _clip(measured, active, each, ranges[place], times[id(each)], parts, places)
            for each in some
        ])  # fmt: skip
    top = [[each for each in some if each.low is None] for some in moments]
    words = [_common(words_at(each, measured)) for each in top] if site.stack == "encoder" else [
        _common([tokens[m.window][0][m.position - measured.first].strip() for m in each])
        for each in top
    ]  # fmt: skip
    return Entries(clips, top, ranges, words, parts, tokens)


def _tokens(
    site: FeatureSite, measured: Measured, moments: list[list[Moment]]
) -> dict[int, tuple[list[str], Times]]:
    """The tokens and times of the windows that are shown; in the decoder."""
    if site.stack == "encoder":
        return {}
    found = {}
    for window in sorted({each.window for some in moments for each in some}):
        tokens = measured.tokens[window]
        times = token_times(site.model, measured.windows[window], tokens)
        names = token_names(site.model, tokens)
        found[window] = (names[measured.first :], times[measured.first :])
    return found


def _time(
    moment: Moment, measured: Measured, tokens: dict[int, tuple[list[str], Times]]
) -> tuple[float, float]:
    """From where to where a moment is played, in its window."""
    if moment.window not in tokens:
        return around(moment, measured, AROUND_S)
    length = measured.windows[moment.window].seconds
    span = tokens[moment.window][1][moment.position - measured.first]
    if span is None:
        return 0.0, length
    return max(0.0, span[0] - AROUND_S), min(length, span[1] + AROUND_S)


def _clip(
    measured: Measured,
    active: Any,
    moment: Moment,
    values: Range,
    time_s: tuple[float, float],
    parts: list[Part],
    places: dict[int, list[int]],
) -> Clip:
    start_s, end_s = time_s
    n = int(measured.offsets[moment.window + 1] - measured.offsets[moment.window])
    first, end = measured.first, measured.first + n
    if not measured.tokens:
        first, end = floor(start_s / POSITION_S + 1e-9), min(n, ceil(end_s / POSITION_S - 1e-9))
    curve_ = torch.from_numpy(curve(measured, active, moment.window, first, end))
    coded = encode_values(curve_, values.low, values.high)["bytes"]
    mine = places.get(moment.window, [])
    number = part_of([parts[i] for i in mine], moment.window, start_s, end_s)
    part = None if number is None else mine[number]
    return Clip(moment, start_s, end_s, first, coded, part)


def _common(words: list[str]) -> str | None:
    """Words, the most frequent first, each with how often it is there."""
    counts = Counter(word for word in words if word).most_common(3)
    return ", ".join(f"{word} ×{n}" if n > 1 else word for word, n in counts) or None


def _as_list(clip: Clip) -> list[Any]:
    moment = clip.moment
    interval = [] if moment.low is None else [moment.low, moment.high, moment.share]
    return [
        moment.window,
        -1 if clip.part is None else clip.part,
        moment.position,
        float(f"{moment.value:.5g}"),
        round(clip.start_s, 3),
        round(clip.end_s, 3),
        clip.first,
        clip.curve,
        *(float(f"{each:.4g}") for each in interval if each is not None),
    ]
