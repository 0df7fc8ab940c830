"""The whole study of a Whisper, from recordings to a report."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hooked_whisper.data.sources import as_recordings
from hooked_whisper.display import json_value
from hooked_whisper.errors import (
    HookNameError,
    InputError,
    ReportError,
    StoreMismatchError,
    TrainingError,
)
from hooked_whisper.io import write_json
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.study.attention import EncoderAttention
from hooked_whisper.study.autoencoder import (
    LATENTS_PER_WIDTH,
    SAE_FOLDER,
    STORE,
    Autoencoder,
    TrainingPlan,
    given,
    trained,
)
from hooked_whisper.study.clips import hear
from hooked_whisper.study.decoder import DecoderAttention, decoder_section
from hooked_whisper.study.encoder import encoder_section
from hooked_whisper.study.exhibits import Section
from hooked_whisper.study.features import split
from hooked_whisper.study.report import PICTURES, write_report
from hooked_whisper.study.residual import ResidualCollector, residual_section
from hooked_whisper.study.steps import Clock, Settings, describe, look_through
from hooked_whisper.study.transcripts import transcripts_section

REPORT, NUMBERS = "report.html", "report.json"
OURS = (STORE, SAE_FOLDER, PICTURES)
"""Folders of a finished run, which go when it is replaced."""


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
        """What is in report.json."""
        found: dict[str, Any] = json.loads(self.numbers.read_text(encoding="utf-8"))
        return found

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
    language: str = "en",
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
        hook_name: What the autoencoder reads; None is what it says itself, or
            the residual stream behind the last encoder block.
        n_latents: Of an autoencoder that is trained; None is 8 times the width.
        k: How many of them are active at once.
        n_vectors: Activations to train on, the same again where there are fewer.
        pages: Also write the page of features and that of attention.
        keep_activations: Leave the store of activations that were trained on.
        language: Of what is said.
        max_new_tokens: Of the transcript of a window, at most.
        seed: Of the training.
        overwrite: Replace a report that is in the folder, and what another run left there.
        progress: Show bars on stderr.

    Returns:
        Where the report is, and what was found.

    Raises:
        ReportError: The folder holds a report, or cannot be written.
        StoreMismatchError: It holds activations of an interrupted run of something else.
        RecordingsError: No recordings, or none that can be used.
        HookNameError: No such hook, or none of the encoder.
        SAEConfigError: Sizes that no autoencoder can have.
        SAEFileError: No autoencoder is where it should be.
        SpliceError: The autoencoder does not fit.
        InputError: The model has hooks, or settings that make no sense.
    """
    clock, folder = Clock(), Path(folder).expanduser()
    listed = as_recordings(recordings)
    autoencoder, settings = _check(
        model, sae, hook_name, n_latents, k, n_vectors, pages, language, max_new_tokens, seed
    )
    _prepare(folder, overwrite=overwrite)

    residual = ResidualCollector(model.cfg.n_audio_layers)
    encoder, decoder = EncoderAttention(model.cfg), DecoderAttention(model)
    with clock("listening"):
        hearing = hear(
            model,
            listed,
            [residual, encoder, decoder],
            language=language,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
    uses = split(list(zip(hearing.used, hearing.recordings, strict=True)))
    with clock("training"):
        if autoencoder is None:
            plan = TrainingPlan(
                settings.hook_name, settings.n_latents, settings.k, settings.n_vectors, seed
            )
            mine = [recording for recording, _ in uses.train]
            try:
                autoencoder = trained(model, mine, plan, folder, progress=progress)
            except (StoreMismatchError, TrainingError):
                if not overwrite:
                    raise
                # Left by another run that was interrupted.
                for name in (STORE, SAE_FOLDER):
                    shutil.rmtree(folder / name, ignore_errors=True)
                autoencoder = trained(model, mine, plan, folder, progress=progress)
    latents = look_through(
        model, autoencoder, uses, folder, clock=clock, settings=settings, progress=progress
    )
    with clock("pictures"):
        sections = [
            transcripts_section(hearing),
            residual_section(residual),
            encoder_section(encoder),
            decoder_section(decoder),
            latents,
        ]
        about = describe(model, settings, hearing, listed)
        write_report(folder / REPORT, about, sections, hearing.skipped)
    numbers = about | {
        "seconds": clock.seconds,
        "recordings": [asdict(each) for each in hearing.recordings],
        "skipped": hearing.skipped,
        "sections": {each.name: each.to_dict() for each in sections},
    }
    write_json(folder / NUMBERS, json_value(numbers))
    if not keep_activations:
        shutil.rmtree(folder / STORE, ignore_errors=True)
    return Study(folder, sections, hearing.skipped, clock.seconds)


def _check(
    model: HookedWhisper,
    sae: Any,
    hook_name: str | None,
    n_latents: int | None,
    k: int,
    n_vectors: int,
    pages: bool,
    language: str,
    max_new_tokens: int | None,
    seed: int,
) -> tuple[Autoencoder | None, Settings]:
    """Everything that can be refused before anything runs."""
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
    autoencoder = None if sae is None else given(model, sae, hook_name)
    hook = _hook(model, hook_name) if autoencoder is None else autoencoder.hook_name
    wanted = LATENTS_PER_WIDTH * model.cfg.d_model if n_latents is None else n_latents
    if autoencoder is None:
        TrainingPlan(hook, wanted, k, n_vectors, seed).config(model.cfg.d_model, Path())
    return autoencoder, Settings(
        sae=None if autoencoder is None else autoencoder.source,
        hook_name=hook,
        n_latents=wanted,
        k=k,
        n_vectors=n_vectors,
        language=language,
        max_new_tokens=max_new_tokens,
        pages=pages,
        seed=seed,
    )


def _hook(model: HookedWhisper, name: str | None) -> str:
    """The hook to train on.

    Raises:
        HookNameError: There is none of this name, or it has no vector for each encoder position.
    """
    last = f"encoder.blocks.{model.cfg.n_audio_layers - 1}.hook_resid_post"
    if name is None:
        return last
    found = model.hook_names([name])
    axes = model.hook_dict[found[0]].axes
    if len(found) > 1 or not found[0].startswith("encoder.") or axes[:2] != ("batch", "pos"):
        raise HookNameError(
            f"{name!r} is {' '.join(found[:2])}{' ...' if len(found) > 2 else ''} with the axes "
            f"[{' '.join(axes)}]; a study looks at one hook of the encoder with a vector for each "
            f"position, such as {last!r}."
        )
    return found[0]


def _prepare(folder: Path, *, overwrite: bool) -> None:
    """Make the folder, empty of a report; what a finished run left goes where that is wanted.

    Raises:
        ReportError: It holds a report, is no folder, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise ReportError(f"{folder} is a file; name a folder for the report.")
    found = [name for name in (REPORT, NUMBERS) if (folder / name).exists()]
    if found and not overwrite:
        raise ReportError(
            f"{folder} holds {found[0]} of another run. Name another folder, or pass "
            "overwrite=True (--overwrite) to replace it."
        )
    try:
        if found:
            for name in OURS:
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in found:
                (folder / name).unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{folder} cannot be written: {error}.") from error
