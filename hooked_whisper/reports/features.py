"""A page on which one listens to what features respond to, and sees what they do."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_whisper.data.batches import text_row
from hooked_whisper.data.windows import AudioWindow, load_windows
from hooked_whisper.display import box, count, fold, framed, table
from hooked_whisper.errors import InputError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.effects import Effect, effects, transcripts, with_languages
from hooked_whisper.reports.examples import encode_excerpts
from hooked_whisper.reports.feature_activations import feature_activations
from hooked_whisper.reports.feature_data import (
    CLIP_FIELDS,
    INTERVAL_FIELDS,
    FeatureData,
    feature_data,
)
from hooked_whisper.reports.feature_labels import FeatureLabels, feature_labels
from hooked_whisper.reports.html import write_page
from hooked_whisper.reports.sites import FeatureSite, PageOptions, feature_site, page_options
from hooked_whisper.speech.tokens import has_tokenizer

if TYPE_CHECKING:
    import pandas

_MOST_ROWS = 20
"""Rows of its table that a notebook shows beside the page."""


@dataclass(frozen=True, eq=False)
class FeaturePage:
    """A page that was written; a notebook shows it whole.

    Args:
        path: The file.
        table: What its table shows, a row for each feature: `feature`, `name`,
            `density`, `peak`, `label`, `value`, `auroc`, `bits`, `f1`, `words`,
            `phones`, `changed_ablated`, `changed_amplified`; None where something is unknown.
        n_clips: Moments on the page.
        n_without_sound: Those for whose sound the file had no room, or that have none.
    """

    path: Path
    table: tuple[dict[str, Any], ...]
    n_clips: int
    n_without_sound: int

    def __repr__(self) -> str:
        return (
            f"FeaturePage({str(self.path)!r}: {len(self.table)} features, {self.n_clips} moments)"
        )

    def _repr_html_(self) -> str:
        """The page itself, and above it the first rows of its table."""
        rows = [list(row.values()) for row in self.table]
        first = fold("table", table(list(self.table[0]), rows, most=_MOST_ROWS))
        about = f"{count(len(rows), 'feature')}, {count(self.n_clips, 'moment')}"
        return box(str(self.path), about, first, framed(self.path))

    @property
    def n_bytes(self) -> int:
        """The file's size."""
        return self.path.stat().st_size

    def to_dataframe(self) -> "pandas.DataFrame":
        """The table of pandas."""
        import pandas

        return pandas.DataFrame(list(self.table))


