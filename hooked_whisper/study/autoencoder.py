"""The autoencoder: given, or trained on the recordings; how well it does, what its latents tell."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis import speech_vectors
from hooked_whisper.data import Recording, load_windows, window_batches
from hooked_whisper.display import table
from hooked_whisper.errors import InputError, SpliceError, StoreMismatchError, TrainingError
from hooked_whisper.figures import plot_density, plot_training
from hooked_whisper.io import make_folder
from hooked_whisper.metrics import CompressionRatio, Repetition
from hooked_whisper.sae import (
    LabelReadout,
    TrainingConfig,
    evaluate_sae,
    judge_reconstruction,
    latents_by_speech,
    load_sae,
    load_suite,
    splice_site,
    train_sae,
)
from hooked_whisper.speech import MANNER, PLACE, has_tokenizer, word_error_rate
from hooked_whisper.store import Epochs, harvest
from hooked_whisper.study.report import Exhibit, Section, exhibit, section

MOST_VALUES = 60
"""Values of a label that a table has."""
STORE, SAE_FOLDER = "activations", "sae"
"""What a study's folder calls the store and the autoencoder that it trains."""


MEASURES = [
    ("fraction of variance unexplained (FVU)", "reconstruction", "fvu"),
    ("latents active at once (L0)", "reconstruction", "l0"),
    ("share dead: active on none of the positions", "reconstruction", "dead_share"),
    ("share always on: active on over 90 %", "reconstruction", "always_on_share"),
    ("cosine of activation and reconstruction", "reconstruction", "cosine"),
    ("cross-entropy recovered, of 1 (against zeros)", "recovered", "ce_recovered"),
    ("KL divergence recovered, of 1 (against zeros)", "recovered", "kl_recovered"),
    ("share of transcripts with the same words", "transcripts", "same_as_model"),
    ("word error rate with it in place", "transcripts", "wer"),
    ("word error rate of the model", "transcripts", "wer_model"),
]
"""What the report's table has of an autoencoder's quality."""


TOLD = ("word", "phone", "manner", "place", "speaker")
"""Labels that latents are held against."""
LOOP, MOST_WRONG, MOST_LOOPS = 2.4, 0.5, 0.2
"""From which compression ratio on a text is a loop, and what makes an autoencoder unusable: the
share of wrong words and of loops."""


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """What a study looks at speech through.

    Args:
        model: The model that it reads.
        sae: Anything with `encode` and `decode`.
        hook_name: What it reads.
        source: Where it comes from, in words.
        log: Of its training, where that was here.
        n_rows: Activations that it was trained on, each counted once.
    """

    model: HookedWhisper
    sae: Any
    hook_name: str
    source: str
    log: Sequence[dict[str, Any]] = ()
    n_rows: int = 0

    @torch.no_grad()
    def judge(self, recordings: Sequence[Recording], **options: Any) -> dict[str, Any]:
        """What it gives back, and does to speech where the model writes text."""
        if has_tokenizer(self.model.cfg):
            options |= {"all_frames": False, "batch_size": 4}
            found = evaluate_sae(self.sae, self.model, recordings, self.hook_name, **options)
            own, texts = found.transcripts_model, found.speech.texts
            return found.speech.to_dict() | {"in_place": in_place(own, texts)}

        def vectors() -> Iterator[Tensor]:
            for batch in window_batches(self.model, load_windows(self.model, recordings), 1):
                _, cache = self.model.run_with_cache(batch.mel, names_filter=self.hook_name)
                yield speech_vectors(cache[self.hook_name], batch.mel.n_positions)

        return {"reconstruction": judge_reconstruction(self.sae, vectors()).to_dict()}

    def telling_latents(
        self, train: Sequence[Recording], kept: Sequence[Recording], *, progress: bool
    ) -> list[LabelReadout]:
        """For each value of the labels `TOLD` the latent that tells it, where something is known.

        Chosen on some recordings, and judged on the others, by the values that both have.
        """
        known = [*train, *kept]
        if any(each.words is None and each.speaker is None and not each.timed for each in known):
            return []
        options: dict[str, Any] = {"batch_size": 4, "progress": progress}
        chosen, judged = (
            latents_by_speech(self.sae, self.model, some, self.hook_name, **options)
            for some in (train, kept)
        )
        found = []
        for label in TOLD:
            try:
                readout = chosen.readout(label, judged)
            except InputError:  # nothing is known of it, or nothing on both sides
                continue
            if len(readout.values) > 1:
                found.append(readout)
        return found


