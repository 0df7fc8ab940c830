"""What features do to transcripts: written down with one of them ablated, and amplified."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.data.batches import window_batches
from hooked_whisper.data.windows import AudioWindow, mel_of
from hooked_whisper.display import progress_bar
from hooked_whisper.hooks.root import Hook
from hooked_whisper.hooks.splice_site import SpliceSite
from hooked_whisper.model.language import find_languages, told_languages
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.sites import FeatureSite, PageOptions
from hooked_whisper.speech.tokens import has_tokenizer
from hooked_whisper.speech.wer import n_wrong_words


@dataclass(frozen=True, eq=False)
class RowScale:
    """One feature of each row of a batch multiplied, at all of its positions.

    Latents change what flows on by what the autoencoder makes of the difference: what it does
    not reconstruct stays, and so does every position at which the latent is 0.

    Args:
        site: The features.
        features: Which one, for each row.
        factors: With what; 0 ablates.
    """

    site: FeatureSite
    features: Sequence[int]
    factors: Sequence[float]

    def __call__(self, value: Float[Tensor, "batch pos *width"]) -> Tensor:
        """An activation of the hook with it done."""
        if self.site.splice is not None:
            return _plus(value, self._change(value, self.site.splice))
        flat = value.flatten(2).clone()
        by = torch.tensor(self.factors, dtype=flat.dtype, device=flat.device)
        flat[torch.arange(len(flat)), :, torch.tensor(self.features)] *= by[:, None]
        return flat.view(value.shape)

    @property
    def hooks(self) -> list[Hook]:
        """What does it in the model."""
        name, out, splice = self.site.hook_name, self.site.hook_out, self.site.splice
        if splice is None or name == out:
            return [(name, lambda value, hook: self(value))]
        changes: list[Tensor] = []
        return [
            (name, lambda value, hook: changes.append(self._change(value, splice))),
            (out, lambda value, hook: _plus(value, changes.pop())),
        ]

    def _change(self, value: Float[Tensor, "batch pos *width"], splice: SpliceSite) -> Tensor:
        """What is to be added to the activation that is replaced."""
        found = []
        for row, feature, by in zip(value.flatten(2), self.features, self.factors, strict=True):
            latents = splice.encode(row)
            active = latents[:, feature] != 0
            latents = latents[active]
            edited = latents.clone()
            edited[:, feature] *= by
            change = latents.new_zeros(len(row), splice.d_out)
            change[active] = splice.decode(edited) - splice.decode(latents)
            found.append(change)
        return torch.stack(found)


def _plus(value: Tensor, change: Tensor) -> Tensor:
    """Their sum in the wider dtype, in the dtype and shape of the first."""
    return (value + change.view(value.shape)).to(value.dtype)


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
    told = [window.language or options.language for window in windows]
    if model.cfg.is_multilingual and None in told:
        languages: list[str] = []
        for batch in window_batches(model, windows, options.batch_size):
            known = told[batch.first : batch.first + len(batch)]
            languages += find_languages(model, model.encoder(batch.mel), known)
    else:
        languages = [code or "en" for code in told_languages(model.cfg, told)]
    pairs = zip(windows, languages, strict=True)
    return [replace(window, language=language) for window, language in pairs]


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

    def write(stream: Tensor, numbers: Sequence[int], scale: RowScale | None = None) -> list[str]:
        hooks = [] if scale is None else scale.hooks
        if scale is not None and site.resume is not None and site.resume.is_behind:
            stream, hooks = scale(stream), []
        n_positions = torch.tensor([windows[number].n_positions for number in numbers])
        languages = [windows[number].language for number in numbers]
        with site.model.hooks(hooks):
            output = site.behind(stream, n_positions.to(stream.device))
            return site.model.generate(
                encoder_output=output, language=languages, skip_silence=True
            ).texts

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
            scale = RowScale(site, [each[1] for each in some], [each[2] for each in some])
            texts += write(stream, [window for window, _, _ in some], scale)
            bar.update(len(some))
    return {
        pair: Effect(plain[pair[0]], texts[2 * i], texts[2 * i + 1]) for i, pair in enumerate(pairs)
    }
