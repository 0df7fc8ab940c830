"""The autoencoder of a study: one that is given, or one that is trained on its recordings."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hooked_whisper.data.recordings import Recording
from hooked_whisper.errors import SpliceError, TrainingError
from hooked_whisper.model.splicing import splice_site
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.architectures.topk import TopKConfig
from hooked_whisper.sae.io.load import SHIPPED, load_sae, load_suite
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.logs import LOG_FILE
from hooked_whisper.sae.training.train import train_sae
from hooked_whisper.store.dataset import Epochs
from hooked_whisper.store.writer import harvest

STORE, SAE_FOLDER = "activations", "sae"
"""What a study's folder calls the store and the autoencoder that it trains."""
LATENTS_PER_WIDTH = 8
BATCH_SIZE, LEARNING_RATE = 1024, 1e-3


@dataclass(frozen=True)
class TrainingPlan:
    """How an autoencoder is to be trained.

    Args:
        hook_name: What it reads.
        n_latents: How many.
        k: How many are active at once.
        n_vectors: Activations to train on, the same ones again and again where there are fewer.
        seed: Of weights and order.
    """

    hook_name: str
    n_latents: int
    k: int
    n_vectors: int
    seed: int

    def config(self, d_in: int, folder: Path) -> TrainingConfig:
        """The same for `train_sae`.

        Raises:
            SAEConfigError: Sizes that no autoencoder can have.
        """
        sae = TopKConfig(d_in=d_in, d_sae=self.n_latents, hook_name=self.hook_name, k=self.k)
        return TrainingConfig(
            sae,
            n_vectors=self.n_vectors,
            batch_size=min(BATCH_SIZE, self.n_vectors),
            lr=LEARNING_RATE,
            dead_after_vectors=max(BATCH_SIZE, self.n_vectors // 10),
            seed=self.seed,
            folder=folder,
            checkpoint_every=500,
            log_every=max(1, self.n_vectors // BATCH_SIZE // 100),
        )


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """What a study looks at speech through.

    Args:
        sae: Anything with `encode` and `decode`.
        hook_name: What it reads.
        source: Where it comes from, in words.
        log: Of its training, where that was here.
        n_rows: Activations that it was trained on, each counted once.
    """

    sae: Any
    hook_name: str
    source: str
    log: tuple[dict[str, Any], ...] = ()
    n_rows: int | None = None


def given(model: HookedWhisper, sae: Any, hook_name: str | None) -> Autoencoder:
    """An autoencoder that the user has, once it is sure that it fits.

    Args:
        model: The model.
        sae: An autoencoder; or a file or folder with one; or a suite, of which
            that of the hook is taken: `"digits"`, or a folder.
        hook_name: What it reads; None is what the autoencoder says, or the last
            encoder layer that a suite has.

    Raises:
        SAEFileError: No autoencoder is there.
        SpliceError: It does not fit the model, or does not belong to the encoder.
        HookNameError: No such hook.
    """
    source = f"{type(sae).__name__}, given"
    if isinstance(sae, str | os.PathLike):
        source = f"given: {os.fspath(sae)}"
        sae = _loaded(model, sae, hook_name)
    site = splice_site(model, sae, hook_name).of_positions()
    if not site.hook_in.startswith("encoder.") or site.hook_out != site.hook_in:
        raise SpliceError(
            f"the autoencoder reads {site.hook_in!r} and writes {site.hook_out!r}; a study "
            "looks at one hook of the encoder, such as "
            f"'encoder.blocks.{model.cfg.n_audio_layers - 1}.hook_resid_post'."
        )
    return Autoencoder(sae, site.hook_in, source)


def _loaded(model: HookedWhisper, source: str | os.PathLike[str], hook_name: str | None) -> Any:
    path = Path(source).expanduser()
    is_suite = os.fspath(source) in SHIPPED or (
        path.is_dir() and any((each / "cfg.json").is_file() for each in path.iterdir())
    )
    if not is_suite:
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
    plan: TrainingPlan,
    folder: Path,
    *,
    progress: bool = True,
) -> Autoencoder:
    """An autoencoder of these recordings; goes on where a run before was interrupted.

    Args:
        model: The model.
        recordings: What to train on.
        plan: How.
        folder: Gets the store of activations and the autoencoder.
        progress: Show bars on stderr.

    Raises:
        StoreMismatchError: The folder holds activations of something else.
        TrainingError: The folder holds another training, or activations that are not finite.
    """
    store = harvest(
        model,
        list(recordings),
        plan.hook_name,
        folder / STORE,
        n_workers=0,
        progress=progress,
    )
    shape = store.row_shape(plan.hook_name)
    if len(shape) != 1:
        raise TrainingError(
            f"{plan.hook_name!r} has {shape} numbers at a position; an autoencoder needs one "
            "vector, as at hook_resid_post or hook_mlp_out."
        )
    (folder / SAE_FOLDER).mkdir(exist_ok=True)
    cfg = plan.config(shape[0], folder / SAE_FOLDER)
    sae = train_sae(cfg, Epochs(store), resume=True, progress=progress)
    log = pd.read_csv(folder / SAE_FOLDER / LOG_FILE).to_dict("records")
    n_rows = store.n_rows(plan.hook_name)
    source = f"trained here on {len(recordings)} recordings ({n_rows:,} positions)"
    return Autoencoder(sae.to(model.device), plan.hook_name, source, tuple(log), n_rows)