def in_place(own: Sequence[str], spliced: Sequence[str]) -> dict[str, Any]:
    """Whether a model still writes what it wrote with an autoencoder in the activation's place.

    `unusable` where more than half of its words are wrong, or over a fifth of its transcripts
    are loops that were none: `loops` of them, `loop` being the first. A loop is what openai-whisper
    takes for one, a text that is compressed to less than 1 / 2.4 of its length.
    """
    ratio = CompressionRatio()
    loops = [
        text
        for before, text in zip(own, spliced, strict=True)
        if ratio(text) > LOOP and ratio(before) <= LOOP
    ]
    rate = word_error_rate(own, spliced)
    return {
        "n": len(spliced),
        "loops": len(loops),
        "loop": loops[0][:80] if loops else None,
        "repetition": max(map(Repetition(), loops), default=0.0),
        "wer_to_model": rate,
        "unusable": rate > MOST_WRONG or len(loops) > MOST_LOOPS * len(spliced),
    }


def given(model: HookedWhisper, sae: Any, hook_name: str | None) -> Autoencoder:
    """An autoencoder that the user has, once it is sure that it fits the model."""
    source = f"{type(sae).__name__}, given"
    if isinstance(sae, str | os.PathLike):
        source = f"given: {os.fspath(sae)}"
        sae = _loaded(model, sae, hook_name)
    site = splice_site(model, sae, hook_name).of_positions()
    if site.stack != "encoder" or site.hook_in != site.hook_out:
        raise SpliceError(
            f"the autoencoder reads {site.hook_in!r} and writes {site.hook_out!r}; a study looks "
            "at one hook of the encoder, such as "
            f"'encoder.blocks.{model.cfg.n_audio_layers - 1}.hook_resid_post'."
        )
    return Autoencoder(model, sae, site.hook_in, source)


def _loaded(model: HookedWhisper, source: str | os.PathLike[str], hook_name: str | None) -> Any:
    """An autoencoder from a file or folder, or that of the hook from a suite."""
    if source != "digits" and not any(Path(source).expanduser().glob("*/cfg.json")):
        return load_sae(source, hook_name=hook_name, device=model.device)
    suite = load_suite(source, device=model.device)
    wanted = hook_name or next((name for name in reversed(suite) if name.startswith("encoder")), "")
    if wanted not in suite:
        raise SpliceError(
            f"the suite {source} has no autoencoder of {wanted or 'the encoder'!r}; it has "
            f"{', '.join(suite)}."
        )
    return suite[wanted]


def trained(
    model: HookedWhisper,
    recordings: Sequence[Recording],
    cfg: TrainingConfig,
    folder: Path,
    *,
    overwrite: bool,
    progress: bool,
) -> Autoencoder:
    """An autoencoder of these recordings; goes on where a run before was interrupted.

    What another run left that was interrupted is refused, or goes where that is wanted.
    """
    name = str(cfg.sae.hook_name)
    try:
        store = harvest(model, recordings, name, folder / STORE, n_workers=0, progress=progress)
        make_folder(folder / SAE_FOLDER)
        cfg = replace(cfg, folder=folder / SAE_FOLDER)
        sae = train_sae(cfg, Epochs(store), resume=True, progress=progress)
    except (StoreMismatchError, TrainingError) as error:
        if not overwrite or isinstance(error.__cause__, OSError | SafetensorError):  # a full disk
            raise
        for left in (STORE, SAE_FOLDER):
            shutil.rmtree(folder / left, ignore_errors=True)
        return trained(model, recordings, cfg, folder, overwrite=False, progress=progress)
    log = pd.read_csv(folder / SAE_FOLDER / "log.csv").to_dict("records")
    n_rows = store.n_rows(name)
    source = f"trained here on {len(recordings)} recordings ({n_rows:,} positions)"
    return Autoencoder(model, sae.to(model.device), name, source, log, n_rows)


