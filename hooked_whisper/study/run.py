"""The whole study of a Whisper, from recordings to a report."""

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from hooked_whisper import HookedWhisper
from hooked_whisper.data import Recording, as_recordings
from hooked_whisper.display import json_value
from hooked_whisper.errors import (
    HookNameError,
    InputError,
    ReportError,
)
from hooked_whisper.io import as_path, write_json
from hooked_whisper.reports import attention_page, feature_page
from hooked_whisper.sae import TopKConfig, TrainingConfig
from hooked_whisper.speech import has_tokenizer
from hooked_whisper.store import model_identity
from hooked_whisper.study.autoencoder import (
    SAE_FOLDER,
    STORE,
    Autoencoder,
    features_section,
    given,
    trained,
)
from hooked_whisper.study.decoder import DecoderAttention, decoder_section
from hooked_whisper.study.encoder import EncoderAttention, encoder_section
from hooked_whisper.study.folder import (
    ATTENTION,
    FEATURES,
    NUMBERS,
    REPORT,
    remove,
    study_folder,
)
from hooked_whisper.study.report import FORMAT, Section, read_numbers, write_report
from hooked_whisper.study.residual import ResidualStreams, residual_section
from hooked_whisper.study.windows import Transcripts, run_windows, transcripts_section

OUTPUT = "encoder.ln_final.hook_normalized"
"""What an autoencoder of a real model reads unless told otherwise: docs/massive_activations.md."""
LATENTS_PER_WIDTH = 8
BATCH_SIZE, LEARNING_RATE = 1024, 1e-3
MOST_JUDGED, MOST_CHOSEN, MOST_SHOWN = 24, 40, 48
"""Recordings, at most, to judge the autoencoder on, to choose latents on, and on the page."""
N_CLIPS, N_EFFECTS = 6, 8
"""Moments of each latent on that page, and latents whose effect on transcripts is computed."""
FEW = 15
"""Under so many recordings, every third is kept to judge on, in place of every fifth."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Study:
    """What came of a study.

    Args:
        folder: Where everything is.
        sections: In the report's order.
        skipped: Recordings that could not be used, and why.
        seconds: How long each step took.
    """

    folder: Path
    sections: Sequence[Section]
    skipped: Sequence[dict[str, str]]
    seconds: dict[str, float] = field(repr=False)

    @property
    def report(self) -> Path:
        """The report to look at."""
        return self.folder / REPORT

    @property
    def numbers(self) -> Path:
        """Every number, as JSON."""
        return self.folder / NUMBERS

    @property
    def findings(self) -> list[str]:
        """What was found, a sentence each."""
        return [finding for section in self.sections for finding in section.findings]

    def to_dict(self) -> dict[str, Any]:
        """What is in report.json.

        Raises:
            ReportError: It cannot be read, or is damaged.
        """
        return read_numbers(self.numbers)

    def __repr__(self) -> str:
        return f"Study({str(self.report)!r}, {len(self.findings)} findings)"


def study(
    model: HookedWhisper,
    recordings: Any,
    folder: str | os.PathLike[str],
    *,
    sae: Any = None,
    hook_name: str | None = None,
    n_latents: int | None = None,
    k: int = 32,
    n_vectors: int = 500_000,
    pages: bool = True,
    keep_activations: bool = False,
    language: str | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Study:
    """Study a Whisper on recordings, and write a report with pictures, tables and findings.

    Transcripts; the last encoder layer's residual stream; the encoder's and
    the decoder's attention; a sparse autoencoder on the encoder. Beside each
    finding stands what the post "Analysis of Whisper-Tiny using Sparse
    Autoencoders" says, where it says something. Memory does not grow with the
    number of recordings. An interrupted run goes on with the activations and
    the training that it had when the same call is made again.

    Args:
        model: The model, without hooks.
        recordings: What `harvest` takes: files, folders, manifests (with columns
            such as `text` and `speaker`), data sets, `digits.recordings()`.
        folder: Gets report.html, report.json, pictures, pages and the autoencoder.
        sae: An autoencoder of an encoder hook; a file or folder with one; or
            a suite, such as `"digits"`. None trains one on the recordings.
        hook_name: What the autoencoder reads; None is what it says itself, or the encoder's
            output, `"encoder.ln_final.hook_normalized"`, which no massive activations take for
            themselves; of the digits model the residual stream behind the last block.
        n_latents: Of an autoencoder that is trained; None is 8 times the width.
        k: How many of them are active at once.
        n_vectors: Activations to train on, the same again where there are fewer.
        pages: Also write the page of features and that of attention.
        keep_activations: Leave the store of activations that were trained on.
        language: Of what is said, unless a label `language` says otherwise; None has a
            multilingual model find out.
        max_new_tokens: Of the transcript of a window, at most.
        seed: Of the training.
        overwrite: Replace a report that is in the folder, and what another run left there. An
            earlier report stays until the new one, which is made in `.unfinished`, is done.
        progress: Show bars on stderr.

    Returns:
        Where the report is, and what was found.

    Raises:
        ReportError: The folder holds a report, or cannot be written.
        StoreMismatchError: It holds activations of an interrupted run of something else.
        RecordingsError: No recordings, or none that can be used.
        HookNameError: No such hook, or none of the encoder.
        SAEError: Sizes that no autoencoder can have, none where it should be, or one that does
            not fit.
        InputError: The model has hooks, or settings that make no sense.
    """
    folder, listed = as_path(folder, ReportError), as_recordings(recordings)
    _check(model, max_new_tokens)
    autoencoder = None if sae is None else given(model, sae, hook_name)
    settings: dict[str, Any] = {
        "sae": None if autoencoder is None else autoencoder.source,
        "hook_name": autoencoder.hook_name if autoencoder else _encoder_hook(model, hook_name),
        "n_latents": LATENTS_PER_WIDTH * model.cfg.d_model if n_latents is None else n_latents,
        "k": k,
        "n_vectors": n_vectors,
        "language": language,
        "max_new_tokens": max_new_tokens,
        "pages": pages,
        "seed": seed,
    }
    if autoencoder is None:
        cfg = _training_config(model, settings)
    residual, encoder = ResidualStreams(model.cfg.n_audio_layers), EncoderAttention(model.cfg)
    decoder = DecoderAttention(model)
    goes_on = (STORE, SAE_FOLDER) if autoencoder is None else ()
    with study_folder(folder, goes_on, overwrite=overwrite) as place:
        seconds: dict[str, float] = {}
        options: dict[str, Any] = {"language": language, "max_new_tokens": max_new_tokens}
        options["progress"] = progress
        with _clock(seconds, "listening"):
            found = run_windows(model, listed, [residual, encoder], [decoder], **options)
        train, kept = split(found.recordings)
        held_out = kept is not train
        with _clock(seconds, "training"):
            if autoencoder is None:
                autoencoder = trained(
                    model, train, cfg, place, overwrite=overwrite, progress=progress
                )
        with _clock(seconds, "judging"):
            chosen, judged = train[:MOST_CHOSEN], kept[:MOST_JUDGED]
            quality = {"n_recordings": len(judged), "held_out": held_out}
            quality |= autoencoder.judge(judged, **options)
            telling = autoencoder.telling_latents(chosen, judged, progress=progress)
        links = []
        with _clock(seconds, "pages"):
            if pages:
                shown = ([*kept, *train] if held_out else train)[:MOST_SHOWN]
                placed: Any = quality.get("in_place") or {}
                usable = not placed.get("unusable", False)
                links = _pages(autoencoder, shown, train[0], place, progress, usable=usable)
        with _clock(seconds, "pictures"):
            sections = [
                transcripts_section(found),
                residual_section(residual),
                encoder_section(encoder),
                decoder_section(decoder),
                features_section(autoencoder, quality, telling, links),
            ]
            about = _describe(model, settings, found, listed.digest)
            write_report(place / REPORT, about, sections, found.skipped)
            numbers = about | {
                "seconds": seconds,
                "recordings": found.rows,
                "skipped": found.skipped,
                "sections": {section.name: section.to_dict() for section in sections},
            }

        def clean_up() -> None:
            """Nothing is to go on once the numbers have their name."""
            remove(*(place / SAE_FOLDER).glob("checkpoint*"))
            if not keep_activations:
                remove(place / STORE)

        write_json(place / NUMBERS, json_value(numbers), clean_up)
    return Study(folder, sections, found.skipped, seconds)


def _check(model: HookedWhisper, max_new_tokens: int | None) -> None:
    """Refuse a model that is not as it is, and transcripts that cannot be."""
    hooked = [name for name, point in model.hook_dict.items() if point.is_hooked]
    if hooked:
        raise InputError(
            f"{hooked[0]!r} has hooks or an SAE, and a study is of the model as it is. Call "
            "model.reset_hooks() and model.reset_saes() first."
        )
    if max_new_tokens is not None and not 1 <= max_new_tokens <= model.cfg.n_text_ctx:
        raise InputError(
            f"max_new_tokens is {max_new_tokens}; it can be 1 to {model.cfg.n_text_ctx}."
        )


def _encoder_hook(model: HookedWhisper, name: str | None) -> str:
    """The one hook that a name means, with a vector for each encoder position."""
    usual = f"encoder.blocks.{model.cfg.n_audio_layers - 1}.hook_resid_post"
    if model.cfg.model_name != "digits":
        usual = OUTPUT  # behind the last block of real ones, massive activations have the variance
    found = model.hook_names([usual if name is None else name])
    axes = model.hook_dict[found[0]].axes
    is_vector = axes[:2] == ("batch", "pos") and len(axes) == 3
    if len(found) > 1 or not found[0].startswith("encoder.") or not is_vector:
        raise HookNameError(
            f"{name!r} is {' '.join(found[:2])}{' ...' if len(found) > 2 else ''} with the axes "
            f"[{' '.join(axes)}]; a study looks at one hook of the encoder with a vector for each "
            f"position, such as {usual!r}."
        )
    return found[0]


@contextmanager
def _clock(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Count what happens inside towards a step."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[step] = round(time.monotonic() - start, 2)


def split(recordings: list[T]) -> tuple[list[T], list[T]]:
    """Every fifth is kept to judge on, every third of few; under three are for both."""
    every = 5 if len(recordings) >= FEW else 3
    train = [recording for i, recording in enumerate(recordings) if i % every != every - 1]
    return train, recordings[every - 1 :: every] or train


def _training_config(model: HookedWhisper, settings: dict[str, Any]) -> TrainingConfig:
    """How an autoencoder is trained."""
    name, n_vectors = settings["hook_name"], settings["n_vectors"]
    sizes = {"d_in": model.axis_sizes(name)[-1], "d_sae": settings["n_latents"]}
    return TrainingConfig(
        TopKConfig(**sizes, hook_name=name, k=settings["k"]),
        n_vectors=n_vectors,
        batch_size=min(BATCH_SIZE, n_vectors),
        lr=LEARNING_RATE,
        dead_after_vectors=max(BATCH_SIZE, n_vectors // 10),
        seed=settings["seed"],
        checkpoint_every=500,
        log_every=max(1, n_vectors // BATCH_SIZE // 100),
    )


def _pages(
    autoencoder: Autoencoder,
    shown: list[Recording],
    first: Recording,
    folder: Path,
    progress: bool,
    *,
    usable: bool,
) -> list[tuple[str, str]]:
    """The page of features, and of the attention to one recording: what each is, and its file."""
    model, sae, name = autoencoder.model, autoencoder.sae, autoencoder.hook_name
    options: dict[str, Any] = {"n_clips": N_CLIPS, "n_effects": N_EFFECTS, "progress": progress}
    if not has_tokenizer(model.cfg):  # no transcripts to compare
        options["n_effects"] = 0
    elif not usable:  # what a latent does through it says nothing of the model
        options |= {"n_effects": 0, "title": f"Latents of {name}: unusable in the model's place"}
    feature_page(model, sae, shown, folder / FEATURES, hook_name=name, **options)
    links = [("Listen to what each latent responds to", FEATURES)]
    if has_tokenizer(model.cfg):
        attention_page(model, first, folder / ATTENTION, cut=True)
        links.append((f"See where every head looks while {first.id} plays", ATTENTION))
    return links


def _describe(
    model: HookedWhisper, settings: dict[str, Any], found: Transcripts, digest: str | None
) -> dict[str, Any]:
    """What was studied, and with what: the head of the report."""
    packages = ("hooked-whisper", "torch", "openai-whisper", "transformer-lens")
    return {
        "format": FORMAT,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": model_identity(model) | {"device": model.device.type},
        "settings": settings,
        "recordings_digest": digest,
        "n_recordings": len(found.rows),
        "n_skipped": len(found.skipped),
        "seconds_of_sound": sum(row["seconds"] for row in found.rows),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
        },
    }


def _version(package: str) -> str:
    """Of a package, if it is installed as one."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "unknown"
