"""A page on which one listens to what features respond to, and sees what they do."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_whisper.data.windows import AudioWindow, load_windows
from hooked_whisper.display import box, count, fold, framed, table
from hooked_whisper.errors import InputError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.effects import Effect, effects, transcripts
from hooked_whisper.reports.excerpts import encode_parts
from hooked_whisper.reports.feature_activations import Measured, measure
from hooked_whisper.reports.feature_data import Entries, make_entries
from hooked_whisper.reports.feature_labels import Told, tell
from hooked_whisper.reports.html import render
from hooked_whisper.reports.sites import FeatureSite, feature_site
from hooked_whisper.speech.tokens import has_tokenizer

if TYPE_CHECKING:
    import pandas

N_EFFECTS = 24
"""Features whose effects on transcripts are computed, unless told otherwise."""
_MOST_ROWS = 20
"""Rows of its table that a notebook shows beside the page."""


@dataclass(frozen=True, eq=False)
class FeaturePage:
    """A page that was written; a notebook shows it whole.

    Args:
        path: The file.
        table: What its table shows, a row for each feature: `feature`, `name`,
            `density`, `peak`, `label`, `value`, `auroc`, `bits`, `words`,
            `changed_ablated`, `changed_amplified`; None where something is unknown.
        n_clips: Moments on the page.
        n_without_sound: Those for whose sound the file had no room.
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


@dataclass(frozen=True)
class _Asked:
    """What a page is to hold, checked."""

    out: Path
    chosen: tuple[int, ...]
    n_clips: int
    n_effects: int
    n_effect_clips: int
    amplify: float
    max_mb: float


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
    language: str = "en",
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
        language: Of the texts.
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
    asked = _asked(site, out, latents, n_clips, n_effects, n_effect_clips, amplify, max_mb)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    windows = load_windows(model, recordings, texts)
    if site.stack == "decoder":
        windows = _with_tokens(site, windows, language, options)
    measured = measure(site, windows, asked.chosen, all_frames=all_frames, **options)
    told = tell(measured, site)
    entries = make_entries(site, measured, asked.n_clips, asked.max_mb, seed)
    pairs = _pairs(asked, entries, told)
    found = effects(site, windows, pairs, asked.amplify, language=language, **options)
    written = {}
    if transcribe and has_tokenizer(model.cfg):
        unknown = [i for i in entries.windows if windows[i].text is None]
        texts_of = transcripts(model, [windows[i] for i in unknown], language=language, **options)
        written = dict(zip(unknown, texts_of, strict=True))
    table = _table(site, measured, told, entries, found)
    parts = encode_parts(model, windows, entries.parts, progress)
    media = [uri for part in parts for uri in (part.pop("audio"), part.pop("mel"))]
    data = {
        **_summary(site, windows, asked, len(pairs)),
        "labels": told.labels if told else [],
        "tells": told.best if told else [],
        "windows": entries.window_data(windows, written),
        "parts": [{**part, "audio": 2 * i, "mel": 2 * i + 1} for i, part in enumerate(parts)],
        "features": {name: [row[name] for row in table] for name in table[0]},
        "ranges": [[each.low, each.high, *each.counts] for each in entries.ranges],
        "clips": entries.clip_data(),
        "effects": [[window, feature, *texts] for (window, feature), texts in found.items()],
    }
    title = title or f"{site.kind.capitalize()}s of {site.hook_name}"
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(render("features", data, title, media), encoding="utf-8")
    return FeaturePage(asked.out, tuple(table), entries.n_clips, entries.n_without_sound)


