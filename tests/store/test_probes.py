"""Probes find what is there, not what is not, and never see what they are judged on."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.data import Recording
from hooked_whisper.errors import ProbeError
from hooked_whisper.store import ActivationStore

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from hooked_whisper.store.probes import probe

HOOK = "encoder.blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, make_model: Any, tiny_cfg: Any
) -> ActivationStore:
    """Forty tones, high or low, by four speakers; loudness changes in the middle."""
    from hooked_whisper.store import harvest

    rng, recordings = np.random.default_rng(0), []
    time_s = np.arange(6400) / 16_000
    for number in range(40):
        is_high = number % 2
        tone = np.sin(2 * np.pi * (3000 if is_high else 300) * time_s)
        tone[3200:] *= 0.05
        change_s = 0.215 if is_high else 0.205  # before and behind the middle of 20 ms
        sound = (0.2 * tone + 0.01 * rng.standard_normal(6400)).astype(np.float32)
        labels = {
            "pitch": "high" if is_high else "low",
            "hertz": 3000 if is_high else 300,
            "coin": str(rng.integers(2)),
            "speaker": f"s{number // 2 % 4}",
            "part": [[0.0, change_s, "loud"], [change_s, 0.4, "soft"]],
            "same": "x",
        }
        recordings.append(Recording(f"r{number}", (sound, 16_000), labels))
    folder = tmp_path_factory.mktemp("probes") / "store"
    hooks = [HOOK, "encoder.hook_embed", "encoder.hook_mel"]
    return harvest(make_model(tiny_cfg), recordings, hooks, folder, dtype="fp32", n_workers=0)


@pytest.mark.parametrize("kind", ["logistic", "ridge_classifier"])
@pytest.mark.parametrize("pooling", ["mean", "frame"])
@pytest.mark.parametrize("split_by", [None, "speaker"])
def test_what_is_there_is_found(
    store: ActivationStore, kind: Any, pooling: Any, split_by: str | None
) -> None:
    result = probe(store, HOOK, "pitch", kind=kind, pooling=pooling, split_by=split_by, n_folds=4)
    assert result.scores[0].score > 0.9
    assert result.n_samples == (40 if pooling == "mean" else 800)
    assert result.n_groups == (4 if split_by else 40)
    baselines = {each.features.split()[0]: each.score for each in result.baselines}
    assert baselines["majority"] <= 0.55
    assert baselines["shuffled"] < 0.8
    assert baselines["mel"] > 0.9


def test_what_is_not_there_is_not_found(store: ActivationStore) -> None:
    """With every frame of a recording on one side, a coin's flips cannot be learnt."""
    result = probe(store, HOOK, "coin", pooling="frame")
    assert result.scores[0].low < 0.6 < 0.5 + result.scores[0].high
    assert result.scores[0].score < 0.75
    majority = result.baselines[0]  # right or wrong of whole recordings, of which there are 40
    assert majority.features == "majority" and majority.high - majority.low > 0.2


def test_labels_in_time(store: ActivationStore) -> None:
    frames = probe(store, HOOK, "part", pooling="frame")
    assert frames.n_samples == 800
    assert frames.scores[0].score > 0.9
    pooled = probe(store, HOOK, "part")
    assert pooled.n_samples == 80
    assert pooled.classes == ("loud", "soft")


def test_numbers_by_ridge_regression(store: ActivationStore) -> None:
    result = probe(store, "encoder.*", "hertz", kind="ridge")
    assert result.metric == "R²"
    assert [each.features for each in result.scores] == ["encoder.hook_embed", HOOK]
    assert result.scores[0].score > 0.9
    assert result.scores[0].low <= result.scores[0].score <= result.scores[0].high
    assert result.baselines[0].score < 0.05


def test_no_recording_is_on_both_sides(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hooked_whisper.store import probes

    seen: list[Any] = []
    real = probes._Judge

    def watched(*args: Any) -> Any:
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(probes, "_Judge", watched)
    probe(store, HOOK, "pitch", pooling="frame", split_by="speaker", n_folds=4)
    (judge,) = seen
    assert sorted(np.concatenate([test for _, test in judge.folds])) == list(range(800))
    for train, test in judge.folds:
        assert not set(judge.samples.groups[train]) & set(judge.samples.groups[test])


def test_features_are_means_of_rows(store: ActivationStore) -> None:
    from hooked_whisper.store.probe_data import gather_samples, mel_features

    samples = gather_samples(store, [HOOK], "pitch", pooled=True, split_by=None, most=10**6, seed=0)
    for number in (0, 7, 39):
        own = store.of_recording(number, HOOK)[HOOK].mean(dim=0)
        torch.testing.assert_close(torch.from_numpy(samples.features(store, HOOK)[number]), own)
        mel = store.of_recording(number, "encoder.hook_mel")["encoder.hook_mel"].mean(dim=0)
        found = mel_features(store, samples)
        assert found is not None
        torch.testing.assert_close(torch.from_numpy(found[number]), mel)


@pytest.mark.parametrize(
    ("recording", "n_loud"), [(0, 10), (1, 11)], ids=["changes early", "changes late"]
)
def test_rows_are_labelled_by_the_middle_of_their_20_ms(
    store: ActivationStore, recording: int, n_loud: int
) -> None:
    from hooked_whisper.store.probe_data import gather_samples

    options: Any = dict(split_by=None, most=10**6, seed=0)
    rows = gather_samples(store, [HOOK], "part", pooled=False, **options)
    own = [value for value, of in zip(rows.values, rows.recordings, strict=True) if of == recording]
    assert own == ["loud"] * n_loud + ["soft"] * (20 - n_loud)

    intervals = gather_samples(store, [HOOK], "part", pooled=True, **options)
    first, second = 20 * recording + np.array([0, n_loud]), 20 * recording + np.array([n_loud, 20])
    for number, span in enumerate((first, second), start=2 * recording):
        assert intervals.spans[number] == tuple(span)
        assert intervals.mel_spans[number] == tuple(2 * span)


def test_table_and_plot(store: ActivationStore, tmp_path: Path) -> None:
    result = probe(store, "encoder.*", "pitch")
    table = result.table()
    assert list(table.columns) == ["features", "score", "low", "high"]
    assert len(table) == 5
    axes = result.plot().axes[0]
    assert axes.get_ylabel() == "accuracy for pitch"
    labels = [each.get_text() for each in axes.get_xticklabels()]
    assert labels == ["encoder embed", "encoder 0 resid_post"]


@pytest.mark.parametrize(
    ("label", "options", "match"),
    [
        ("colour", {}, "the label 'colour'. Its recordings have coin, hertz"),
        ("same", {}, "'x' everywhere; a probe needs two classes"),
        ("pitch", {"kind": "ridge"}, "values that are no numbers"),
        ("pitch", {"split_by": "speaker"}, "n_folds is 5; there are 4 values of 'speaker'"),
        ("pitch", {"split_by": "colour"}, "has no label 'colour' to split by"),
        ("pitch", {"split_by": "pitch", "n_folds": 2}, "leaves a part with one class only"),
    ],
)
def test_labels_that_cannot_be_learnt(
    store: ActivationStore, label: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ProbeError, match=match):
        probe(store, HOOK, label, **options)


def test_without_scikit_learn_it_says_what_to_install(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ProbeError, match=r"pip install 'hooked-whisper\[probes\]'"):
        probe(store, HOOK, "pitch")
