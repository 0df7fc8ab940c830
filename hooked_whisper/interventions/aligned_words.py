"""The words of a run's text with their times, and the choice of one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hooked_whisper.errors import InputError
from hooked_whisper.model.openai_api import warn_of_heads
from hooked_whisper.speech.alignment import AlignmentCollector, words_of_tokens
from hooked_whisper.speech.tokens import get_tokenizer
from hooked_whisper.speech.wer import normalizer


class AlignedWord(NamedTuple):
    """A word of the clean text.

    Args:
        word: As it is written.
        token: The place of its first token in the text.
        window_s: From when to when it is said, as the alignment heads hear it.
    """

    word: str
    token: int
    window_s: tuple[float, float]


@torch.no_grad()
def spoken_words(model: Any, example: Any, n_prompt: int) -> list[AlignedWord]:
    """The words of an example's text, each with its first token and its time.

    Source: `whisper.timing.find_alignment`.
    """
    warn_of_heads(model)
    eot = get_tokenizer(model.cfg).eot
    row = [*example.tokens[0].tolist(), eot]
    words = words_of_tokens(get_tokenizer(model.cfg), row, n_prompt)
    collector = AlignmentCollector(model.alignment_heads, int(example.mel.n_positions[0]))
    with model.hooks([(collector.names, collector)]):
        model(example.mel, torch.tensor([row], device=model.device), return_type=None)
    times = collector.token_times(n_prompt)
    found = []
    for word, places in words:
        first, last = times[places[0]], times[places[-1]]
        if first and last:
            found.append(AlignedWord(word, places[0] - n_prompt, (first[0], last[1])))
    return found


def choose_word(words: Sequence[AlignedWord], word: str | None, at_s: float | None) -> AlignedWord:
    """The word that is named, or said at a time; of several alike the one nearest that time.

    Raises:
        InputError: No such word, or nothing is said then.
    """
    plain = normalizer("basic")
    alike = [each for each in words if word is None or plain(each.word) == plain(word)]
    listed = ", ".join(f"{each.word} ({each.window_s[0]:.2f} s)" for each in words[:30])
    if not alike:
        raise InputError(f"the clean text has no word {word!r}; it has {listed}.")
    if at_s is None:
        return alike[0]

    def distance(each: AlignedWord) -> float:
        start_s, end_s = each.window_s
        return max(start_s - at_s, at_s - end_s, 0.0)

    nearest = min(alike, key=distance)
    if word is None and distance(nearest) > 0:
        raise InputError(f"nothing is said at {at_s:g} s of the clean recording; it has {listed}.")
    return nearest
