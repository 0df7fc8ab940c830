"""What an autoencoder makes of the encoder: how well it gives back, what its latents tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.analysis import speech_vectors
from hooked_whisper.analysis.selectivity import Selectivity
from hooked_whisper.figures import plot_density, plot_training
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.evaluation.evaluate import evaluate_sae
from hooked_whisper.sae.evaluation.reconstruction import Reconstruction, judge_reconstruction
from hooked_whisper.sae.evaluation.report import SAEEvaluation
from hooked_whisper.sae.evaluation.speech_labels import latents_by_speech
from hooked_whisper.speech.tokens import has_tokenizer
from hooked_whisper.study.autoencoder import Autoencoder
from hooked_whisper.study.exhibits import Exhibit, Section, Table, number, percent
from hooked_whisper.study.labels import Known

MOST_JUDGED, MOST_CHOSEN = 24, 40
"""Recordings on which an autoencoder is judged, and from which its latents are chosen, at most."""
FEW = 15
"""Under so many recordings, every third is kept to judge on, in place of every fifth."""


@dataclass(frozen=True, eq=False)
class Split:
    """Recordings for two uses.

    Args:
        train: What is learned from, and what latents are chosen on.
        judge: What is judged on.
        apart: Whether these are others.
    """

    train: tuple[Any, ...]
    judge: tuple[Any, ...]
    apart: bool


def split(recordings: Sequence[Any]) -> Split:
    """Every fifth recording is kept to judge on, every third of few; under three are for both.

    >>> split(range(8))
    Split(train=(0, 1, 3, 4, 6, 7), judge=(2, 5), apart=True)
    """
    every = 5 if len(recordings) >= FEW else 3
    judge = tuple(recordings[every - 1 :: every])
    if not judge:
        return Split(tuple(recordings), tuple(recordings), False)
    train = tuple(each for i, each in enumerate(recordings) if i % every != every - 1)
    return Split(train, judge, True)


@dataclass(frozen=True, eq=False)
class Quality:
    """How an autoencoder was judged.

    Args:
        n_recordings: On how many recordings.
        apart: Whether it had not seen them.
        reconstruction: What it gives back.
        evaluation: What it does to speech; None for a model that writes no text.
    """

    n_recordings: int
    apart: bool
    reconstruction: Reconstruction
    evaluation: SAEEvaluation | None

    def to_dict(self) -> dict[str, Any]:
        """Every number, in groups."""
        found: dict[str, Any] = {
            "n_recordings": self.n_recordings,
            "held_out": self.apart,
            "reconstruction": self.reconstruction.to_dict(),
        }
        if self.evaluation is not None:
            speech = self.evaluation.speech.to_dict()
            found |= {name: speech[name] for name in ("recovered", "transcripts")}
        return found


@torch.no_grad()
def judge(
    model: HookedWhisper,
    autoencoder: Autoencoder,
    recordings: Split,
    *,
    max_new_tokens: int | None = None,
    progress: bool = True,
) -> Quality:
    """Judge an autoencoder on the recordings that are kept for it, the first few of them."""
    chosen = recordings.judge[:MOST_JUDGED]
    sae, hook_name = autoencoder.sae, autoencoder.hook_name
    if has_tokenizer(model.cfg):
        texts = [each.text for each in chosen]
        told = texts if all(text is not None for text in texts) else None
        evaluation = evaluate_sae(
            sae,
            model,
            [each.audio for each in chosen],
            hook_name,
            told,
            all_frames=False,
            max_new_tokens=max_new_tokens,
            batch_size=4,
            progress=progress,
        )
        return Quality(len(chosen), recordings.apart, evaluation.speech.reconstruction, evaluation)

    def vectors() -> Any:
        for each in chosen:
            mel = model.to_mel([each.audio])
            _, cache = model.run_with_cache(mel, names_filter=hook_name)
            yield speech_vectors(cache[hook_name], mel.n_positions)

    return Quality(len(chosen), recordings.apart, judge_reconstruction(sae, vectors()), None)


@dataclass(frozen=True)
class Told:
    """A value of a label, and the latent that tells it best.

    Args:
        label, value: Such as "word", "seven".
        latent: Which.
        chosen_auroc: On the recordings on which it was chosen.
        auroc: On those that were kept to judge; None where the value does not occur there.
        density: Share of the positions judged on which it is active.
    """

    label: str
    value: str
    latent: int
    chosen_auroc: float
    auroc: float | None
    density: float


def tell(
    model: HookedWhisper, autoencoder: Autoencoder, recordings: Split, *, progress: bool = True
) -> list[Told] | None:
    """For each word and speaker the latent that tells it; None where nothing is known of them."""
    train, kept = recordings.train[:MOST_CHOSEN], recordings.judge[:MOST_JUDGED]
    if not _is_known([*train, *kept]):
        return None

    def selectivity(some: Sequence[Known]) -> Selectivity:
        found = latents_by_speech(
            autoencoder.sae, model, some, autoencoder.hook_name, batch_size=4, progress=progress
        )
        return found.selectivity(level="frame")

    chosen = selectivity(train)
    judged = selectivity(kept) if recordings.apart else chosen
    told = []
    for name in ("word", "speaker"):
        if name not in chosen.labels or len(chosen[name].values) < 2:
            continue
        for value, latent, auroc in chosen[name].best():
            there = None
            if name in judged.labels and value in judged[name].values:
                found = float(judged[name].auroc[latent, judged[name].values.index(value)])
                there = None if math.isnan(found) else found
            density = float(judged.density[latent])
            told.append(Told(name, value, latent, auroc, there, density))
    return told


def _is_known(recordings: Sequence[Known]) -> bool:
    words = all(each.words is not None for each in recordings)
    return words or all(each.speaker is not None for each in recordings)


def features_section(
    autoencoder: Autoencoder,
    quality: Quality,
    told: Sequence[Told] | None,
    links: Sequence[tuple[str, str]] = (),
) -> Section:
    """Quality, density, training and the latents that tell words."""
    d_sae = len(quality.reconstruction.density)
    about = (
        f"A sparse autoencoder of {number(d_sae)} latents at {autoencoder.hook_name}, "
        f"{autoencoder.source}, judged over the positions that hold sound of "
        f"{_recordings(quality.n_recordings)} "
        + ("that it was not trained on." if quality.apart and autoencoder.log else "of these.")
    )
    numbers: dict[str, Any] = {
        "hook_name": autoencoder.hook_name,
        "source": autoencoder.source,
        "n_latents": d_sae,
        "quality": quality.to_dict(),
        "training": list(autoencoder.log[-1:]),
        "latents_that_tell": None if told is None else [vars(each) for each in told],
    }
    exhibits = [_quality(quality, d_sae), _density(quality.reconstruction.density)]
    if autoencoder.log:
        exhibits.append(_training(autoencoder, quality))
    if told:
        exhibits.append(_told(told))
    return Section(
        "features", "A sparse autoencoder on the encoder", about, numbers, exhibits, links
    )


def _recordings(n: int) -> str:
    return f"{n} recording{'s' if n != 1 else ''}"


def _quality(quality: Quality, d_sae: int) -> Exhibit:
    found = quality.reconstruction
    rows = [
        ["fraction of variance unexplained (FVU)", number(found.fvu, 4)],
        ["latents active at once (L0)", number(found.l0, 1)],
        [f"dead: active on none of {number(found.n_vectors)} positions", percent(found.dead_share)],
        ["always on: active on over 90 %", percent(found.always_on_share)],
        ["cosine of activation and reconstruction", number(found.cosine, 3)],
    ]
    finding = (
        f"It leaves {percent(found.fvu)} of the variance unexplained with {number(found.l0, 1)} of "
        f"{number(d_sae)} latents active at once, and {percent(found.dead_share)} of the latents "
        "are active on none of these positions"
    )
    if quality.evaluation is not None:
        speech = quality.evaluation.speech
        rows += [
            ["cross-entropy recovered (against zeros)", percent(speech.recovered.ce_recovered)],
            ["KL divergence recovered (against zeros)", percent(speech.recovered.kl_recovered)],
        ]
        if (scores := speech.transcripts) is not None:
            rows.append(["transcripts with the same words", percent(scores.same_as_model)])
            if scores.wer is not None:
                rows.append(["word error rate with it in place", percent(scores.wer)])
                rows.append(["word error rate of the model", percent(scores.wer_model)])
            finding += (
                "; with reconstructions in place of the activations "
                f"{percent(scores.same_as_model)} of {scores.n_recordings} transcripts keep their "
                "words"
            )
    table = Table(["measure", "value"], rows, f"Judged on {_recordings(quality.n_recordings)}")
    return Exhibit("sae_quality", "What it gives back", finding + ".", table=table)


def _density(density: Tensor) -> Exhibit:
    alive = density[density > 0]
    finding = (
        f"The median latent is active on {percent(float(density.median()))} of the positions, and "
        f"{int((density > 0.1).sum())} of {len(density)} latents are active on more than a tenth."
        if len(alive)
        else f"None of the {len(density)} latents is active on any position."
    )
    return Exhibit(
        "sae_density",
        "How often latents are active",
        finding,
        plot_density(density.float(), title="Density of the latents"),
        "Histogram over the latents of the share of positions on which each is active.",
    )


def _training(autoencoder: Autoencoder, quality: Quality) -> Exhibit:
    last = autoencoder.log[-1]
    finding = (
        f"After {number(int(last['n_vectors']))} vectors, {number(autoencoder.n_rows)} different "
        f"ones, FVU is {number(last['fvu'], 4)} in the last batch of training and "
        f"{number(quality.reconstruction.fvu, 4)} "
        + ("on recordings that were held out." if quality.apart else "over the same recordings.")
    )
    return Exhibit(
        "sae_training",
        "Training",
        finding,
        plot_training(list(autoencoder.log), title="Training of the autoencoder"),
        "Loss, fraction of variance unexplained, active latents and dead latents over training.",
        wide=True,
    )


def _told(told: Sequence[Told]) -> Exhibit:
    rows = [
        [
            each.label,
            each.value,
            each.latent,
            number(each.chosen_auroc, 3),
            "not said" if each.auroc is None else number(each.auroc, 3),
            percent(each.density),
        ]
        for each in told
    ]
    judged = [each.auroc for each in told if each.auroc is not None and each.label == told[0].label]
    n = sum(each.label == told[0].label for each in told)
    mean = sum(judged) / len(judged) if judged else None
    finding = (
        f"The latents chosen for {n} values of {told[0].label!r} have a mean AUROC of "
        f"{number(mean, 3)} where they were judged, from "
        f"{number(min(judged, default=math.nan), 3)} to "
        f"{number(max(judged, default=math.nan), 3)} over {len(judged)} values that occur there."
    )
    table = Table(
        ["label", "value", "latent", "AUROC where chosen", "AUROC where judged", "active on"],
        rows,
        "For each value, the latent that tells its positions from those of other values best",
    )
    return Exhibit("sae_latents", "Latents that tell words and speakers", finding, table=table)
