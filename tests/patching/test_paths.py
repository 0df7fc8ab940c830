"""What path patching found is drawn, saved, kept when it is stopped, and gone on with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import (
    InterventionError,
    SweepError,
)
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.tokens import LogitDifference
from hooked_whisper.patching.path_patching import path_patch, path_patch_heads
from hooked_whisper.patching.paths import (
    Head,
    MLPLayer,
    PathEffects,
)
from hooked_whisper.patching.results import SweepResult

from .shared import DIFFERENCE, Stop

SENDERS = [
    Head("encoder", 0, 1),
    MLPLayer("encoder", 1),
    Head("decoder", 0, 2),
    Head("decoder", 1, 0, "cross_attn"),
    MLPLayer("decoder", 0),
]
"""One of each kind; together they reach every receiver below."""


def run_stopped(model: Any, clean: Example, corrupted: Example, stop: Stop) -> PathEffects:
    return path_patch_heads(model, clean, corrupted, "logits", stop, max_rows=2, progress=False)


def test_ctrl_c_keeps_what_is_done_and_it_goes_on(
    tiny_model: Any, clean: Example, corrupted: Example, tmp_path: Path, capsys: Any
) -> None:
    found = run_stopped(tiny_model, clean, corrupted, Stop(after=5))
    assert found.values.isnan().all(dim=0).tolist() == [False] * 3 + [True] * 18
    assert not found.complete and len(found.to_dataframe()) == 2 * 3
    assert "stopped after 6 of 42 paths; pass resume=result" in capsys.readouterr().err
    found.save(tmp_path / "paths")
    stop = Stop(after=10**6)
    options: dict[str, Any] = {"max_rows": 2, "progress": False}
    rest = path_patch(
        tiny_model,
        clean,
        corrupted,
        found.senders,
        "logits",
        stop,
        resume=PathEffects.load(tmp_path / "paths"),
        **options,
    )
    assert 10**6 - stop.left == 2 + 18  # the baselines are measured again
    whole = run_stopped(tiny_model, clean, corrupted, Stop(after=10**6))
    assert torch.equal(rest.values, whole.values) and rest.complete
    assert torch.equal(rest.clean, whole.clean) and torch.equal(rest.corrupted, whole.corrupted)
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_an_error_on_the_way_keeps_what_is_done(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    with pytest.raises(SweepError, match=r"after 6 of 42 paths: RuntimeError") as caught:
        run_stopped(tiny_model, clean, corrupted, Stop(after=5, error=RuntimeError))
    assert caught.value.result.n_done == 6
    with pytest.raises(RuntimeError):
        run_stopped(tiny_model, clean, corrupted, Stop(after=2, error=RuntimeError))
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_it_is_not_resumed_with_something_else(
    tiny_model: Any, make_model: Any, tiny_cfg: Any, clean: Example, corrupted: Example
) -> None:
    senders = [Head("decoder", 0, 2), MLPLayer("decoder", 1)]
    metric = LogitDifference(right=3, wrong=5, pos=-2)
    earlier = path_patch(tiny_model, clean, corrupted, senders, "logits", metric)
    given: dict[str, Any] = {
        "model": tiny_model,
        "clean": clean,
        "corrupted": corrupted,
        "senders": senders,
        "receivers": "logits",
        "metric": metric,
    }
    others: dict[str, tuple[Any, str]] = {
        "model": (make_model(tiny_cfg, seed=1), "other weights"),
        "clean": (Example(corrupted.mel, clean.tokens), "other runs put in"),
        "corrupted": (clean, "other patched runs"),
        "senders": (senders[:1], "other senders"),
        "receivers": (MLPLayer("decoder", 2), "other receivers"),
        "metric": (LogitDifference(right=4, wrong=5, pos=-2), "other metric's settings"),
        "direction": ("noising", "other direction"),
    }
    for what, (other, message) in others.items():
        with _nothing_runs(tiny_model), pytest.raises(InterventionError, match=message):
            path_patch(**{**given, what: other}, resume=earlier)
    with pytest.raises(InterventionError, match="is of type int; it must be PathEffects"):
        earlier.go_on_from(3)


def _nothing_runs(model: Any) -> Any:
    def never(value: Tensor, hook: Any) -> None:
        raise AssertionError("computed before the input was checked")

    return model.hooks(fwd_hooks=[("*.blocks.0.hook_resid_pre", never)])


def test_it_is_drawn_and_saved(
    tiny_model: Any, clean: Example, corrupted: Example, tmp_path: Path
) -> None:
    receivers = [
        Head("encoder", 1, 0).k,
        Head("decoder", 0, 0, "cross_attn").k,
        Head("decoder", 2, 0).v,
    ]
    found = path_patch(tiny_model, clean, corrupted, SENDERS, receivers, DIFFERENCE)
    found.save(tmp_path / "paths")
    read = PathEffects.load(tmp_path / "paths")
    assert torch.equal(read.values, found.values) and torch.equal(read.clean, found.clean)
    for what in ("axes", "senders", "receivers", "direction", "metric", "conditions"):
        assert getattr(read, what) == getattr(found, what)
    assert read.axes["sender"][3] == "decoder.1.cross_attn.0"
    assert repr(read) == "PathEffects(LogitDifference, denoising: 2 pair, 5 sender; 10 of 10 done)"
    assert found.best(1)[0]["effect"] == pytest.approx(float(found.effect().mean(dim=0).max()))
    figure = found.plot()
    titles = [axes.get_title(loc="left") for axes in figure.axes][:3]
    assert titles == ["encoder.attn, mlp", "decoder.attn, mlp", "decoder.cross_attn"]
    written = {text.get_text() for axes in figure.axes[:3] for text in axes.texts}
    assert written == {f"{value:.2f}" for value in found.mean(effect=True).tolist()}
    with pytest.raises(InterventionError, match=r"is no SweepResult\. Write one with"):
        SweepResult.load(tmp_path / "paths")


def test_it_shows_the_heatmap_and_the_best_senders(
    tiny_model: Any, clean: Example, corrupted: Example, shown: Callable[[Any], Any]
) -> None:
    result = path_patch(tiny_model, clean, corrupted, SENDERS[2:], "logits", DIFFERENCE)
    found = shown(result)
    assert len(found.all("img")) == 1
    assert [row[0] for row in found.rows[1:4]] == [each["sender"] for each in result.best()]
    assert found.rows[0] == ["sender", "layer", "kind", "head", "effect"]
