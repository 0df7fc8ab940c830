"""Steps of a study that need others' tools: the clock, the autoencoder's judges, the pages."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hooked_whisper.data.recordings import Recordings
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.attention import attention_page
from hooked_whisper.reports.features import feature_page
from hooked_whisper.speech.tokens import has_tokenizer
from hooked_whisper.store.fingerprint import model_identity, package_version
from hooked_whisper.study.autoencoder import Autoencoder
from hooked_whisper.study.clips import Hearing
from hooked_whisper.study.exhibits import Section
from hooked_whisper.study.features import (
    MOST_CHOSEN,
    MOST_JUDGED,
    Split,
    features_section,
    judge,
    tell,
)
from hooked_whisper.study.labels import known

FORMAT = "hooked_whisper.study/1"
FEATURES, ATTENTION = "features.html", "attention.html"
MOST_SHOWN = 48
"""Recordings on the page of features, whose sound it holds in memory."""
N_CLIPS, N_EFFECTS = 6, 8
"""Moments of each latent on that page, and latents whose effect on transcripts is computed."""


@dataclass(frozen=True)
class Settings:
    """What decides a study besides the model and the recordings."""

    sae: str | None
    hook_name: str
    n_latents: int
    k: int
    n_vectors: int
    language: str
    max_new_tokens: int | None
    pages: bool
    seed: int


class Clock:
    """How long each step takes, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Count what happens inside towards a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.seconds[step] = round(self.seconds.get(step, 0.0) + spent, 2)


def describe(
    model: HookedWhisper, settings: Settings, hearing: Hearing, recordings: Recordings
) -> dict[str, Any]:
    """What was studied, and with what: the head of the report."""
    return {
        "format": FORMAT,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": model_identity(model) | {"device": model.device.type},
        "settings": asdict(settings),
        "recordings_digest": recordings.digest,
        "n_recordings": len(hearing.recordings),
        "n_skipped": len(hearing.skipped),
        "seconds_of_sound": sum(each.seconds for each in hearing.recordings),
        "versions": {
            "hooked-whisper": package_version(),
            "python": platform.python_version(),
            **{
                name: package_version(name)
                for name in ("torch", "openai-whisper", "transformer-lens")
            },
        },
    }


def look_through(
    model: HookedWhisper,
    autoencoder: Autoencoder,
    uses: Split,
    folder: Path,
    *,
    clock: Clock,
    settings: Settings,
    progress: bool,
) -> Section:
    """Judge the autoencoder, find the latents that tell words, and write the pages.

    Args:
        model: The model.
        autoencoder: Given or trained.
        uses: Recordings, each with what was heard, to choose on and to judge on.
        folder: Of the pages.
        clock: Counts the steps.
        settings: Of the study.
        progress: Show bars on stderr.
    """

    def as_known(pairs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(known(one, model.cfg, whole=heard.n_windows == 1) for one, heard in pairs)

    # Only as many as are looked at: others are not read again.
    told_apart = Split(
        as_known(uses.train[:MOST_CHOSEN]), as_known(uses.judge[:MOST_JUDGED]), uses.apart
    )
    with clock("judging"):
        quality = judge(
            model,
            autoencoder,
            told_apart,
            max_new_tokens=settings.max_new_tokens,
            progress=progress,
        )
        told = tell(model, autoencoder, told_apart, progress=progress)
    links: list[tuple[str, str]] = []
    if settings.pages:
        with clock("pages"):
            links = _pages(model, autoencoder, uses, folder, progress=progress)
    return features_section(autoencoder, quality, told, links)


def _pages(
    model: HookedWhisper, autoencoder: Autoencoder, uses: Split, folder: Path, *, progress: bool
) -> list[tuple[str, str]]:
    """The page of features, and of the attention to one recording: what each is, and its file."""
    pairs = [*uses.judge, *uses.train] if uses.apart else uses.train
    links = []
    feature_page(
        model,
        autoencoder.sae,
        [recording for recording, _ in pairs[:MOST_SHOWN]],
        folder / FEATURES,
        hook_name=autoencoder.hook_name,
        n_clips=N_CLIPS,
        n_effects=N_EFFECTS,
        progress=progress,
    )
    links.append(("Listen to what each latent responds to", FEATURES))
    if has_tokenizer(model.cfg):
        first = (uses.train or uses.judge)[0][0]
        attention_page(model, first, folder / ATTENTION, cut=True)
        links.append((f"See where every head looks while {first.id} plays", ATTENTION))
    return links