def _asked(
    site: FeatureSite,
    out: Any,
    latents: Any,
    n_clips: Any,
    n_effects: Any,
    n_effect_clips: Any,
    amplify: Any,
    max_mb: Any,
) -> _Asked:
    """What is asked for, all of it checked before anything runs."""
    path = Path(out).expanduser()
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; name the page's file: 'features.html'.")
    chosen = range(site.n) if latents is None else latents
    chosen = (chosen,) if isinstance(chosen, int) else tuple(chosen)
    if not chosen or not all(type(each) is int and 0 <= each < site.n for each in chosen):
        raise InputError(
            f"{site.kind}s are {latents!r}; {site.hook_name!r} has {site.kind}s 0 to {site.n - 1}."
        )
    if len(set(chosen)) < len(chosen):
        raise InputError(f"{site.kind}s are {latents!r}; each can be shown once.")
    if n_effects is None:
        n_effects = N_EFFECTS if has_tokenizer(site.model.cfg) else 0
    counts = {"n_clips": n_clips, "n_effects": n_effects, "n_effect_clips": n_effect_clips}
    for name, value in counts.items():
        least = 0 if name == "n_effects" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; it must be an integer from {least} on.")
    for name, value in {"amplify": amplify, "max_mb": max_mb}.items():
        if not isinstance(value, int | float) or not isfinite(value):
            raise InputError(f"{name} is {value!r}; it must be a finite number.")
    if n_effects and not has_tokenizer(site.model.cfg):
        raise InputError(
            f"this model's vocabulary of {site.model.cfg.d_vocab} is not Whisper's, so that it "
            "writes no transcripts to compare. Pass n_effects=0."
        )
    if max_mb < 1:
        raise InputError(f"max_mb is {max_mb}; it must be at least 1.")
    return _Asked(path, chosen, n_clips, n_effects, n_effect_clips, float(amplify), float(max_mb))


def _with_tokens(
    site: FeatureSite, windows: list[AudioWindow], language: str, options: dict[str, Any]
) -> list[AudioWindow]:
    """Windows with what the decoder reads: given tokens, the text, or what the model writes."""
    model, untold = site.model, [each for each in windows if each.text is None and not each.tokens]
    if (untold or any(not each.tokens for each in windows)) and not has_tokenizer(model.cfg):
        raise InputError(
            f"{site.hook_name!r} is in the decoder, and this model's vocabulary of "
            f"{model.cfg.d_vocab} is not Whisper's: give each recording its tokens."
        )
    written = iter(transcripts(model, untold, language=language, **options) if untold else [])
    found = []
    for each in windows:
        if each.tokens:
            found.append(each)
            continue
        text = next(written) if each.text is None else each.text
        spaced = " " + text.strip() if text.strip() else ""
        tokens = model.to_tokens(spaced, language=language)[0].tolist()
        found.append(replace(each, text=text, tokens=tuple(tokens[: model.cfg.n_text_ctx])))
    return found


def _pairs(asked: _Asked, entries: Entries, told: Told | None) -> list[tuple[int, int]]:
    """Windows and features whose effects are computed."""
    if told is not None:
        score = [best[0][1] if best else 0.0 for best in told.best]
    else:
        score = [each.high for each in entries.ranges]
    order = sorted(range(len(score)), key=lambda place: -score[place])
    chosen = [place for place in order if entries.top[place]][: asked.n_effects]
    return [
        (moment.window, asked.chosen[place])
        for place in chosen
        for moment in entries.top[place][: asked.n_effect_clips]
    ]


def _table(
    site: FeatureSite,
    measured: Measured,
    told: Told | None,
    entries: Entries,
    found: dict[tuple[int, int], Effect],
) -> list[dict[str, Any]]:
    changed: dict[int, list[tuple[int, int]]] = {}
    for (_, feature), effect in found.items():
        changed.setdefault(feature, []).append(effect.changed)
    on = measured.active if site.kind == "latent" else measured.positive()
    density = (on.n_active.double() / max(1, on.n_vectors)).tolist()
    rows = []
    for place, feature in enumerate(measured.chosen):
        best = told.best[place] if told else []
        label, value = told.labels[best[0][0]] if told and best else (None, None)
        words = changed.get(feature)
        rows.append(
            {
                "feature": feature,
                "name": site.name_of(feature),
                "density": density[place],
                "peak": entries.ranges[place].high if entries.top[place] else None,
                "label": label,
                "value": value,
                "auroc": best[0][1] if best else None,
                "bits": best[0][2] if best else None,
                "words": entries.words[place],
                "changed_ablated": sum(each[0] for each in words) if words else None,
                "changed_amplified": sum(each[1] for each in words) if words else None,
            }
        )
    return rows


def _summary(
    site: FeatureSite, windows: list[AudioWindow], asked: _Asked, n_pairs: int
) -> dict[str, Any]:
    return {
        "kind": site.kind,
        "stack": site.stack,
        "hook": site.hook_name,
        "model": site.model.cfg.model_name,
        "n_of_site": site.n,
        "n_recordings": len({each.recording for each in windows}),
        "seconds": sum(each.seconds for each in windows),
        "amplify": asked.amplify,
        "n_effects": n_pairs,
    }