def features_section(
    autoencoder: Autoencoder,
    quality: dict[str, Any],
    telling: Sequence[LabelReadout],
    links: Sequence[tuple[str, str]],
) -> Section:
    """Quality, density, training and the latents that tell words."""
    density = torch.tensor(quality["reconstruction"]["density"])
    numbers = {
        "hook_name": autoencoder.hook_name,
        "source": autoencoder.source,
        "n_latents": len(density),
        "quality": quality,
        "training": list(autoencoder.log[-1:]),
        "latents_that_tell": [
            {"label": each.name, **row}
            for each in telling
            for row in each.to_dataframe().to_dict("records")
        ],
    }
    exhibits = [_quality(quality), _density(density)]
    if autoencoder.log:
        figure = plot_training(list(autoencoder.log), title="Training of the autoencoder")
        found = {"n_rows": autoencoder.n_rows, "judged": quality, **autoencoder.log[-1]}
        exhibits.append(exhibit("sae_training", figure=figure, **found))
    exhibits += _telling(telling)
    return section("features", numbers, exhibits, links=links)


def _quality(quality: dict[str, Any]) -> Exhibit:
    rows = [
        [name, quality[group][key]]
        for name, group, key in MEASURES
        if quality.get(group) and quality[group][key] is not None
    ]
    return exhibit(
        "sae_quality",
        in_place=quality.get("in_place"),
        table=table(["measure", "value"], rows),
        n_recordings=quality["n_recordings"],
        transcripts=quality.get("transcripts"),
        **quality["reconstruction"],
    )


def _density(density: Tensor) -> Exhibit:
    return exhibit(
        "sae_density",
        figure=plot_density(density.float(), title="Density of the latents"),
        n=len(density),
        n_often=int((density > 0.1).sum()),
        median=float(density.median()) if bool((density > 0).any()) else None,
    )


def _telling(telling: Sequence[LabelReadout]) -> list[Exhibit]:
    """What single latents tell, and of phones which they take for which."""
    header = ["label", "values", "mean AUROC", "mean F1", "told right", "positions"]
    rows = [
        [
            each.name,
            len(each.values),
            each.mean_auroc,
            each.mean_f1,
            each.accuracy,
            int(each.n.sum()),
        ]
        for each in telling
    ]
    found = [exhibit("sae_latents", table=table(header, rows) if rows else None, rows=rows)]
    for each in telling:
        frame = each.to_dataframe().sort_values("f1", ascending=False)
        frame = frame[["value", "latent", "n", "auroc", "f1", "precision", "recall"]]
        frame["latent"] = frame["latent"].astype(str)
        shown = table(list(frame), frame.to_numpy().tolist(), most=MOST_VALUES)
        about = {"label": each.name, "n": len(each.values), "best": frame.iloc[0].to_dict()}
        found.append(exhibit("sae_values", called=f"sae_{each.name}", table=shown, **about))
        if each.name == "phone":
            figure = each.plot()
            found.append(exhibit("sae_confusion", figure=figure, accuracy=each.accuracy))
            for by, groups in (("manner", MANNER), ("place", PLACE)):
                shares = each.confusion_table(groups)
                own = {name: float(shares.loc[name, name]) for name in shares.index}
                about = {"by": by, "best": max(own.items(), key=lambda item: item[1])}
                figure = each.plot(groups)
                found.append(
                    exhibit("sae_groups", called=f"sae_confusion_{by}", figure=figure, **about)
                )
    return found
