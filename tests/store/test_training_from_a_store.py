"""A store trains autoencoders: several sites in one pass; a stopped run goes on where it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.errors import StoreError
from hooked_whisper.sae import TopKConfig, TrainingConfig, train_sae, train_saes
from hooked_whisper.store import ActivationStore

SITES = [f"encoder.blocks.{layer}.hook_resid_post" for layer in (0, 1)]


def config(site: str, folder: Path | None = None, **changes: Any) -> TrainingConfig:
    options: dict[str, Any] = {"n_vectors": 300, "batch_size": 32, "lr": 3e-3, "folder": folder}
    return TrainingConfig(TopKConfig(d_in=24, d_sae=48, k=4, hook_name=site), **options | changes)


def test_a_store_trains_what_its_rows_train(
    small_harvest: Callable[..., ActivationStore], clips: Path, tmp_path: Path
) -> None:
    store = small_harvest(clips, tmp_path / "store")
    together = train_saes({site: config(site) for site in SITES}, store, progress=False)
    for site in SITES:
        batches = (batch[site] for batch in store.stream(SITES, 32, seed=0))
        alone = train_sae(config(site), batches, progress=False)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together[site].state_dict()[name], value, rtol=0, atol=0)


def test_a_run_that_was_stopped_goes_on(
    small_harvest: Callable[..., ActivationStore], clips: Path, tmp_path: Path
) -> None:
    store = small_harvest(clips, tmp_path / "store")
    site, folder = SITES[0], tmp_path / "sae"
    whole = train_sae(config(site, n_vectors=288), store, progress=False)

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    stopped = config(site, folder, n_vectors=288, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        train_sae(stopped, store, progress=False, on_log=stop)
    resumed = train_sae(stopped, store, progress=False, resume=True)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_a_spliced_model_is_not_harvested_unnoticed(
    tiny_model: Any,
    small_harvest: Callable[..., ActivationStore],
    plain_autoencoder: Callable[..., Any],
    clips: Path,
    tmp_path: Path,
) -> None:
    with tiny_model.saes({SITES[0]: plain_autoencoder(24)}):
        with pytest.raises(StoreError, match="has hooks or an SAE"):
            small_harvest(clips, tmp_path / "store")
        latents = f"{SITES[0]}.hook_sae_acts_post"
        store = small_harvest(clips, tmp_path / "store", [latents], note="a plain SAE at block 0")
        assert store.row_shape(latents) == (10,)
