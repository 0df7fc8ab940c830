import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.architectures import make_sae
from hooked_whisper.sae.architectures.relu import ReLUConfig, ReLUSAE
from hooked_whisper.sae.architectures.topk import TopKConfig, TopKSAE
from hooked_whisper.sae.base import SAEConfig
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.optim import geometric_median
from hooked_whisper.sae.training.train import train_sae, train_saes

Make = Callable[..., Iterator[Tensor]]

TOPK = TopKConfig(d_in=16, d_sae=32, k=2, aux_loss_coefficient=0.0)
RELU = ReLUConfig(d_in=16, d_sae=32, l1_coefficient=1.0)
PLAIN: dict[str, Any] = {
    "batch_size": 64,
    "lr": 2e-3,
    "lr_warm_up": 0.0,
    "lr_decay": 0.0,
    "sparsity_warm_up": 0.0,
}


def quick(cfg: TrainingConfig, activations: Any, **options: Any) -> Any:
    return train_sae(cfg, activations, progress=False, **options)


def fvu(sae: Any, x: Tensor) -> float:
    with torch.no_grad():
        return float((sae(x) - x).square().sum() / (x - x.mean(dim=0)).square().sum())


# What is learned


def by_hand(sae: SAEConfig, batches: list[Tensor], clip: float) -> dict[str, Tensor]:
    """The same training written out: autograd on the formula, torch's Adam."""
    start = make_sae(sae, torch.Generator().manual_seed(0))
    W_enc, W_dec = start.W_enc.detach().clone(), start.W_dec.detach().clone()
    b_enc = start.b_enc.detach().clone()
    scale = 4 / float(batches[0].norm(dim=1).mean())
    b_dec = geometric_median(batches[0] * scale)
    weights = [w.requires_grad_() for w in (W_enc, b_enc, W_dec, b_dec)]
    adam = torch.optim.Adam(weights, lr=2e-3, foreach=False)
    for x in batches:
        x = x * scale
        pre = (x - b_dec) @ W_enc + b_enc
        if isinstance(sae, TopKConfig):
            kth = pre.topk(sae.k).values[:, -1:]
            latents = torch.where(pre >= kth, pre, torch.zeros_like(pre)).relu()
            loss = 0.0
        else:
            assert isinstance(sae, ReLUConfig)
            latents = pre.relu()
            loss = sae.l1_coefficient * (latents * W_dec.norm(dim=1)).sum() / len(x)
        loss = loss + (latents @ W_dec + b_dec - x).square().sum() / len(x)
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            along = (W_dec.grad * W_dec).sum(dim=1, keepdim=True)
            W_dec.grad -= along * W_dec / W_dec.square().sum(dim=1, keepdim=True)
        torch.nn.utils.clip_grad_norm_(weights, clip)
        adam.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
    return {"W_enc": W_enc, "b_enc": b_enc / scale, "W_dec": W_dec, "b_dec": b_dec / scale}


@pytest.mark.parametrize("clip", [1.0, 1e6], ids=["clipped", "whole gradients"])
@pytest.mark.parametrize("sae", [TOPK, RELU], ids=["topk", "relu"])
def test_it_is_the_loop_written_out(sae: SAEConfig, clip: float, sparse_batches: Make) -> None:
    batches = list(sparse_batches(12))
    trained = quick(TrainingConfig(sae, n_steps=12, clip_grad_norm=clip, **PLAIN), batches)
    for name, expected in by_hand(sae, batches, clip).items():
        found = getattr(trained, name).detach()
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("sae", [TOPK, RELU], ids=["topk", "relu"])
def test_it_finds_the_directions_that_the_data_are_made_of(
    sae: SAEConfig, sparse_batches: Make, directions: Tensor, without_shape_checks: None
) -> None:
    log: list[dict[str, Any]] = []
    cfg = TrainingConfig(sae, n_steps=200, batch_size=128, lr=1e-2, log_every=50)
    trained = quick(cfg, sparse_batches(200, 128), on_log=log.append)
    similarity = normalize(directions) @ normalize(trained.W_dec.detach()).T
    assert similarity.amax(dim=1).mean() > 0.9
    numbers = [line["fvu"] for line in log]
    assert numbers[-1] < 0.25 < numbers[0]
    fresh = next(sparse_batches(1, 2000, seed=9))
    assert fvu(trained, fresh) == pytest.approx(numbers[-1], rel=0.2)


