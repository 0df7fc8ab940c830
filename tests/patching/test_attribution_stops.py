"""Attribution patching that is stopped, goes on, or cannot be done."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import (
    AlignmentError,
    HookNameError,
    InterventionError,
    MetricError,
    SiteError,
    SweepError,
)
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.tokens import LogitDifference, TokenRank
from hooked_whisper.metrics.transcripts import Repetition
from hooked_whisper.patching import attribution_patching
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.speech.mel import Mel

from .shared import DIFFERENCE, Stop, difference

N_FRAMES = torch.tensor([44])


def attribution_patch(*args: Any, n_steps: Any = 1, **options: Any) -> SweepResult:
    """By gradients, of one step unless told otherwise."""
    return attribution_patching.attribution_patch(*args, n_steps=n_steps, **options)


@pytest.fixture
def clean(tiny_mel: Tensor, tiny_tokens: Tensor) -> Example:
    return Example(Mel(tiny_mel[:1], N_FRAMES), tiny_tokens[:1])


@pytest.fixture
def corrupted(tiny_mel: Tensor, tiny_tokens: Tensor) -> Example:
    return Example(Mel(tiny_mel[1:], N_FRAMES), tiny_tokens[1:])


def test_leaves_no_gradient_and_no_frozen_parameter(
    fresh_model: Any, clean: Example, corrupted: Example
) -> None:
    needed = [parameter.requires_grad for parameter in fresh_model.parameters()]
    with torch.no_grad():
        attribution_patch(fresh_model, clean, corrupted, metric=difference)
    assert all(parameter.grad is None for parameter in fresh_model.parameters())

    def fails_later(logits: Tensor) -> Tensor:
        if logits.requires_grad:
            raise RuntimeError("in the pass with gradients")
        return difference(logits)

    with pytest.raises(RuntimeError, match="in the pass with gradients"):
        attribution_patch(fresh_model, clean, corrupted, metric=fails_later)
    assert [parameter.requires_grad for parameter in fresh_model.parameters()] == needed
    assert not any(point.is_hooked for point in fresh_model.hook_dict.values())


# The metric is read in both runs of each pair, and in each pass with gradients.
STOPPED: dict[str, tuple[dict[str, Any], int, int]] = {
    # options, calls before it is stopped, passes with gradients before it is stopped
    "between pairs": ({}, 2 + 1 + 2, 1),
    "between steps along inputs": ({"n_steps": 3}, 2 + 3 + 2 + 2, 5),
    "between steps along sites": ({"n_steps": 2, "along": "sites"}, 2 + 3, 3),
    "before anything": ({}, 1, 0),
}


@pytest.mark.parametrize(("options", "after", "n_passes"), STOPPED.values(), ids=STOPPED)
def test_ctrl_c_keeps_what_is_done_and_it_goes_on(
    tiny_model: Any,
    clean: Example,
    corrupted: Example,
    tmp_path: Path,
    options: dict[str, Any],
    after: int,
    n_passes: int,
    capsys: Any,
) -> None:
    pairs, names = ([clean, corrupted], [corrupted, clean]), "decoder.blocks.[01].hook_mlp_out"
    whole = attribution_patch(tiny_model, *pairs, names, metric=Stop(10**6), **options)
    found = attribution_patch(tiny_model, *pairs, names, metric=Stop(after), **options)
    assert not found.complete and whole.complete and not whole.held
    message = f"stopped after {found.n_done} of 4 patches; pass resume=result"
    assert message in capsys.readouterr().err
    found.save(tmp_path / "estimate")
    found = SweepResult.load(tmp_path / "estimate")
    stop = Stop(10**6)
    rest = attribution_patch(tiny_model, *pairs, names, metric=stop, resume=found, **options)
    assert torch.equal(rest.values, whole.values) and not found.complete
    assert torch.equal(rest.clean, whole.clean) and torch.equal(rest.corrupted, whole.corrupted)
    n_steps = options.get("n_steps", 1) * (2 if "along" in options else 1)
    n_pairs_left = 2 if n_passes < n_steps else 1
    assert 10**6 - stop.left == 2 * n_pairs_left + 2 * n_steps - n_passes
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_an_error_on_the_way_keeps_what_is_done(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    pairs = [clean, clean], [corrupted, corrupted]
    with pytest.raises(SweepError, match=r"after 5 of 10 patches: RuntimeError") as caught:
        attribution_patch(tiny_model, *pairs, metric=Stop(4, RuntimeError))
    assert caught.value.result.n_done == 5


def test_it_is_not_resumed_with_something_else(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    options: dict[str, Any] = {"metric": difference, "n_steps": 1}
    earlier = attribution_patch(tiny_model, clean, corrupted, MID, **options)
    for changes, message in (
        ({"n_steps": 2}, "other estimate: 'gradient of the base run', not 'gradients of 2 steps"),
        ({"metric": DIFFERENCE}, "other metric: 'difference'"),
        ({"corrupted": clean}, "other patched runs"),
        ({"per": "pos"}, "other axes"),
    ):
        given = {"clean": clean, "corrupted": corrupted, "names_filter": MID, **options, **changes}
        with pytest.raises(InterventionError, match=message):
            attribution_patch(tiny_model, resume=earlier, **given)


def _never(logits: Tensor) -> Tensor:
    raise AssertionError("computed before the input was checked")


MID = "encoder.blocks.0.hook_resid_mid"
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such hook": ({"names_filter": "encoder.hook_resid"}, HookNameError, r"no hook 'encoder"),
    "no heads": ({"names_filter": MID, "per": "head"}, SiteError, r"no heads"),
    "no time": ({"per": "window", "window_s": 0.1}, SiteError, r"none of which is the recording's"),
    "no steps": ({"n_steps": 0}, InterventionError, r"n_steps is 0"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(
    tiny_model: Any, clean: Example, corrupted: Example, options: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        attribution_patch(tiny_model, clean, corrupted, metric=_never, **options)


def test_wrong_runs_and_metrics(tiny_model: Any, clean: Example, corrupted: Example) -> None:
    shorter = corrupted.with_tokens(corrupted.tokens[:, :-1])
    with pytest.raises(AlignmentError, match=r"7 tokens and the corrupted one 6"):
        attribution_patch(tiny_model, clean, shorter, metric=_never)
    with pytest.raises(MetricError, match=r"judges a text, which has no gradient"):
        attribution_patch(tiny_model, clean, corrupted, metric=Repetition())
    with pytest.raises(MetricError, match=r"TokenRank has no gradient"):
        attribution_patch(tiny_model, clean, corrupted, metric=TokenRank(token=3))
    with pytest.raises(MetricError, match=r"shape \(1, 7\)"):
        attribution_patch(tiny_model, clean, corrupted, metric=lambda logits: logits[..., 0])
    with pytest.raises(MetricError, match=r"reads position 7"):
        attribution_patch(tiny_model, clean, corrupted, metric=LogitDifference(3, 5, pos=7))
    with (
        torch.inference_mode(),
        pytest.raises(InterventionError, match=r"leave torch.inference_mode"),
    ):
        attribution_patch(tiny_model, clean, corrupted, metric=_never)
