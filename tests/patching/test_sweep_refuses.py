"""What a sweep refuses, before it computes anything."""

from collections.abc import Callable
from typing import Any

import pytest

from hooked_whisper.errors import (
    AlignmentError,
    HookNameError,
    InterventionError,
    MetricError,
    SiteError,
)
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import as_metric
from hooked_whisper.patching.sweep import patch_sweep

LAST = as_metric(lambda logits: logits[:, 0, 3] - logits[:, 0, 5], positions=[-1])


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no-such-hook": (
        {"names_filter": "decoder.blocks.0.hook_rsid_pre"},
        HookNameError,
        "resid_pre",
    ),
    "hidden-by-flag": (
        {"names_filter": "decoder.blocks.0.attn.hook_result"},
        HookNameError,
        "use_attn_result",
    ),
    "no-heads-there": ({"per": "head"}, SiteError, "no heads"),
    "no-time-there": ({"per": "window", "window_s": 0.1}, SiteError, "recording's time"),
    "position-beyond": ({"per": "pos", "parts": [99]}, AlignmentError, "no position 99"),
    "empty": ({"per": "pos", "parts": []}, InterventionError, "empty sweep"),
    "unknown-per": ({"per": "layer"}, InterventionError, "per is 'layer'"),
    "unknown-direction": ({"direction": "both"}, InterventionError, "direction is 'both'"),
    "no-metric": ({"metric": 3}, MetricError, "no metric"),
    "scalar-metric": ({"metric": lambda x: x.mean()}, MetricError, "shape"),
    "nan-metric": ({"metric": lambda x: x[:, -1, 0] * float("nan")}, MetricError, "[nN]a[nN]"),
    "no-memory": ({"max_bytes": 0}, InterventionError, "max_bytes is 0"),
    "no-example": ({"clean": 7}, InterventionError, "int given"),
    "zero-denoised": ({"corrupted": "zero"}, InterventionError, "noising"),
}


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD.keys())
def test_bad_input(
    tiny_model: Any, pair: tuple[Example, Example], change: dict[str, Any], error: Any, match: str
) -> None:
    arguments: dict[str, Any] = {
        "clean": pair[0],
        "corrupted": pair[1],
        "names_filter": "decoder.blocks.*.hook_resid_*",
        "metric": LAST,
        "progress": False,
    }
    with pytest.raises(error, match=match):
        patch_sweep(tiny_model, **{**arguments, **change})


def test_a_window_outside_the_clip(tiny_model: Any, pair: tuple[Example, Example]) -> None:
    with pytest.raises(SiteError, match=r"0\.5 to 9\.0 s; it must lie in 0 to 0\.6 s"):
        patch_sweep(
            tiny_model,
            *pair,
            "encoder.blocks.*.hook_resid_post",
            metric=LAST,
            per="window",
            parts=[(0.5, 9.0)],
            progress=False,
        )


def test_runs_of_other_lengths(
    tiny_model: Any, pair: tuple[Example, Example], make_example: Callable[..., Example]
) -> None:
    clean, corrupted = pair
    shorter = corrupted.with_tokens(corrupted.tokens[:, :4])
    with pytest.raises(AlignmentError, match="7 tokens and the corrupted one 4"):
        patch_sweep(tiny_model, clean, shorter, "decoder.*resid_pre", metric=LAST, progress=False)
    two = make_example(tiny_model, 5, 2)
    with pytest.raises(AlignmentError, match="1 clean runs and 2 corrupted"):
        patch_sweep(tiny_model, clean, two, "decoder.*resid_pre", metric=LAST, progress=False)
