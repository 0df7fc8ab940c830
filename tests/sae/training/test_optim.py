"""Dead latents, the beginning of a training, and the scale that is folded in at its end."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.architectures import ARCHITECTURES, make_sae
from hooked_whisper.sae.architectures.relu import ReLUConfig
from hooked_whisper.sae.training.optim import (
    DeadLatents,
    find_scale,
    first_b_dec,
    fold_scale_,
    geometric_median,
)


def test_latents_die_when_inactive_for_long_and_live_again() -> None:
    dead = DeadLatents(3, after_vectors=100)
    dead.update(torch.tensor([True, False, False]), 60)
    assert not dead.is_dead.any()
    dead.update(torch.tensor([False, False, True]), 60)
    assert dead.is_dead.tolist() == [False, True, False]
    assert dead.share(120) == pytest.approx(1 / 3) and dead.share(99) is None
    assert dead.never_active(120) == pytest.approx(1 / 3) == dead.share(120)
    dead.update(torch.tensor([False, True, False]), 60)
    assert dead.is_dead.tolist() == [True, False, False]


def test_no_other_point_has_less_distance_to_all() -> None:
    x = torch.randn(200, 3) ** 3 + torch.tensor([5.0, -2.0, 0.0])
    median = geometric_median(x)

    def distance(point: torch.Tensor) -> float:
        return float((x - point).norm(dim=1).double().sum())

    steps = torch.randn(100, 3) * torch.logspace(-3, 0, 100)[:, None]
    assert all(distance(median) <= distance(median + step) + 1e-3 for step in steps)
    assert distance(median) < distance(x.mean(dim=0)) - 1


def test_a_few_far_vectors_hardly_move_it() -> None:
    x = torch.randn(1000, 8) + 3
    x[:20] = 1e4
    assert (geometric_median(x) - 3).norm() < 0.3
    assert (x.mean(dim=0) - 3).norm() > 100


def test_it_may_lie_on_a_vector() -> None:
    torch.testing.assert_close(geometric_median(torch.full((5, 2), 7.0)), torch.full((2,), 7.0))


def test_scaled_vectors_are_as_long_as_the_root_of_their_width() -> None:
    x = torch.randn(500, 12) * 30 + 2
    assert (x * find_scale(x)).norm(dim=1).mean() == pytest.approx(12**0.5)
    assert find_scale(torch.zeros(3, 12)) == 1.0


def test_the_other_beginnings() -> None:
    x = torch.randn(50, 4)
    assert torch.equal(first_b_dec("mean", x), x.mean(dim=0))
    assert torch.equal(first_b_dec("zeros", x), torch.zeros(4))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folded_autoencoder_does_at_full_scale_what_it_did_on_scaled_data(name: str) -> None:
    config = ARCHITECTURES[name].Config
    names = [each.name for each in fields(config)]
    sizes: dict[str, Any] = {"k": 4, "matryoshka_widths": (6, 12), "d_out": 7}
    own = {key: value for key, value in sizes.items() if key in names}
    sae = make_sae(config(d_in=5, d_sae=12, **own), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for key, value in [*sae.named_parameters(), *sae.named_buffers()]:
            if key != "W_dec":
                value.abs_() if "threshold" in key else value.add_(0.1 * torch.rand_like(value))
    scale_in, scale_out = 0.02, 0.5 if sae.cfg.is_transcoder else 0.02
    x = 50 * torch.randn(40, 5)
    latents, recons = sae.encode(scale_in * x), sae(scale_in * x) / scale_out
    lengths = sae.W_dec.norm(dim=-1)
    fold_scale_(sae, scale_in, scale_out)
    torch.testing.assert_close(sae.encode(x), latents / scale_out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x), recons, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), lengths)
    assert (latents > 0).any() and (latents == 0).any()


def test_a_tied_encoder_stays_tied() -> None:
    sae = make_sae(ReLUConfig(d_in=5, d_sae=12, tied=True))
    x = 50 * torch.randn(40, 5)
    expected = sae(0.02 * x) / 0.02
    fold_scale_(sae, 0.02, 0.02)
    torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_a_weight_of_unknown_scale_is_refused() -> None:
    sae = make_sae(ReLUConfig(d_in=5, d_sae=12))
    sae.extra = nn.Parameter(torch.ones(3))
    with pytest.raises(TrainingError, match="'extra' of a ReLUSAE"):
        fold_scale_(sae, 2.0, 2.0)
