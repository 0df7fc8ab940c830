"""What a sweep refuses, before it computes anything."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import Mel
from hooked_whisper.errors import (
    AlignmentError,
    HookNameError,
    InterventionError,
    MetricError,
    SiteError,
)
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.metrics import as_metric
from hooked_whisper.interventions.sweep import patch_sweep

N_POS = 7
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


def make_example(model: Any, seed: int, n_rows: int = 1) -> Example:
    generator = torch.Generator().manual_seed(seed)
    shape = (n_rows, model.cfg.n_mels, model.cfg.n_frames)
    values = torch.randn(shape, generator=generator).clamp(-1, 1)
    tokens = torch.randint(0, model.cfg.d_vocab, (n_rows, N_POS), generator=generator)
    return Example(Mel(values, torch.full((n_rows,), model.cfg.n_frames)), tokens)


@pytest.fixture
def pair(tiny_model: Any) -> tuple[Example, Example]:
    return make_example(tiny_model, 1), make_example(tiny_model, 2)


def whole_text(logits: Tensor) -> Tensor:
    """A metric to which every logit of every position matters."""
    weights = torch.linspace(-1, 1, logits[0].numel()).view(logits.shape[1:])
    return (logits.softmax(-1) * weights).sum(dim=(1, 2))


METRICS = {
    "every-position": as_metric(whole_text),
    "last": as_metric(lambda logits: logits[:, 0, 3] - logits[:, 0, 5], positions=[-1]),
    "two": as_metric(lambda logits: logits[:, 0, 3] - logits[:, 1, 5], positions=[2, -3]),
}


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
        "metric": METRICS["last"],
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
            metric=METRICS["last"],
            per="window",
            parts=[(0.5, 9.0)],
            progress=False,
        )


def test_runs_of_other_lengths(tiny_model: Any, pair: tuple[Example, Example]) -> None:
    clean, corrupted = pair
    shorter = corrupted.with_tokens(corrupted.tokens[:, :4])
    with pytest.raises(AlignmentError, match="7 tokens and the corrupted one 4"):
        patch_sweep(
            tiny_model, clean, shorter, "decoder.*resid_pre", metric=whole_text, progress=False
        )
    two = make_example(tiny_model, 5, 2)
    with pytest.raises(AlignmentError, match="1 clean runs and 2 corrupted"):
        patch_sweep(tiny_model, clean, two, "decoder.*resid_pre", metric=whole_text, progress=False)
