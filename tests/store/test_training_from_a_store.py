"""A store trains autoencoders: several sites in one pass; a stopped run goes on where it was."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.data import Recording
from hooked_whisper.errors import StoreError
from hooked_whisper.sae import TopKConfig, TrainingConfig, train_sae, train_saes
from hooked_whisper.store import ActivationStore, Epochs, harvest

SITES = [f"encoder.blocks.{layer}.hook_resid_post" for layer in (0, 1)]

HEADS, TOKENS = "encoder.blocks.0.attn.hook_z", "decoder.blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def stored_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stored") / "store"


@pytest.fixture
def stored(tiny_model: Any, clips: Path, stored_in: Path) -> ActivationStore:
    """Positions and tokens of all clips, at three hooks."""
    if stored_in.exists():
        return ActivationStore(stored_in)
    recordings = [
        Recording(path.name, str(path), tokens=tuple(range(1, 3 + number % 7)))
        for number, path in enumerate(sorted(clips.iterdir()))
    ]
    hooks = [SITES[0], HEADS, TOKENS]
    return harvest(tiny_model, recordings, hooks, stored_in, dtype="fp32", n_workers=0)


def config(site: str, folder: Path | None = None, **changes: Any) -> TrainingConfig:
    options: dict[str, Any] = {"n_vectors": 288, "batch_size": 32, "lr": 3e-3, "folder": folder}
    return TrainingConfig(TopKConfig(d_in=24, d_sae=48, k=4, hook_name=site), **options | changes)


def test_a_store_trains_what_its_rows_train(
    small_harvest: Callable[..., ActivationStore], clips: Path, tmp_path: Path
) -> None:
    store = small_harvest(clips, tmp_path / "store")
    together = train_saes({site: config(site) for site in SITES}, store, progress=False)
    for site in SITES:
        stream = store.stream(SITES, 32, seed=0, n_epochs=None)
        batches = (batch[site] for batch in stream)
        alone = train_sae(config(site), batches, progress=False)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together[site].state_dict()[name], value, rtol=0, atol=0)


def test_a_store_comes_again_where_more_is_asked_for(stored: ActivationStore) -> None:
    n = 3 * stored.n_rows(SITES[0]) + 5
    alike = [
        train_sae(config(SITES[0], n_vectors=n), source, progress=False)
        for source in (stored, Epochs(stored))
    ]
    assert alike[0].cfg.metadata["training"]["n_vectors"] == n
    torch.testing.assert_close(alike[0].W_dec, alike[1].W_dec, rtol=0, atol=0)
    train_sae(config(HEADS, n_vectors=n), stored, progress=False)


def rows_given(source: Epochs, names: list[str], n_batches: int, **options: Any) -> list[Any]:
    batches = list(itertools.islice(source.stream(names, 16, **options), n_batches))
    return [{name: rows.tolist() for name, rows in batch.items()} for batch in batches]


@pytest.mark.parametrize("minutes", [None, 0.02], ids=["all", "some"])
def test_what_is_held_out_never_comes(
    minutes: float | None,
    stored: ActivationStore,
) -> None:
    store, site = stored, SITES[0]
    source = Epochs(store, held_out=0.3, minutes=minutes)
    entries = list(store.recordings())
    n = round(0.3 * len(entries))
    of_each = [store.of_recording(each.index, site)[site].float().tolist() for each in entries]
    n_batches = -(-store.n_rows(site) // 16)
    given = [row for batch in rows_given(source, [site], n_batches) for row in batch[site]]
    held_out = source.held_out([site])
    assert held_out is not None
    trained = [rows[0] in given for rows in of_each]
    judged = [rows[0] in held_out[site].tolist() for rows in of_each]
    assert sum(judged) == n and not any(a and b for a, b in zip(trained, judged, strict=True))
    seconds = sum(each.seconds for each, own in zip(entries, trained, strict=True) if own)
    assert source.minutes == pytest.approx(seconds / 60)
    if minutes is None:
        assert sum(trained) == len(entries) - n
    else:
        assert sum(trained) < len(entries) - n and source.minutes >= minutes
    wanted = [row for rows, own in zip(of_each, trained, strict=True) if own for row in rows]
    assert sorted(given) == sorted(wanted) and source.n_rows(site) == len(wanted)
    every = [row for rows, own in zip(of_each, judged, strict=True) if own for row in rows]
    assert held_out[site].tolist() == every
    assert len(source.held_out([site], n_most=3)[site]) == 3  # type: ignore[index]
    assert Epochs(store).held_out([site]) is None


def test_recordings_are_held_out_by_name(stored: ActivationStore) -> None:
    store, site = stored, SITES[0]
    entries = list(store.recordings())
    names = {entries[0].id, entries[2].id}
    source = Epochs(store, names)
    kept = [each for each in entries if each.id in names]
    held_out = source.held_out([site])
    assert held_out is not None and source.has_held_out
    rows = torch.cat([store.of_recording(each.index, site)[site].float() for each in kept])
    assert sorted(held_out[site].tolist()) == sorted(rows.tolist())
    assert source.n_rows(site) == store.n_rows(site) - len(rows)
    assert source.chosen["held_out"] == sorted(names)
    less = source.of_minutes(source.minutes / 2)
    assert torch.equal(less.held_out([site])[site], held_out[site])  # type: ignore[index]
    with pytest.raises(StoreError, match="held_out names 'nobody', which is no recording of"):
        Epochs(store, ["nobody"])
    with pytest.raises(StoreError, match="leaves none to train on"):
        Epochs(store, {each.id for each in entries})


def test_less_sound_is_part_of_more(stored: ActivationStore) -> None:
    store = stored
    whole = Epochs(store, held_out=0.3)
    parts = [whole.of_minutes(share * whole.minutes) for share in (0.3, 0.6, 1)]
    given = []
    for part in parts:
        batches = rows_given(part, SITES[:1], -(-store.n_rows(SITES[0]) // 16))
        given.append({tuple(row) for batch in batches for row in batch[SITES[0]]})
    assert given[0] < given[1] < given[2]
    kept = [part.held_out(SITES[:1])[SITES[0]] for part in parts]  # type: ignore[index]
    assert torch.equal(kept[0], kept[2])
    assert str(parts[0].chosen["minutes"])[:4] == str(0.3 * whole.minutes)[:4]


def test_hooks_of_both_stacks_train_in_one_pass(stored: ActivationStore) -> None:
    names, store = [SITES[0], TOKENS], stored
    cfgs = {name: config(name, n_vectors=100) for name in names}
    together = train_saes(cfgs, Epochs(store), progress=False)
    for name in names:
        alone = train_sae(cfgs[name], Epochs(store), progress=False)
        assert torch.equal(alone.W_dec, together[name].W_dec)
    every = rows_given(Epochs(store), names, 9)
    assert [list(batch) for batch in every[:2]] == [[names[0]], [names[1]]]
    for skip in range(5):
        assert rows_given(Epochs(store), names, 4, skip=skip) == every[skip : skip + 4]
    for which in (0, 1, 2):
        assert rows_given(Epochs(store), names, 3, turn=(which, 3)) == every[which::3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 1}, "which leaves none to train on"),
        ({"held_out": -0.1}, "held_out is -0.1"),
        ({"minutes": 1000}, "the recordings to train on have"),
    ],
    ids=["all", "negative", "minutes"],
)
def test_what_leaves_nothing_is_refused(
    options: dict[str, Any],
    message: str,
    stored: ActivationStore,
) -> None:
    with pytest.raises(StoreError, match=message):
        Epochs(stored, **options)


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