def test_the_fvu_of_the_log_is_its_formula(
    sparse_batches: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each batch, the small last one too, where means are large and differ by dimension."""
    seen: list[tuple[Tensor, Tensor]] = []
    losses = TopKSAE.losses

    def watch(self: TopKSAE, x: Tensor, target: Any = None, **options: Any) -> Any:
        found = losses(self, x, target, **options)
        seen.append((x.double(), found.recons.double()))
        return found

    monkeypatch.setattr(TopKSAE, "losses", watch)
    far = torch.linspace(-1000, 3000, 16)
    log: list[dict[str, Any]] = []
    cfg = TrainingConfig(TOPK, n_vectors=150, log_every=1, **PLAIN)
    trained = quick(cfg, (x + far for x in sparse_batches(3)), on_log=log.append)
    assert [len(x) for x, _ in seen] == [64, 64, 22]
    for line, (x, recons) in zip(log, seen, strict=True):
        wanted = float((recons - x).square().sum() / (x - x.mean(dim=0)).square().sum())
        assert line["fvu"] == pytest.approx(wanted, rel=1e-9)
    assert trained.cfg.metadata["training"]["fvu"] == log[-1]["fvu"]


def test_the_scale_of_the_data_does_not_matter(sparse_batches: Make) -> None:
    cfg = TrainingConfig(RELU, n_steps=10, **PLAIN)
    once = quick(cfg, sparse_batches(10))
    larger = quick(cfg, (1000 * x for x in sparse_batches(10)))
    x = next(sparse_batches(1, seed=5))
    torch.testing.assert_close(larger.encode(1000 * x), 1000 * once.encode(x), rtol=1e-3, atol=1.0)
    torch.testing.assert_close(larger.W_dec, once.W_dec, rtol=1e-3, atol=1e-4)


def test_half_precision_data_and_bf16_losses_leave_float32_weights(
    sparse_batches: Make, without_shape_checks: None
) -> None:
    cfg = TrainingConfig(RELU, n_steps=40, **PLAIN)
    exact = quick(cfg, sparse_batches(40))
    halves = quick(replace(cfg, autocast="bf16"), (x.bfloat16() for x in sparse_batches(40)))
    assert halves.dtype == torch.float32
    x = next(sparse_batches(1, 500, seed=5))
    assert fvu(halves, x) == pytest.approx(fvu(exact, x), rel=0.05)
    assert not torch.equal(halves.W_enc, exact.W_enc)


def test_dead_latents_are_told_to_the_losses_and_the_log(
    sparse_batches: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Tensor] = []
    losses = TopKSAE.losses

    def watch(self: TopKSAE, x: Tensor, target: Any = None, **options: Any) -> Any:
        told.append(options["dead"].clone())
        return losses(self, x, target, **options)

    monkeypatch.setattr(TopKSAE, "losses", watch)
    log: list[dict[str, Any]] = []
    cfg = TrainingConfig(TOPK, n_steps=4, dead_after_vectors=128, log_every=1, **PLAIN)
    x = next(sparse_batches(1))[:1].repeat(64, 1)  # one vector has two latents
    quick(cfg, [x] * 4, on_log=log.append)
    assert [int(dead.sum()) > 25 for dead in told] == [False, False, True, True]
    assert log[0]["dead"] is None and log[-1]["dead"] > 25 / 32  # too few vectors to be dead
    active = 1 - torch.stack(told)[-1].float().mean()  # those that were never so are dead by now
    assert log[-1]["never_active"] == pytest.approx(1 - active)


def test_sparsity_and_learning_rate_rise(
    sparse_batches: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    losses = ReLUSAE.losses

    def watch(self: ReLUSAE, x: Tensor, target: Any = None, **options: Any) -> Any:
        told.append(options["warm_up"])
        return losses(self, x, target, **options)

    monkeypatch.setattr(ReLUSAE, "losses", watch)
    log: list[dict[str, Any]] = []
    options = {**PLAIN, "lr_warm_up": 0.2, "lr_decay": 0.4, "sparsity_warm_up": 0.5}
    cfg = TrainingConfig(RELU, n_steps=10, log_every=1, **options)
    quick(cfg, sparse_batches(10), on_log=log.append)
    assert told == [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1]
    shares = [line["lr"] / 2e-3 for line in log]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_global_random_numbers_are_neither_used_nor_changed(sparse_batches: Make) -> None:
    cfg = TrainingConfig(RELU, n_steps=3, **PLAIN)
    torch.manual_seed(1)
    once = quick(cfg, sparse_batches(3))
    expected = torch.Generator().manual_seed(1)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
    torch.manual_seed(2)
    assert torch.equal(quick(cfg, sparse_batches(3)).W_enc, once.W_enc)
    other = quick(replace(cfg, seed=1), sparse_batches(3))
    assert not torch.equal(other.W_enc, once.W_enc)


def test_batches_of_any_size_are_cut_to_the_training_batch(sparse_batches: Make) -> None:
    cfg = TrainingConfig(RELU, n_vectors=600, **PLAIN)
    everything = torch.cat(list(sparse_batches(10)))
    once = quick(cfg, [everything])
    pieces = quick(cfg, everything.split([1, 99, 0, 300, 240]))
    assert torch.equal(once.W_enc, pieces.W_enc)
    training = once.cfg.metadata["training"]
    assert (training["n_vectors"], training["n_steps"]) == (600, 10)


def test_it_is_ready_to_use(sparse_batches: Make) -> None:
    trained = quick(TrainingConfig(TOPK, n_steps=2, **PLAIN), sparse_batches(2))
    assert not trained.training
    assert all(parameter.grad is None for parameter in trained.parameters())
    json.dumps(trained.cfg.to_dict())


# Several at once


def test_several_learn_in_one_pass_what_each_would_alone(sparse_batches: Make) -> None:
    cfgs = {
        "narrow": TrainingConfig(replace(TOPK, hook_name="a"), n_steps=6, **PLAIN),
        "wide": TrainingConfig(replace(RELU, d_sae=48, hook_name="a"), n_vectors=500, **PLAIN),
        "other": TrainingConfig(replace(TOPK, hook_name="b"), n_steps=4, **PLAIN),
    }
    n_passes = 0

    def stream() -> Iterator[dict[str, Tensor]]:
        nonlocal n_passes
        n_passes += 1
        for a, b in zip(sparse_batches(9), sparse_batches(9, seed=1), strict=True):
            yield {"a": a}  # not every hook has to be in every dict
            yield {"b": b}

    together = train_saes(cfgs, stream(), progress=False)
    assert n_passes == 1 and list(together) == ["narrow", "wide", "other"]
    for name, cfg in cfgs.items():
        seed = int(cfg.sae.hook_name == "b")
        alone = quick(cfg, sparse_batches(9, seed=seed))
        assert torch.equal(alone.W_enc, together[name].W_enc)
        assert together[name].cfg.hook_name == cfg.sae.hook_name


@pytest.mark.parametrize(
    ("cfgs", "message"),
    [
        ({}, "no autoencoders were given"),
        ({"a": TrainingConfig(TOPK, n_steps=1)}, "hook_name of the TopKConfig is None"),
        (
            {n: TrainingConfig(replace(TOPK, hook_name=n), n_steps=1, folder="x") for n in "ab"},
            "'a' and 'b' have the same folder",
        ),
    ],
    ids=["none", "no hook", "one folder"],
)
def test_several_that_cannot_be_trained(cfgs: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train_saes(cfgs, [], progress=False)


def test_a_plain_batch_for_several_is_refused() -> None:
    cfgs = {"a": TrainingConfig(replace(TOPK, hook_name="a"), n_steps=1)}
    with pytest.raises(TrainingError, match=r"gave a Tensor; .* dicts of tensors by hook name"):
        train_saes(cfgs, [torch.ones(3, 16)], progress=False)


# What can go wrong


def test_data_that_end_early_end_the_training_with_a_warning(
    sparse_batches: Make, tmp_path: Path
) -> None:
    cfg = TrainingConfig(TOPK, n_vectors=10_000, folder=tmp_path, **PLAIN)
    with pytest.warns(UserWarning, match="ran dry: training ended after 160 of 10,000 vectors"):
        trained = quick(cfg, sparse_batches(4, 40))
    assert (tmp_path / "cfg.json").exists() and (tmp_path / "sae_weights.safetensors").exists()
    assert trained.cfg.metadata["training"]["n_vectors"] == 160


@pytest.mark.parametrize("batches", [[], [torch.ones(0, 16)]], ids=["none", "an empty one"])
def test_no_data_at_all_is_an_error(batches: list[Tensor]) -> None:
    with pytest.raises(TrainingError, match="no activations: the data ended before the first"):
        quick(TrainingConfig(TOPK, n_steps=1), batches)


def test_nan_stops_before_it_is_learned_from(sparse_batches: Make, tmp_path: Path) -> None:
    cfg = TrainingConfig(TOPK, n_steps=8, folder=tmp_path, **PLAIN)
    batches = list(sparse_batches(8))
    bad = [x.clone() for x in batches]
    bad[5][7, 3] = float("nan")
    with pytest.raises(TrainingError, match=r"batch 5 of the activations .*NaN.* in row 7"):
        quick(cfg, bad)
    mended = quick(cfg, batches, resume=True)
    assert torch.equal(mended.W_enc, quick(replace(cfg, folder=None), batches).W_enc)


@pytest.mark.parametrize("number", [0, 2], ids=["at once", "later"])
def test_another_width_is_refused_before_the_step(number: int, sparse_batches: Make) -> None:
    batches = list(sparse_batches(4))
    batches[number] = batches[number][:, :12]
    with pytest.raises(TrainingError, match=rf"batch {number} .* is \(64, 12\).*\[n, 16\]"):
        quick(TrainingConfig(TOPK, n_steps=4, **PLAIN), batches)


def test_a_loss_that_is_not_finite_changes_nothing(sparse_batches: Make, tmp_path: Path) -> None:
    cfg = TrainingConfig(RELU, n_steps=6, normalize=False, folder=tmp_path, **PLAIN)
    batches = list(sparse_batches(6))
    with pytest.raises(TrainingError, match="step 3: the loss is inf"):
        quick(cfg, [*batches[:3], 1e30 * batches[3], *batches[4:]])
    mended = quick(cfg, batches, resume=True)
    assert torch.equal(mended.W_enc, quick(replace(cfg, folder=None), batches).W_enc)


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (torch.ones(64, 16), r"a tensor \(64, 16\) was given; pass an iterable of batches"),
        (7, "7 gives no activations"),
    ],
    ids=["a tensor", "a number"],
)
def test_what_gives_no_batches_is_refused(activations: object, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        quick(TrainingConfig(TOPK, n_steps=1), activations)


def test_a_model_alone_is_refused(tiny_model: Any) -> None:
    with pytest.raises(TrainingError, match=r"pass ModelActivations\(model, recordings\)"):
        quick(TrainingConfig(TOPK, n_steps=1), tiny_model)


def test_no_more_batches_are_asked_for_than_needed(sparse_batches: Make) -> None:
    endless = itertools.cycle(sparse_batches(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(TrainingConfig(TOPK, n_steps=5, **PLAIN), endless)
    given = sparse_batches(7)
    quick(TrainingConfig(TOPK, n_steps=5, **PLAIN), given)
    assert len(list(given)) == 2


def test_progress_shows_the_numbers(
    sparse_batches: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    train_sae(TrainingConfig(TOPK, n_steps=3, **PLAIN), sparse_batches(3))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(name in shown.err for name in ("loss=", "fvu=", "l0=2", "never_active=0."))
