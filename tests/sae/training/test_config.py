from dataclasses import replace
from typing import Any

import pytest

from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.architectures.topk import TopKConfig
from hooked_whisper.sae.training.config import TrainingConfig

GOOD = TrainingConfig(TopKConfig(d_in=16, d_sae=32, k=4), n_vectors=1000, batch_size=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 3}, "both of n_vectors and n_steps"),
        ({"n_vectors": None}, "neither of n_vectors and n_steps"),
        ({"n_vectors": 0}, "n_vectors is 0; it must be a positive integer"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a positive integer"),
        ({"batch_size": None}, "batch_size is None"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": 0}, "lr is 0; it must be a positive number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"clip_grad_norm": -1.0}, "clip_grad_norm is -1.0"),
        ({"lr_warm_up": 1000}, "lr_warm_up is 1000; it is a share of all steps"),
        ({"lr_decay": -0.1}, "lr_decay is -0.1; it is a share"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\)"),
        ({"autocast": "fp16"}, "autocast is 'fp16'; it can be one of 'bf16', None"),
        ({"init_b_dec": "median"}, "it can be one of 'geometric_median', 'mean', 'zeros'"),
        ({"sae": {"k": 4}}, r"sae is {'k': 4}; it must be an autoencoder's configuration"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    changes: dict[str, Any], message: str, without_shape_checks: None
) -> None:
    with pytest.raises(SAEConfigError, match=message):
        replace(GOOD, **changes)


def test_k_above_the_width_is_refused() -> None:
    with pytest.raises(SAEConfigError, match=r"k is 33.*32"):
        TopKConfig(d_in=16, d_sae=32, k=33)


def test_two_normalisations_are_refused() -> None:
    sae = TopKConfig(d_in=16, d_sae=32, k=4, normalize_activations="layer_norm")
    with pytest.raises(SAEConfigError, match="Pass normalize=False"):
        TrainingConfig(sae, n_steps=1)
    assert TrainingConfig(sae, n_steps=1, normalize=False).sae is sae


@pytest.mark.parametrize(
    ("counts", "steps", "vectors"),
    [({"n_vectors": 130}, 3, 130), ({"n_vectors": 128}, 2, 128), ({"n_steps": 5}, 5, 320)],
    ids=["a smaller last batch", "whole batches", "steps"],
)
def test_steps_and_vectors(counts: dict[str, int], steps: int, vectors: int) -> None:
    cfg = TrainingConfig(GOOD.sae, batch_size=64, **counts)
    assert (cfg.total_steps, cfg.total_vectors) == (steps, vectors)
