"""Pairs of runs to look for circuits in: a word corrupted at its own time, and reference means."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from hooked_whisper.circuits.contributions import WRITTEN
from hooked_whisper.errors import InterventionError, MetricError, shown
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.interventions.aligned_words import AlignedWord, choose_word, spoken_words
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.means import mean_activations
from hooked_whisper.metrics.tokens import LogitDifference
from hooked_whisper.model.whisper import HookedWhisper

Corruption = Literal["silence", "noise", "swap"] | Example


@dataclass(frozen=True, eq=False)
class WordPair:
    """A recording, the same with one word corrupted at its own time, and what tells them apart.

    `pair` is what `find_circuit` takes: `find_circuit(model, [each.pair for each in found],
    [each.metric for each in found])`.

    Args:
        clean: The recording and its text up to the word's first token.
        corrupted: The same text over the corrupted recording.
        metric: How much higher the logit of the word's first token is than that of `against`.
        word: The word.
        window_s: From when to when it is said.
        against: The token that the corrupted run has there.
    """

    clean: Example
    corrupted: Example
    metric: LogitDifference
    word: str
    window_s: tuple[float, float]
    against: int

    @property
    def pair(self) -> tuple[Example, Example]:
        """The clean and the corrupted run."""
        return self.clean, self.corrupted


@torch.no_grad()
def word_pair(
    model: HookedWhisper,
    example: Example,
    word: str,
    corruption: Corruption = "silence",
    *,
    at_s: float | None = None,
    swap_with: str | None = None,
    against: int | None = None,
    words: list[AlignedWord] | None = None,
) -> WordPair:
    """The pair of a recording and the same with one of its words corrupted at its own time.

    Args:
        model: The model; its alignment heads say when the word is said.
        example: One recording and its text.
        word: The word, as it is written in the text.
        corruption: `"silence"` or white `"noise"` in the word's place, `"swap"` with another
            word of the recording, or another recording, of which the same time is taken.
        at_s: Which one, if the word is said more than once: the nearest to this time.
        swap_with: The other word.
        against: The token to compare with; None is what the corrupted run has for the likeliest.
        words: Words with their times, if these are known better.

    Raises:
        InputError: No such word in the text.
        MetricError: The corrupted run predicts the word too.
        InterventionError: No such corruption, or several recordings.
    """
    if len(example) != 1:
        raise InterventionError(f"{len(example)} recordings given; a word is said in one.")
    n_prompt = model.to_tokens("").shape[1]
    found = words if words is not None else spoken_words(model, example, n_prompt)
    chosen = choose_word(found, word, at_s)
    if isinstance(corruption, Example):
        corrupted = example.spliced(corruption, chosen.window_s)
    elif corruption == "silence":
        corrupted = example.with_silence(chosen.window_s)
    elif corruption == "noise":
        corrupted = example.with_white_noise(model, chosen.window_s)
    elif corruption == "swap":
        if swap_with is None:
            raise InterventionError('name the other word: word_pair(..., "swap", swap_with="day").')
        corrupted = example.swapped(chosen.window_s, choose_word(found, swap_with, None).window_s)
    else:
        raise InterventionError(
            f'corruption is {shown(corruption)}; it can be "silence", "noise", "swap" or another '
            "Example."
        )
    place = n_prompt + chosen.token
    tokens = example.tokens[:, :place]
    right = int(example.tokens[0, place])
    if against is None:
        against = int(model(corrupted.mel, tokens)[0, -1].argmax())
        if against == right:
            raise MetricError(
                f"{word!r} is predicted where it is corrupted too, so that nothing tells the runs "
                "apart. Corrupt otherwise, choose another word, or name a token with against=."
            )
    metric = LogitDifference(right, against)
    clean, corrupted = example.with_tokens(tokens), corrupted.with_tokens(tokens)
    return WordPair(clean, corrupted, metric, chosen.word, chosen.window_s, against)


def reference_means(
    model: HookedWhisper, recordings: Any, *, progress: bool = True
) -> WhisperCache:
    """What each node writes on average over reference recordings, position by position.

    In a pair's second place, edges carry it where they are patched or outside a circuit:
    `find_circuit(model, [(clean, means), ...], metric)`, with direction `"noising"` only.

    Args:
        model: The model.
        recordings: As for `mean_activations`: examples with at least as many tokens as the runs.
        progress: Show a progress bar.

    Source: Wang et al. 2022, section 2, whose circuits are judged with means over another
    distribution.
    """
    return mean_activations(
        model, recordings, WRITTEN, per_position=True, all_frames=True, progress=progress
    )
