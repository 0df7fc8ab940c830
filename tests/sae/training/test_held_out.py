"""Training judged while it runs, on vectors that it never sees; and stopped where it gets worse."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae import (
    BatchTopKConfig,
    MemoryActivations,
    TopKConfig,
    TrainingConfig,
    train_sae,
    train_saes,
)

Make = Callable[..., Iterator[Tensor]]
TOPK = TopKConfig(d_in=16, d_sae=64, k=4, hook_name="hook")


def config(sae: Any = TOPK, **changes: Any) -> TrainingConfig:
    options: dict[str, Any] = {"n_steps": 40, "batch_size": 32, "lr": 1e-2, "log_every": 2}
    return TrainingConfig(sae, **options | changes)


@pytest.mark.parametrize(
    "sae", [TOPK, BatchTopKConfig(d_in=16, d_sae=64, k=4)], ids=["topk", "batchtopk"]
)
def test_the_last_line_says_what_the_result_does(sae: Any, sparse_batches: Make) -> None:
    log: list[dict[str, Any]] = []
    kept = next(sparse_batches(1, 3000, seed=5))
    kept[::7] *= 10
    found = train_sae(
        config(sae), sparse_batches(40, 32), held_out=kept, progress=False, on_log=log.append
    )
    with torch.no_grad():
        latents = found.inference().encode(kept)
        error = (found.inference().decode(latents) - kept).square().sum(1)
    usual = kept.norm(dim=1) <= 3 * kept.norm(dim=1).median()
    assert 0 < int((~usual).sum()) < 600
    line = log[-1]
    for name, which in (("fvu", usual | True), ("fvu_without_massive", usual)):
        spread = (kept[which] - kept[which].mean(0)).square().sum()
        assert line[f"held_out_{name}"] == pytest.approx(
            float(error[which].sum() / spread), rel=1e-3
        )
    assert line["held_out_l0"] == pytest.approx(float((latents != 0).sum() / 3000), rel=1e-3)
    never = float((latents == 0).all(dim=0).float().mean())
    assert line["held_out_never_active"] == pytest.approx(never, abs=0.02)
    assert found.cfg.metadata["training"]["held_out_fvu"] == line["held_out_fvu"]


def by_heart(folder: Path | None = None, **changes: Any) -> TrainingConfig:
    """A training that learns a few vectors by heart."""
    changes = {"n_steps": 200, "early_stopping": 3, "folder": folder, **changes}
    return config(lr_decay=0.0, **changes)


def test_it_stops_where_it_gets_worse_and_keeps_the_best(sparse_batches: Make) -> None:
    few, kept = next(sparse_batches(1, 32)), next(sparse_batches(1, 500, seed=5))
    log: list[dict[str, Any]] = []
    source = MemoryActivations({"hook": few})
    options: dict[str, Any] = {"progress": False, "on_log": log.append, "held_out": kept}
    found = train_sae(by_heart(), source, **options)
    judged = [line["held_out_fvu"] for line in log]
    assert judged.index(min(judged)) == len(judged) - 4 and log[-1]["step"] < 200
    with torch.no_grad():
        error = (found(kept) - kept).square().sum()
    fvu = float(error / (kept - kept.mean(0)).square().sum())
    assert fvu == pytest.approx(min(judged), rel=1e-4)
    assert found.cfg.metadata["training"]["held_out_fvu"] == min(judged)


@pytest.mark.parametrize("n", [1, 4, 5, 6])
def test_stopped_and_gone_on_with_it_comes_to_the_same(
    n: int, sparse_batches: Make, tmp_path: Path
) -> None:
    few, kept = next(sparse_batches(1, 32)), next(sparse_batches(1, 500, seed=5))
    source = MemoryActivations({"hook": few})
    whole = train_sae(by_heart(), source, held_out=kept, progress=False)

    def stop(line: dict[str, Any]) -> None:
        if line["step"] > 2 * n:
            raise KeyboardInterrupt

    cfg = by_heart(tmp_path / "sae")
    with pytest.raises(KeyboardInterrupt):
        train_sae(cfg, source, held_out=kept, progress=False, on_log=stop)
    for _ in range(2):  # and once more when it is done
        resumed = train_sae(cfg, source, held_out=kept, progress=False, resume=True)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert (
        resumed.cfg.metadata["training"]["held_out_fvu"]
        == (whole.cfg.metadata["training"]["held_out_fvu"])
    )


def test_what_is_held_out_changes_no_training(sparse_batches: Make) -> None:
    kept = next(sparse_batches(1, 500, seed=5))
    one = train_sae(config(), sparse_batches(40, 32), held_out=kept, progress=False)
    other = train_sae(config(), sparse_batches(40, 32), progress=False)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_each_of_several_is_judged_on_its_own_hook(sparse_batches: Make) -> None:
    x, kept = next(sparse_batches(1, 200)), next(sparse_batches(1, 100, seed=5))
    log: list[dict[str, Any]] = []
    sae = TopKConfig(d_in=16, d_sae=64, k=4, hook_name="other")
    train_saes(
        {"a": config(), "b": config(sae)},
        MemoryActivations({"hook": x, "other": 2 * x}),
        held_out={"hook": kept},
        progress=False,
        on_log=log.append,
    )
    assert {line["sae"] for line in log if "held_out_fvu" in line} == {"a"}


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (None, "early_stopping is 3, and nothing is held out"),
        (torch.zeros(1, 16), "1 vectors are held out"),
        (torch.zeros(5, 8), r"that are held out is \(5, 8\)"),
    ],
    ids=["none", "one", "width"],
)
def test_what_cannot_be_judged_on_is_refused(
    held_out: Any, message: str, sparse_batches: Make
) -> None:
    with pytest.raises(TrainingError, match=message):
        train_sae(by_heart(), sparse_batches(5), held_out=held_out, progress=False)
