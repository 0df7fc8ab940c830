"""Training where a few vectors are many times as long as the others, in each of its ways."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae import (
    BatchTopKConfig,
    ReLUConfig,
    TopKConfig,
    TrainingConfig,
    TranscoderConfig,
    load_sae,
    train_sae,
)
from hooked_whisper.sae.base import SAEConfig

Make = Callable[..., Iterator[Tensor]]

SIZE, EVERY = 64, 16
CONFIGS = {
    "topk": TopKConfig(d_in=16, d_sae=32, k=2),
    "relu": ReLUConfig(d_in=16, d_sae=32),
    "batchtopk": BatchTopKConfig(d_in=16, d_sae=32, k=2),
}


def spiked(sparse_batches: Make, n: int = 6) -> list[Tensor]:
    """Batches of which every 16th vector is about thirty times as long."""
    noise = torch.randn(n, SIZE, 16, generator=torch.Generator().manual_seed(2))
    batches = [x + own for x, own in zip(sparse_batches(n, SIZE), noise, strict=True)]
    for x in batches:
        x[::EVERY] *= 30
    return batches


def usual(x: Tensor) -> Tensor:
    return x[[row for row in range(len(x)) if row % EVERY]]


def trained(sae: SAEConfig, batches: list[Tensor], size: int = SIZE, **options: Any) -> Any:
    cfg = TrainingConfig(sae, n_steps=len(batches), batch_size=size, lr=2e-3, **options)
    return train_sae(cfg, batches, progress=False)


def same(one: Any, other: Any, rtol: float = 0.0) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=rtol, atol=rtol, msg=name)


@pytest.mark.parametrize("sae", CONFIGS.values(), ids=CONFIGS.keys())
def test_excluded_they_might_not_be_there(sae: SAEConfig, sparse_batches: Make) -> None:
    batches = spiked(sparse_batches)
    without = trained(sae, [usual(x) for x in batches], size=60)
    same(trained(sae, batches, massive_activations="exclude"), without)
    assert not torch.equal(trained(sae, batches).W_enc, without.W_enc)


def test_pairs_are_excluded_together(sparse_batches: Make) -> None:
    batches = [(x, 3 * x) for x in spiked(sparse_batches)]
    sae = TranscoderConfig(d_in=16, d_sae=32, d_out=16, hook_name="a", hook_name_out="b")
    without = trained(sae, [(usual(x), usual(y)) for x, y in batches], size=60)
    same(trained(sae, batches, massive_activations="exclude"), without)


@pytest.mark.parametrize("sae", CONFIGS.values(), ids=CONFIGS.keys())
def test_clipped_they_are_so_in_use_too(
    sae: SAEConfig, sparse_batches: Make, tmp_path: Path
) -> None:
    batches = spiked(sparse_batches)
    longest = 3 * float(batches[0].norm(dim=1).median())
    factors = [x.norm(dim=1, keepdim=True).clamp_min(longest) / longest for x in batches]
    clipped = [x / factor for x, factor in zip(batches, factors, strict=True)]
    found = trained(sae, batches, massive_activations="clip")
    same(trained(sae, clipped), found, rtol=1e-5)
    assert found.cfg.max_activation_norm == pytest.approx(longest)
    found.save(tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    assert loaded.cfg.max_activation_norm == pytest.approx(longest)
    plain = trained(sae, clipped).inference()
    with torch.no_grad():
        for each in (found.inference(), loaded):
            recons = each(batches[1])
            torch.testing.assert_close(recons, plain(clipped[1]) * factors[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("how", ["constant_norm_rescale", "layer_norm"])
def test_normalized_the_errors_of_all_count_alike(how: str, sparse_batches: Make) -> None:
    batches = spiked(sparse_batches)
    cfg = TopKConfig(d_in=16, d_sae=32, k=2, normalize_activations=how)
    found = trained(cfg, batches, massive_activations="normalize")
    assert found.cfg.normalize_activations == how and found.cfg.max_activation_norm is None
    if how == "layer_norm":
        moved = [x - x.mean(1, keepdim=True) for x in batches]
        one_length = [x / x.std(1, keepdim=True) for x in moved]
    else:
        one_length = [4 * x / x.norm(dim=1, keepdim=True) for x in batches]
    plain = trained(CONFIGS["topk"], one_length, normalize=False)
    same(plain, found, rtol=1e-3)
    x = batches[2]
    with torch.no_grad():
        shift = x.mean(1, keepdim=True) * (how == "layer_norm")
        factor = x.std(1, keepdim=True) if shift.any() else x.norm(dim=1, keepdim=True) / 4
        wanted = plain(one_length[2]) * factor + shift
        torch.testing.assert_close(found(x), wanted, rtol=1e-2, atol=1e-2 * float(factor.max()))


def test_the_mode_of_normalizing_is_chosen_for_those_who_chose_none() -> None:
    cfg = TrainingConfig(CONFIGS["topk"], n_steps=1, massive_activations="normalize")
    assert cfg.sae.normalize_activations == "constant_norm_rescale"


def test_batchtopk_in_use_has_k_latents_with_the_weights_of_then(sparse_batches: Make) -> None:
    """Also after few steps, where a running mean of 0.01 a step is still that of the first."""
    batches = list(sparse_batches(12, 256))
    log: list[dict[str, Any]] = []
    options: dict[str, Any] = {"n_steps": 12, "batch_size": 256, "lr": 2e-2, "log_every": 1}
    cfg = TrainingConfig(CONFIGS["batchtopk"], **options)
    sae = train_sae(cfg, batches, progress=False, on_log=log.append, held_out=batches[-1])
    with torch.no_grad():
        used = sae.inference().encode(batches[-1])
    assert float((used > 0).sum(dim=1).float().mean()) == pytest.approx(2, abs=0.01)
    assert log[-1]["held_out_l0"] == pytest.approx(2, abs=0.01)
    assert all(abs(line["held_out_l0"] - 2) < 0.5 for line in log)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"massive_activations": "drop"}, "'drop'; it can be one of 'exclude', 'clip', 'normal"),
        ({"max_activation_norm_multiple": 1}, "max_activation_norm_multiple is 1; it must be a n"),
        ({"early_stopping": 0}, "early_stopping is 0; it must be a positive integer"),
    ],
    ids=["how", "multiple", "patience"],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SAEConfigError, match=message):
        TrainingConfig(CONFIGS["topk"], n_steps=1, **changes)


@pytest.mark.parametrize("how", ["clip", "normalize"])
def test_transcoders_are_neither_clipped_nor_normalized(how: str) -> None:
    sae = TranscoderConfig(d_in=4, d_sae=8, d_out=3)
    with pytest.raises(SAEConfigError, match="writes vectors of other lengths"):
        TrainingConfig(sae, n_steps=1, massive_activations=how)


def test_a_length_that_none_has_is_refused() -> None:
    with pytest.raises(SAEConfigError, match="max_activation_norm is -1; it must be a positive"):
        TopKConfig(d_in=4, d_sae=8, k=2, max_activation_norm=-1)
    with pytest.raises(SAEConfigError, match="'layer_norm' scales each vector anyhow"):
        TopKConfig(d_in=4, d_sae=8, k=2, max_activation_norm=1, normalize_activations="layer_norm")
