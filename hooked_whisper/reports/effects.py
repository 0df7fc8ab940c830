"""What features do to transcripts: written down with one of them ablated, and amplified."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hooked_whisper.data.batches import window_batches
from hooked_whisper.data.windows import AudioWindow, mel_of
from hooked_whisper.display import progress_bar
from hooked_whisper.model.language import find_languages, told_languages
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.sites import FeatureSite, PageOptions
from hooked_whisper.speech.tokens import has_tokenizer
from hooked_whisper.speech.wer import n_wrong_words


class Effect(NamedTuple):
    """Three transcripts of one recording.

    Args:
        without: As the model writes it.
        ablated: With the feature at 0 everywhere.
        amplified: With the feature multiplied everywhere.
    """

    without: str
    ablated: str
    amplified: str

    @property
    def changed(self) -> tuple[int, int]:
        """Words that differ from the plain transcript: ablated, amplified."""
        return n_wrong_words(self.without, self.ablated), n_wrong_words(
            self.without, self.amplified
        )


@torch.no_grad()
def with_languages(
    model: HookedWhisper, windows: Sequence[AudioWindow], options: PageOptions
) -> list[AudioWindow]:
    """Windows that say what is spoken in them: by their label, as told, or as the model hears."""
    if not has_tokenizer(model.cfg):
        return list(windows)
    found: list[AudioWindow] = []
    for batch in window_batches(model, windows, options.batch_size):
        told = [window.language or options.language for window in batch.windows]
        if model.cfg.is_multilingual and None in told:
            languages = find_languages(model, model.encoder(batch.mel), told)
        else:
            languages = [code or "en" for code in told_languages(model.cfg, told)]
        pairs = zip(batch.windows, languages, strict=True)
        found += [replace(window, language=language) for window, language in pairs]
    return found


@torch.no_grad()
def transcripts(
    model: HookedWhisper, windows: Sequence[AudioWindow], options: PageOptions
) -> list[str]:
    """What the model writes for windows, greedily and without timestamps."""
    found: list[str] = []
    show = options.progress and bool(windows)
    with progress_bar(total=len(windows), desc="transcripts", unit="window", show=show) as bar:
        for batch in window_batches(model, windows, options.batch_size):
            languages = [window.language for window in batch.windows]
            found += model.generate(batch.mel, language=languages, skip_silence=True).texts
            bar.update(len(batch))
    return found


@torch.no_grad()
def effects(
    site: FeatureSite,
    windows: Sequence[AudioWindow],
    pairs: Sequence[tuple[int, int]],
    options: PageOptions,
) -> dict[tuple[int, int], Effect]:
    """Transcripts of windows with a feature ablated, and amplified.

    Many runs stand in one batch, each with its own feature edited at all of its
    positions, in the prompt and in every word that is decoded. What comes before
    the hook is computed once for each window.

    Args:
        site: The features.
        windows: What is transcribed.
        pairs: Windows and features by their numbers.
        options: How much more an amplified feature is, the batch size.
    """
    pairs = list(dict.fromkeys(pairs))
    numbers = list(dict.fromkeys(window for window, _ in pairs))
    runs = [(window, feature, by) for window, feature in pairs for by in (0.0, options.amplify)]
    plain: dict[int, str] = {}
    before: dict[int, Tensor] = {}
    texts: list[str] = []

    def write(stream: Tensor, numbers: Sequence[int]) -> list[str]:
        n_positions = torch.tensor([windows[number].n_positions for number in numbers])
        output = site.behind(stream, n_positions.to(stream.device))
        languages = [windows[number].language for number in numbers]
        written = site.model.generate(encoder_output=output, language=languages, skip_silence=True)
        return written.texts

    show, size = options.progress and bool(runs), options.batch_size
    with progress_bar(total=len(numbers) + len(runs), desc="effects", unit="run", show=show) as bar:
        for first in range(0, len(numbers), size):
            part = numbers[first : first + size]
            stream = site.before(mel_of(site.model, [windows[number] for number in part]))
            before |= zip(part, stream, strict=True)
            plain |= zip(part, write(stream, part), strict=True)
            bar.update(len(part))
        for first in range(0, len(runs), size):
            some = runs[first : first + size]
            stream = torch.stack([before[window] for window, _, _ in some])
            with site.scaled([feature for _, feature, _ in some], [by for _, _, by in some]):
                texts += write(stream, [window for window, _, _ in some])
            bar.update(len(some))
    return {
        pair: Effect(plain[pair[0]], texts[2 * i], texts[2 * i + 1]) for i, pair in enumerate(pairs)
    }
