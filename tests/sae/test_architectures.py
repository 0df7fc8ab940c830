"""Every architecture's latents, losses and gradients are what its formula says."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import SAEConfigError, SAEError
from hooked_whisper.sae import selection as selecting
from hooked_whisper.sae.architectures import ARCHITECTURES, config_from_dict, make_sae
from hooked_whisper.sae.base import SAE, Losses

N, D_IN, D_SAE, D_OUT, K = 70, 6, 64, 5, 4
TRANSCODERS = ("transcoder", "skip_transcoder")
TIED = {"tied": True, "apply_b_dec_to_input": False}
RESCALED = {"k": K, "rescale_acts_by_decoder_norm": True, "unit_norm_decoder": False}
CASES = {
    "standard": ("standard", {"l1_coefficient": 0.3}),
    "standard, tied": ("standard", TIED),
    "standard, free lengths": ("standard", {"unit_norm_decoder": False}),
    "standard, layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "standard, rescaled": ("standard", {"normalize_activations": "constant_norm_rescale"}),
    "topk": ("topk", {"k": K}),
    "topk, all": ("topk", {"k": D_SAE}),
    "topk, bias kept": ("topk", {"k": K, "apply_b_dec_to_input": False}),
    "topk, decoder's lengths": ("topk", RESCALED),
    "topk, layer_norm": ("topk", {"k": K, "normalize_activations": "layer_norm"}),
    "batchtopk": ("batchtopk", {"k": K}),
    "batchtopk, decoder's lengths": ("batchtopk", RESCALED),
    "matryoshka": ("matryoshka_batchtopk", {"k": K, "matryoshka_widths": (3, 20, D_SAE)}),
    "jumprelu": ("jumprelu", {"l0_coefficient": 0.2, "jumprelu_init_threshold": 0.1}),
    "gated": ("gated", {"l1_coefficient": 0.2}),
    "transcoder": ("transcoder", {}),
    "transcoder, topk": ("transcoder", {"k": K}),
    "skip_transcoder": ("skip_transcoder", {}),
    "skip_transcoder, topk": ("skip_transcoder", {"k": K}),
}

each_case = pytest.mark.parametrize("case", CASES)
each_way = pytest.mark.parametrize("share", [1.0, -1.0], ids=["sparse", "dense"])


def make(case: str, *, is_random: bool = True) -> SAE:
    """An autoencoder in float64 with biases and lengths that are not those of the beginning."""
    name, values = CASES[case]
    out = {"d_out": D_OUT} if name in TRANSCODERS else {}
    cfg = config_from_dict({"architecture": name, "d_in": D_IN, "d_sae": D_SAE, **out, **values})
    sae = make_sae(cfg, torch.Generator().manual_seed(1)).double()
    if is_random:
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
            if hasattr(sae, "threshold"):
                sae.threshold.abs_()
    return sae


def make_batch(sae: SAE) -> tuple[Tensor, Tensor | None]:
    target = torch.randn(N, D_OUT).double() if sae.cfg.architecture in TRANSCODERS else None
    return torch.randn(N, D_IN).double() + 0.5, target


def expected_total(sae: Any, x: Tensor, target: Tensor | None) -> Tensor:
    """The loss by its formula, from latents as `encode` gives them."""
    target = x if target is None else target
    latents = sae.encode(x)
    total = (sae.decode(latents) - target).square().sum(dim=-1).mean()
    lengths = sae.W_dec.norm(dim=-1)
    name = sae.cfg.architecture
    if name == "standard" or (name in TRANSCODERS and sae.cfg.k is None):
        total = total + sae.cfg.l1_coefficient * (latents @ lengths).mean()
    if name == "matryoshka_batchtopk":
        for width in sae.cfg.matryoshka_widths[:-1]:
            part = latents[:, :width] @ sae.W_dec[:width] + sae.b_dec
            total = total + (part - target).square().sum(dim=-1).mean()
    if name == "gated":
        gates = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_gate)
        by_gates = gates @ sae.W_dec.detach() + sae.b_dec.detach()
        total = total + (by_gates - x).square().sum(dim=-1).mean()
        total = total + sae.cfg.l1_coefficient * (gates @ lengths).mean()
    if name == "jumprelu":
        total = total + sae.cfg.l0_coefficient * (latents > 0).double().sum(dim=-1).mean()
    return total


@each_way
@each_case
def test_losses_and_gradients_are_the_formulas(
    case: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selecting, "_SPARSE_SHARE", {"cpu": share})
    monkeypatch.setattr(selecting, "_CHUNK_ELEMENTS", 1)
    sae = make(case)
    x, target = make_batch(sae)
    weights = [p for name, p in sae.named_parameters() if name != "threshold"]
    expected = expected_total(sae, x, target)
    gradients = torch.autograd.grad(expected, weights)
    latents = sae.encode(x)
    recons = sae(x)
    losses = sae.losses(x, target)
    torch.testing.assert_close(losses.total, expected)
    (3 * losses.total).backward()  # with a factor, as a gradient scaler has
    for weight, gradient in zip(weights, gradients, strict=True):
        torch.testing.assert_close(weight.grad, 3 * gradient)
    torch.testing.assert_close(sum(losses.parts.values()), losses.total.detach())
    torch.testing.assert_close(losses.recons, recons.detach())
    assert torch.equal(losses.active, (latents > 0).any(dim=0))
    assert losses.l0.item() == pytest.approx((latents > 0).sum().item() / N)
    error = (recons - (x if target is None else target)).square().sum(dim=1).mean()
    torch.testing.assert_close(losses.parts["mse"], error.detach())


@each_case
def test_weights_begin_as_the_seed_says(case: str) -> None:
    one, other = make(case, is_random=False), make(case, is_random=False)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(D_SAE).double())
    if one.cfg.architecture not in TRANSCODERS and not getattr(one.cfg, "tied", False):
        torch.testing.assert_close(one.W_enc, one.first_length * one.W_dec.T)
    assert not one.b_dec.any()


@each_case
def test_leading_axes_are_kept(case: str) -> None:
    sae = make(case)
    x = torch.randn(2, 3, D_IN).double()
    flat = sae.encode(x.flatten(0, 1))
    recons = sae.decode(flat)
    latents = sae.encode(x)
    assert torch.equal(latents.flatten(0, 1), flat)
    torch.testing.assert_close(sae.decode(latents).flatten(0, 1), recons)
    torch.testing.assert_close(sae(x), recons.unflatten(0, (2, 3)))


@each_case
def test_pre_activations_can_be_edited(case: str) -> None:
    sae = make(case)
    sae.hook_sae_acts_pre.register_forward_hook(lambda module, args, output: output * 0 - 1)
    assert not sae.encode(torch.randn(4, D_IN).double()).any()


@each_case
def test_any_latents_can_be_decoded(case: str) -> None:
    sae = make(case)
    x = torch.randn(1, D_IN).double()
    latents = sae.encode(x)
    edited = latents.clone()
    edited[0, 5] = latents[0, 5] - 7
    moved = sae.decode(edited) - sae.decode(latents)
    direction = sae.W_dec[5]
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        direction = direction / direction.norm()
    scale = {"layer_norm": x.std(), "constant_norm_rescale": x.norm() / D_IN**0.5}
    factor = scale.get(sae.cfg.normalize_activations, torch.tensor(1.0).double())
    torch.testing.assert_close(moved[0], -7 * direction * factor)


@each_case
def test_copies_are_equal_and_apart(case: str) -> None:
    sae = make(case)
    x = torch.randn(4, D_IN).double()
    expected = sae(x)
    copied = copy.deepcopy(sae)
    with torch.no_grad():
        sae.W_dec.zero_()
    torch.testing.assert_close(copied(x), expected)


@pytest.mark.parametrize(
    "case", ["standard", "topk", "batchtopk", "matryoshka", "jumprelu", "gated", "transcoder"]
)
def test_a_short_training_lowers_the_loss(case: str) -> None:
    sae = make(case, is_random=False)
    x, target = make_batch(sae)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.03)
    totals = []
    for _ in range(15):
        optimizer.zero_grad()
        losses = sae.losses(x, target)
        losses.total.backward()
        sae.project_gradients_()
        optimizer.step()
        sae.constrain_()
        totals.append(losses.total.item())
    assert totals[-1] < 0.8 * totals[0]


@each_case
def test_bf16_autocast_is_close_and_gradients_stay_float32(case: str) -> None:
    sae = make(case).float()
    x, target = (None if each is None else each.float() for each in make_batch(sae))
    exact = sae.losses(x, target)
    with torch.autocast("cpu", torch.bfloat16):
        losses = sae.losses(x, target)
    losses.total.backward()
    # What is read, both weights, both products and the latents are rounded once each, and the
    # error is squared: 12 roundings.
    unit = torch.finfo(torch.bfloat16).eps / 2
    torch.testing.assert_close(losses.total, exact.total, rtol=12 * unit, atol=12 * unit)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in sae.parameters())
    assert losses.total.dtype == torch.float32


def test_topk_by_plain_loops() -> None:
    sae = make("topk")
    x = torch.randn(3, D_IN).double()
    total = 0.0
    for row in x:
        pre = [
            sum((row[i] - sae.b_dec[i]).item() * sae.W_enc[i, j].item() for i in range(D_IN))
            + sae.b_enc[j].item()
            for j in range(D_SAE)
        ]
        best = sorted(range(D_SAE), key=lambda j: -pre[j])[:K]
        for i in range(D_IN):
            recons = sum(max(pre[j], 0.0) * sae.W_dec[j, i].item() for j in best)
            total += (recons + sae.b_dec[i].item() - row[i].item()) ** 2
    assert sae.losses(x).total.item() == pytest.approx(total / 3)


@pytest.mark.parametrize("case", ["topk", "topk, decoder's lengths", "topk, bias kept"])
@pytest.mark.parametrize("n_dead", [2, 20], ids=["few", "many"])
def test_the_auxiliary_loss_is_its_formula(case: str, n_dead: int) -> None:
    sae = make(case)
    x, _ = make_batch(sae)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[:n_dead] = True
    aux_k = D_IN // 2
    expected = expected_total(sae, x, None)
    residual = (x - sae(x)).detach()
    shift = sae.b_dec if sae.cfg.apply_b_dec_to_input else 0
    pre = ((x - shift) @ sae.W_enc + sae.b_enc)[:, :n_dead]
    lengths = sae.W_dec[:n_dead].norm(dim=1)
    compared = pre * lengths if sae.cfg.rescale_acts_by_decoder_norm else pre
    kept = torch.zeros_like(pre)
    for row in range(N):
        kept[row, compared[row].argsort(descending=True)[:aux_k]] = 1
    error = ((pre * kept) @ sae.W_dec[:n_dead] - residual).square().sum(dim=1).mean()
    aux = error / 32 * min(1, n_dead / aux_k)
    weights = list(sae.parameters())
    gradients = torch.autograd.grad(expected + aux, weights)
    losses = sae.losses(x, dead=dead)
    losses.total.backward()
    torch.testing.assert_close(losses.parts["aux"], aux.detach())
    for weight, gradient in zip(weights, gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_without_dead_latents_there_is_no_auxiliary_loss() -> None:
    sae = make("topk")
    assert list(sae.losses(torch.randn(4, D_IN).double()).parts) == ["mse"]


def test_thresholds_get_the_straight_through_estimate() -> None:
    sae: Any = make("jumprelu")
    with torch.no_grad():
        sae.threshold.uniform_(0, 0.5)
    x, _ = make_batch(sae)
    sae.losses(x).total.backward()
    width = sae.cfg.jumprelu_bandwidth
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
    latents = (pre * (pre > sae.threshold)).detach().requires_grad_()
    error = (latents @ sae.W_dec + sae.b_dec - x).square().sum() / N
    (along,) = torch.autograd.grad(error, latents)
    n_near, threshold = 0, sae.threshold.detach()
    for j in range(D_SAE):
        expected = 0.0
        for row in range(N):
            if abs((pre[row, j] - threshold[j]).item()) < width / 2:
                n_near += 1
                expected -= float(threshold[j] * along[row, j]) / width
                expected -= sae.cfg.l0_coefficient / width / N
        assert sae.threshold.grad[j].item() == pytest.approx(expected)
    assert n_near > 10


def test_dead_latents_are_lifted_to_their_thresholds() -> None:
    sae: Any = make("jumprelu")
    object.__setattr__(sae.cfg, "pre_act_loss_coefficient", 0.5)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[3] = dead[5] = True
    x, _ = make_batch(sae)
    expected = 0.0
    for j in (3, 5):
        pre = (x - sae.b_dec) @ sae.W_enc[:, j] + sae.b_enc[j]
        below = (sae.threshold[j] - pre).clamp(min=0).mean()
        expected += 0.5 * below.item() * sae.W_dec[j].norm().item()
    assert sae.losses(x, dead=dead).parts["pre_act"].item() == pytest.approx(expected)


@pytest.mark.parametrize("case", ["batchtopk", "batchtopk, decoder's lengths", "matryoshka"])
def test_what_batchtopk_becomes_has_the_same_latents(case: str) -> None:
    sae: Any = make(case)
    batches = [torch.randn(N, D_IN).double() for _ in range(3)]
    smallest = []
    for x in batches:
        latents = sae.encode(x) if not smallest else _of_batch(sae, x)
        smallest.append(latents[latents > 0].min().item())
        sae.losses(x)
    mean = smallest[0]
    for each in smallest[1:]:
        mean += 0.01 * (each - mean)
    assert sae.topk_threshold.item() == pytest.approx(mean)
    used = sae.inference()
    assert used.cfg.architecture == "jumprelu"
    assert used.cfg.metadata["training_architecture"] == sae.cfg.architecture
    torch.testing.assert_close(used.encode(x), sae.encode(x))
    torch.testing.assert_close(used(x), sae(x))
    together, alone = used.encode(x), used.encode(x[:1])
    torch.testing.assert_close(together[:1], alone)


def _of_batch(sae: Any, x: Tensor) -> Tensor:
    """The latents that training would take, whatever the threshold is."""
    fresh = copy.deepcopy(sae)
    fresh.topk_threshold.fill_(-1)
    latents: Tensor = fresh.encode(x)
    return latents


def test_judging_a_batch_does_not_move_the_threshold() -> None:
    sae: Any = make("batchtopk")
    with torch.no_grad():
        sae.losses(torch.randn(N, D_IN).double())
    assert sae.topk_threshold == -1


def test_only_batchtopk_becomes_something_else() -> None:
    for case in CASES:
        sae = make(case)
        if "topk" not in sae.cfg.architecture or sae.cfg.architecture == "topk":
            assert sae.inference() is sae


def test_gates_alone_do_not_teach_the_decoder() -> None:
    sae: Any = make("gated")
    with torch.no_grad():
        sae.b_mag.fill_(-100)  # no latent is active, but gates are open
    object.__setattr__(sae.cfg, "l1_coefficient", 0.0)
    sae.losses(torch.randn(N, D_IN).double()).total.backward()
    assert sae.b_gate.grad.abs().sum() > 0
    assert not sae.W_dec.grad.any()


def test_the_penalty_is_warmed_up() -> None:
    sae = make("standard")
    x, _ = make_batch(sae)
    full, half = sae.losses(x).parts["l1"], sae.losses(x, warm_up=0.5).parts["l1"]
    torch.testing.assert_close(half, full / 2)


def test_a_transcoder_needs_a_target() -> None:
    with pytest.raises(SAEError, match=r"a transcoder needs a target.*Pass pairs"):
        make("transcoder").losses(torch.randn(3, D_IN).double())


def test_a_tied_encoder_is_the_decoder() -> None:
    sae = make("standard, tied")
    assert sae.W_enc.data_ptr() == sae.W_dec.data_ptr()
    assert [name for name, _ in sae.named_parameters()] == ["W_dec", "b_dec", "b_enc"]


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "k over the latents": ("topk", {"k": 65}, r"k is 65, but there are 64 latents.*1 to 64"),
    "k of a batch": ("batchtopk", {"k": 65}, "k is 65"),
    "k of a transcoder": ("transcoder", {"d_out": 5, "k": 65}, "k is 65; it can be 1 to 64"),
    "no k": ("topk", {"k": 0}, "k is 0; it must be a positive integer"),
    "no latents": ("standard", {"d_sae": 0}, "d_sae is 0; it must be a positive integer"),
    "no d_out": ("transcoder", {}, "d_out is 0; it must be a positive integer"),
    "aux_k": ("topk", {"k": 4, "aux_k": 0}, "aux_k is 0"),
    "negative L1": ("standard", {"l1_coefficient": -1.0}, "l1_coefficient is -1.0; it can't be"),
    "NaN": ("gated", {"l1_coefficient": float("nan")}, "l1_coefficient is nan; it must be a fin"),
    "negative L0": ("jumprelu", {"l0_coefficient": -1.0}, "l0_coefficient is -1.0; it can't be"),
    "bandwidth": ("jumprelu", {"jumprelu_bandwidth": 0.0}, "jumprelu_bandwidth is 0.0"),
    "widths": ("matryoshka_batchtopk", {"k": 4, "matryoshka_widths": (9, 3)}, "must be rising"),
    "wide": ("matryoshka_batchtopk", {"k": 4, "matryoshka_widths": (99,)}, "at most 64"),
    "rate": ("batchtopk", {"k": 4, "topk_threshold_lr": 0.0}, "topk_threshold_lr is 0.0"),
    "normalisation": ("topk", {"normalize_activations": "max"}, "'max'; it can be one of none"),
    "bias": ("transcoder", {"d_out": 5, "apply_b_dec_to_input": True}, "what it writes"),
    "name": ("tokp", {}, "architecture is 'tokp'; it can be one of standard, topk, batchtopk"),
    "field": ("topk", {"kk": 4}, "a TopKConfig has no 'kk'; it has d_in, d_sae"),
}


@pytest.mark.parametrize(("name", "values", "message"), BAD.values(), ids=BAD)
def test_configurations_that_cannot_be(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SAEConfigError, match=message):
        config_from_dict({"architecture": name, "d_in": 6, "d_sae": 64, **values})


@each_case
def test_configurations_come_back(case: str) -> None:
    cfg = make(case).cfg
    assert config_from_dict(cfg.to_dict()) == cfg


def test_a_configuration_needs_sizes() -> None:
    with pytest.raises(SAEConfigError, match="a TopKConfig needs d_in and d_sae"):
        config_from_dict({"architecture": "topk", "k": 3})


def test_a_class_takes_its_own_configuration_only() -> None:
    cfg = make("topk").cfg
    with pytest.raises(SAEConfigError, match=r"a ReLUSAE needs a ReLUConfig; got a TopKConfig"):
        ARCHITECTURES["standard"](cfg)


def test_matryoshka_widths_end_with_all() -> None:
    values = {"architecture": "matryoshka_batchtopk", "d_in": 6, "d_sae": 64, "k": 4}
    assert config_from_dict(values).matryoshka_widths == (8, 16, 32, 64)
    assert config_from_dict({**values, "matryoshka_widths": [5]}).matryoshka_widths == (5, 64)


NORMALIZED: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "layer_norm": lambda x: (
        (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5),
        x.std(-1, keepdim=True),
        x.mean(-1, keepdim=True),
    ),
    "constant_norm_rescale": lambda x: (
        x * D_IN**0.5 / x.norm(dim=-1, keepdim=True),
        x.norm(dim=-1, keepdim=True) / D_IN**0.5,
        torch.zeros(1).double(),
    ),
}


@pytest.mark.parametrize("kind", NORMALIZED)
def test_inputs_are_normalised_and_outputs_brought_back(kind: str) -> None:
    cfg = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "normalize_activations": kind}
    sae = make_sae(config_from_dict(cfg)).double()
    x = 5 * torch.randn(2, 3, D_IN).double() + 1
    normalised, factor, shift = NORMALIZED[kind](x)
    latents = torch.relu((normalised - sae.b_dec) @ sae.W_enc + sae.b_enc)
    torch.testing.assert_close(sae.encode(x), latents)
    torch.testing.assert_close(sae(x), (latents @ sae.W_dec + sae.b_dec) * factor + shift)
    with pytest.raises(SAEError, match=r"Latents of shape \(5,\).*encoded last was \(2, 3\)"):
        sae.decode(torch.zeros(5, D_SAE).double())


def test_a_skip_transcoder_decodes_what_it_has_read() -> None:
    sae = make("skip_transcoder")
    with pytest.raises(SAEError, match=r"encoded last was nothing\. Call encode"):
        sae.decode(torch.zeros(5, D_SAE).double())


def test_gradients_across_decoder_rows_stay_and_lengths_do_not_change() -> None:
    sae = make("topk")
    sae.constrain_()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE).double())
    sae.losses(torch.randn(N, D_IN).double()).total.backward()
    before = sae.W_dec.grad.clone()
    sae.project_gradients_()
    for row, gradient, whole in zip(sae.W_dec, sae.W_dec.grad, before, strict=True):
        assert (row @ gradient).item() == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(gradient + (whole @ row) * row, whole)


def test_free_lengths_are_left_alone() -> None:
    sae = make("standard, free lengths")
    lengths = sae.W_dec.norm(dim=1)
    sae.losses(torch.randn(N, D_IN).double()).total.backward()
    before = sae.W_dec.grad.clone()
    sae.project_gradients_()
    sae.constrain_()
    assert torch.equal(sae.W_dec.grad, before)
    assert torch.equal(sae.W_dec.norm(dim=1), lengths)


def test_gradients_known_already_are_handed_out_once() -> None:
    losses: Losses = make("standard").losses(torch.randn(N, D_IN).double())
    losses.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the losses again"):
        losses.total.backward()