def feature_page(
    model: HookedWhisper,
    source: Any,
    recordings: Any,
    out: str | os.PathLike[str],
    *,
    hook_name: str | None = None,
    latents: Sequence[int] | None = None,
    texts: Sequence[str | None] | None = None,
    n_clips: int = 10,
    n_effects: int | None = None,
    n_effect_clips: int = 1,
    amplify: float | int = 4,
    max_mb: float | int = 30,
    all_frames: bool = False,
    transcribe: bool = True,
    language: str | None = None,
    batch_size: int = 8,
    seed: int = 0,
    title: str | None = None,
    progress: bool = True,
) -> FeaturePage:
    """Write a page of features: what activates them, to be listened to, and what they do.

    One HTML file that works from disk, without a network. Its table has each
    feature's density, peak and the value of a label that it tells best. Behind
    each stand the moments at which it is most active and some from all of its
    range, with sound, spectrogram, activation and transcript. All recordings
    are held in memory, 230 MB an hour, and so are activations that are not 0,
    12 bytes each: of an SAE with 32 active latents 70 MB an hour, of 1,536
    neurons 3.3 GB.

    Args:
        model: The model.
        source: Anything with `encode` and `decode`; or None, for the neurons of a hook.
        recordings: What `harvest` takes: files, folders, manifests, `digits.recordings()`.
        out: The file to write.
        hook_name: What is read: `[batch pos ... width]`; None is what the
            autoencoder's configuration says.
        latents: Which latents or neurons; None is all.
        texts: What is said in each recording, where the recordings do not say it.
        n_clips: Moments of each, half of them the greatest, the others one
            from each of as many equal parts of its range.
        n_effects: How many features, those that tell labels best (or else the
            strongest), have their effects computed; None is 24. Each costs two
            decodings a clip.
        n_effect_clips: For how many of their greatest moments.
        amplify: What an amplified feature is multiplied with.
        max_mb: The file's size, about. Moments for whose sound there is no room
            are on the page without it.
        all_frames: Count padding too; in the decoder, the prompt.
        transcribe: Have the model write down the recordings that are shown and
            have no text.
        language: Of what is said, unless a label `language` says otherwise; None has a
            multilingual model find out.
        batch_size: Windows side by side.
        seed: Of what is drawn from the range.
        title: Of the page.
        progress: Show progress bars.

    Raises:
        InputError: No such features, or numbers that are none.
        HookNameError: No such hook.
        SpliceError: The autoencoder does not fit.
        RecordingsError: None, or one that cannot be read.
    """
    site = feature_site(model, source, hook_name)
    options = page_options(
        site,
        out,
        latents,
        n_effects,
        title,
        n_clips=n_clips,
        n_effect_clips=n_effect_clips,
        amplify=amplify,
        max_mb=max_mb,
        all_frames=all_frames,
        transcribe=transcribe,
        language=language,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    windows = with_languages(model, load_windows(model, recordings, texts), options)
    if site.stack == "decoder":
        windows = _with_tokens(site, windows, options)
    activations = feature_activations(site, windows, options)
    labels = feature_labels(activations, site)
    found = feature_data(site, activations, options)
    pairs = _pairs(found, labels, options)
    changed = effects(site, windows, pairs, options)
    written = {}
    if transcribe and has_tokenizer(model.cfg):
        unknown = [i for i in found.windows if windows[i].text is None]
        texts_of = transcripts(model, [windows[i] for i in unknown], options)
        written = dict(zip(unknown, texts_of, strict=True))
    rows = _table(site, found, labels, changed)
    sounds = encode_excerpts(model, windows, found.sounds, progress)
    media = [uri for sound in sounds for uri in (sound.pop("audio"), sound.pop("mel"))]
    data = {
        "kind": site.kind,
        "stack": site.stack,
        "hook": site.hook_name,
        "model": model.cfg.model_name,
        "n_of_site": site.n,
        "n_recordings": len({window.recording for window in windows}),
        "seconds": sum(window.seconds for window in windows),
        "amplify": options.amplify,
        "n_effects": len(pairs),
        "labels": labels.labels,
        "tells": labels.best if labels.labels else [],
        "windows": found.window_data(written),
        "parts": [{**sound, "audio": 2 * i, "mel": 2 * i + 1} for i, sound in enumerate(sounds)],
        "features": {name: [row[name] for row in rows] for name in rows[0]},
        "ranges": [[values.low, values.high, *values.counts] for values in found.ranges],
        "clip_fields": [*CLIP_FIELDS, *INTERVAL_FIELDS],
        "clips": found.clip_data(),
        "effects": [[window, feature, *texts] for (window, feature), texts in changed.items()],
    }
    write_page(options.out, "features", data, options.title, media)
    return FeaturePage(options.out, tuple(rows), found.n_clips, found.n_without_sound)


def _with_tokens(
    site: FeatureSite, windows: list[AudioWindow], options: PageOptions
) -> list[AudioWindow]:
    """Windows with what the decoder reads: given tokens, the text, or what the model writes."""
    model, silent = site.model, [each for each in windows if each.text is None and not each.tokens]
    if any(not window.tokens for window in windows) and not has_tokenizer(model.cfg):
        raise InputError(
            f"{site.hook_name!r} is in the decoder, and this model's vocabulary of "
            f"{model.cfg.d_vocab} is not Whisper's: give each recording its tokens."
        )
    written = iter(transcripts(model, silent, options) if silent else [])
    found = []
    for window in windows:
        if window.tokens:
            found.append(window)
            continue
        text = next(written) if window.text is None else window.text
        row = text_row(text, model.cfg, language=window.language)
        found.append(replace(window, text=text, tokens=tuple(row[: model.cfg.n_text_ctx])))
    return found


def _pairs(
    found: FeatureData, labels: FeatureLabels, options: PageOptions
) -> list[tuple[int, int]]:
    """Windows and features whose effects are computed."""
    if labels.labels:
        score = [best[0][1] if best else 0.0 for best in labels.best]
    else:
        score = [values.high for values in found.ranges]
    top = found.top
    order = sorted(range(len(score)), key=lambda index: -score[index])
    chosen = [index for index in order if top[index]][: options.n_effects]
    return [
        (example.window, options.chosen[index])
        for index in chosen
        for example in top[index][: options.n_effect_clips]
    ]


def _table(
    site: FeatureSite,
    found: FeatureData,
    labels: FeatureLabels,
    changed: dict[tuple[int, int], Effect],
) -> list[dict[str, Any]]:
    """What the page's table shows, a row for each feature."""
    words: dict[int, list[tuple[int, int]]] = {}
    for (_, feature), effect in changed.items():
        words.setdefault(feature, []).append(effect.changed)
    activations, top = found.activations, found.top
    on = activations.active if site.kind == "latent" else activations.positive()
    density = (on.n_active.double() / max(1, on.n_vectors)).tolist()
    rows = []
    for index, feature in enumerate(activations.chosen):
        best = labels.best[index]
        label, value = labels.labels[best[0][0]] if best else (None, None)
        counts = words.get(feature)
        rows.append(
            {
                "feature": feature,
                "name": site.name_of(feature),
                "density": density[index],
                "peak": found.ranges[index].high if top[index] else None,
                "label": label,
                "value": value,
                "auroc": best[0][1] if best else None,
                "bits": best[0][2] if best else None,
                "f1": best[0][3] if best else None,
                "words": found.words[index],
                "phones": found.phones[index],
                "changed_ablated": sum(n for n, _ in counts) if counts else None,
                "changed_amplified": sum(n for _, n in counts) if counts else None,
            }
        )
    return rows
