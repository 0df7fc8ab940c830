"""What features do to transcripts: written down with one of them ablated, and amplified."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hooked_whisper.data.batches import window_batches
from hooked_whisper.data.windows import AudioWindow, mel_of
from hooked_whisper.display import progress_bar
from hooked_whisper.reports.sites import FeatureSite
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
def transcripts(
    model: Any,
    windows: Sequence[AudioWindow],
    *,
    batch_size: int = 8,
    progress: bool = True,
    **options: Any,
) -> list[str]:
    """What the model writes for windows, greedily and without timestamps."""
    found: list[str] = []
    show = progress and bool(windows)
    with progress_bar(total=len(windows), desc="transcripts", unit="window", show=show) as bar:
        for batch in window_batches(model, windows, batch_size):
            found += model.generate(batch.mel, **options).texts
            bar.update(len(batch))
    return found


@torch.no_grad()
def effects(
    site: FeatureSite,
    windows: Sequence[AudioWindow],
    pairs: Sequence[tuple[int, int]],
    factor: float,
    *,
    batch_size: int = 8,
    progress: bool = True,
    **options: Any,
) -> dict[tuple[int, int], Effect]:
    """Transcripts of windows with a feature ablated, and amplified.

    Many runs stand in one batch, each with its own feature edited at all of its
    positions, in the prompt and in every word that is decoded. What comes before
    the hook is computed once for each window.

    Args:
        site: The features.
        windows: What was listened to.
        pairs: Windows and features by their numbers.
        factor: What amplified features are multiplied with.
        batch_size: Runs side by side.
        progress: Show a progress bar.
        options: For `model.generate`.
    """
    pairs = list(dict.fromkeys(pairs))
    heard = list(dict.fromkeys(window for window, _ in pairs))
    runs = [(window, feature, by) for window, feature in pairs for by in (0.0, float(factor))]
    plain: dict[int, str] = {}
    before: dict[int, Tensor] = {}
    texts: list[str] = []

    def write(stream: Tensor, heard: Sequence[int]) -> list[str]:
        n_positions = torch.tensor([windows[each].n_positions for each in heard]).to(stream.device)
        output = site.behind(stream, n_positions)
        return site.model.generate(encoder_output=output, **options).texts

    n_runs = len(heard) + len(runs)
    with progress_bar(
        total=n_runs, desc="effects", unit="run", show=progress and bool(runs)
    ) as bar:
        for first in range(0, len(heard), batch_size):
            part = heard[first : first + batch_size]
            stream = site.before(mel_of(site.model, [windows[each] for each in part]))
            before |= zip(part, stream, strict=True)
            plain |= zip(part, write(stream, part), strict=True)
            bar.update(len(part))
        for first in range(0, len(runs), batch_size):
            some = runs[first : first + batch_size]
            stream = torch.stack([before[window] for window, _, _ in some])
            with site.scaled([each for _, each, _ in some], [by for _, _, by in some]):
                texts += write(stream, [window for window, _, _ in some])
            bar.update(len(some))
    return {
        pair: Effect(plain[pair[0]], texts[2 * i], texts[2 * i + 1]) for i, pair in enumerate(pairs)
    }
