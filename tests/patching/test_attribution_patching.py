"""Attribution patching is the gradient's estimate, and good enough on real speech."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.digits import recordings
from hooked_whisper.errors import (
    InterventionError,
)
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.tokens import LogitDifference
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching import attribution_patching
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.patching.sweep import patch_sweep
from hooked_whisper.speech.mel import Mel

from .shared import DIFFERENCE, difference

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


def nearly(example: Example, distance: float) -> Example:
    """The same recording, a little to the side."""
    noise = torch.randn(example.mel.shape, generator=torch.Generator().manual_seed(5))
    return Example(Mel(example.mel.values + distance * noise, N_FRAMES), example.tokens)


def change_and_gradient(
    model: Any, name: str, base: Example, source: Example, inputs: Any = None
) -> tuple[Tensor, Tensor]:
    """By hand: the change of an activation, and the metric's gradient there."""
    held: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> Tensor:
        held["value"] = value.detach().clone().requires_grad_()
        return held["value"]

    def read(value: Tensor, hook: Any) -> None:
        held["source"] = value.detach().clone()

    hooks = [*(inputs or []), (name, keep)]
    output = difference(model.run_with_hooks(base.mel, base.tokens, fwd_hooks=hooks))
    (gradient,) = torch.autograd.grad(output.sum(), held["value"])
    with torch.no_grad():
        model.run_with_hooks(base.mel, base.tokens, fwd_hooks=[(name, keep)])
        model.run_with_hooks(source.mel, source.tokens, fwd_hooks=[(name, read)])
    return held["source"] - held["value"].detach(), gradient


def at(result: SweepResult, name: str) -> Tensor:
    """The estimated changes at the parts of one hook."""
    base = result.corrupted if result.direction == "denoising" else result.clean
    ((site, layer),) = [
        (row, column)
        for row, names in enumerate(result.names)
        for column, each in enumerate(names)
        if each == name
    ]
    return result.values[0, site, layer] - base


# Shapes are checked in test_attribution_stops and on real speech.
unchecked = pytest.mark.usefixtures("without_shape_checks")

SITES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], Sequence[Any] | None]] = {
    # hook, options, axes that are summed, and slices of the axis that is left
    "whole residual": ("encoder.blocks.0.hook_resid_post", {}, (0, 1, 2), None),
    "mel": ("encoder.hook_mel", {}, (0, 1, 2), None),
    "token embedding": ("decoder.hook_embed", {}, (0, 1, 2), None),
    "heads of z": ("decoder.blocks.1.attn.hook_z", {"per": "head"}, (0, 1, 3), None),
    "heads of patterns": ("encoder.blocks.1.attn.hook_pattern", {"per": "head"}, (0, 2, 3), None),
    "heads of masked scores": (
        "decoder.blocks.1.attn.hook_attn_scores",
        {"per": "head"},
        (0, 2, 3),
        None,
    ),
    "positions": ("decoder.blocks.0.hook_resid_mid_cross", {"per": "pos"}, (0, 2), None),
    "neurons": ("encoder.blocks.0.mlp.hook_post", {"per": "neuron"}, (0, 1), None),
    "windows": (
        "encoder.blocks.1.hook_mlp_out",
        {"per": "window", "window_s": 0.2},
        (0, 2),
        [slice(0, 10), slice(10, 20), slice(20, 30)],
    ),
    "windows of mel": (
        "encoder.hook_mel",
        {"per": "window", "parts": [(0.0, 0.1), (0.3, 0.5)]},
        (0, 1),
        [slice(0, 10), slice(30, 50)],
    ),
    "windows that cross-attention reads": (
        "decoder.blocks.2.cross_attn.hook_v",
        {"per": "window", "window_s": 0.2, "all_frames": True},
        (0, 2, 3),
        [slice(0, 10), slice(10, 20), slice(20, 30)],
    ),
}


@unchecked
@pytest.mark.parametrize(("name", "options", "summed", "parts"), SITES.values(), ids=SITES)
def test_is_the_change_times_the_gradient(
    tiny_model: Any,
    clean: Example,
    corrupted: Example,
    name: str,
    options: dict[str, Any],
    summed: tuple[int, ...],
    parts: Sequence[Any] | None,
) -> None:
    result = attribution_patch(tiny_model, clean, corrupted, name, metric=DIFFERENCE, **options)
    change, gradient = change_and_gradient(tiny_model, name, corrupted, clean)
    product = torch.where(change.isnan(), 0.0, change * gradient)  # -inf less -inf
    by_hand = product.sum(dim=summed)
    if parts is not None:
        by_hand = torch.stack([by_hand[part].sum() for part in parts])
    torch.testing.assert_close(at(result, name), by_hand.view(-1), atol=1e-5, rtol=1e-5)
    assert result.complete


def test_noising_starts_from_the_clean_run(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    name = "decoder.blocks.1.cross_attn.hook_z"
    options: dict[str, Any] = {"metric": DIFFERENCE, "direction": "noising"}
    result = attribution_patch(tiny_model, clean, corrupted, name, **options)
    change, gradient = change_and_gradient(tiny_model, name, clean, corrupted)
    with torch.no_grad():
        for example, found in ((clean, result.clean), (corrupted, result.corrupted)):
            torch.testing.assert_close(found, difference(tiny_model(example.mel, example.tokens)))
    by_hand = result.clean + (change * gradient).sum()
    torch.testing.assert_close(result.values.view(-1), by_hand, atol=1e-5, rtol=1e-5)


@unchecked
def test_all_sites_at_once_are_each_as_alone(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    names = ["encoder.hook_mel", "encoder.*.hook_resid_post", "decoder.blocks.2.hook_mlp_out"]
    options: dict[str, Any] = {"metric": difference, "n_steps": 2}
    together = attribution_patch(tiny_model, clean, corrupted, names, **options)
    assert together.axes["layer"] == [-1, 0, 1, 2] and len(together.axes["site"]) == 3
    for name in tiny_model.hook_names(names):
        alone = attribution_patch(tiny_model, clean, corrupted, name, **options)
        torch.testing.assert_close(at(together, name), at(alone, name), atol=1e-5, rtol=1e-4)


@unchecked
def test_is_true_patching_where_the_model_is_linear(tiny_model: Any, clean: Example) -> None:
    """Two runs that nearly agree: a plain patching loop gives the same numbers."""
    near = nearly(clean, 1e-3)
    name = "encoder.blocks.0.hook_resid_post"
    options: dict[str, Any] = {"per": "window", "window_s": 0.1, "all_frames": True}
    result = attribution_patch(tiny_model, clean, near, name, metric=DIFFERENCE, **options)
    _, cache = tiny_model.run_with_cache(clean.mel, clean.tokens, names_filter=name)
    true = []
    for start in range(0, 30, 5):

        def patch(value: Tensor, hook: Any, here: Any = slice(start, start + 5)) -> Tensor:
            value[:, here] = cache[name][:, here]
            return value

        with torch.no_grad():
            logits = tiny_model.run_with_hooks(near.mel, near.tokens, fwd_hooks=[(name, patch)])
        true.append(difference(logits)[0] - result.corrupted[0])
    true_change = torch.stack(true)
    assert true_change.abs().max() > 1e-4
    assert (at(result, name) - true_change).abs().max() < 0.05 * true_change.abs().max()


def test_steps_along_inputs_are_gradients_between_the_runs(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    name = "encoder.blocks.1.attn.hook_z"
    result = attribution_patch(
        tiny_model, clean, corrupted, name, metric=DIFFERENCE, per="head", n_steps=2
    )
    embeddings = [tiny_model.W_E[each.tokens].detach() for each in (corrupted, clean)]
    gradients = []
    for share in (0.25, 0.75):
        mel = corrupted.mel.values.lerp(clean.mel.values, share)
        embedding = embeddings[0].lerp(embeddings[1], share)
        inputs = [
            ("encoder.hook_mel", lambda value, hook, mel=mel: mel),
            ("decoder.hook_embed", lambda value, hook, embedding=embedding: embedding),
        ]
        gradients.append(change_and_gradient(tiny_model, name, corrupted, clean, inputs)[1])
    change, _ = change_and_gradient(tiny_model, name, corrupted, clean)
    by_hand = (change * (gradients[0] + gradients[1]) / 2).sum(dim=(0, 1, 3))
    torch.testing.assert_close(at(result, name), by_hand, atol=1e-5, rtol=1e-5)
    assert result.conditions["estimate"] == "gradients of 2 steps along inputs"


@unchecked
def test_many_steps_along_inputs_add_up_to_the_difference_of_the_runs(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    """On runs near enough that 12 steps see every bend between them."""
    near = nearly(clean, 0.1).with_tokens(
        torch.cat([corrupted.tokens[:, :2], clean.tokens[:, 2:]], 1)
    )
    inputs = ["encoder.hook_mel", "decoder.hook_embed"]
    result = attribution_patch(tiny_model, clean, near, inputs, metric=DIFFERENCE, n_steps=12)
    total = at(result, inputs[0]) + at(result, inputs[1])
    torch.testing.assert_close(total, result.clean - result.corrupted, atol=0, rtol=0.02)


@unchecked
def test_many_steps_along_a_site_add_up_to_patching_all_of_it(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    name = "decoder.blocks.0.hook_resid_post"
    options: dict[str, Any] = {"metric": DIFFERENCE, "n_steps": 8, "along": "sites"}
    whole = attribution_patch(tiny_model, clean, corrupted, name, **options)
    by_pos = attribution_patch(tiny_model, clean, corrupted, name, per="pos", **options)
    torch.testing.assert_close(at(by_pos, name).sum(), at(whole, name)[0], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        _, cache = tiny_model.run_with_cache(clean.mel, clean.tokens, names_filter=name)
        logits = tiny_model.run_with_hooks(
            corrupted.mel, corrupted.tokens, fwd_hooks=[(name, lambda value, hook: cache[name])]
        )
    torch.testing.assert_close(whole.values[0, 0, 0], difference(logits), atol=0.02, rtol=0.01)


def test_one_step_is_the_base_runs_gradient_whatever_moves(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    runs = [
        attribution_patch(tiny_model, clean, corrupted, metric=difference, along=along)
        for along in ("inputs", "sites")
    ]
    assert torch.equal(runs[0].values.nan_to_num(), runs[1].values.nan_to_num())
    assert runs[0].axes["site"] == ["encoder.hook_resid_post", "decoder.hook_resid_post"]


@unchecked
def test_zeros_and_caches_are_put_into_the_clean_run(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    name = "encoder.blocks.1.hook_attn_out"
    options: dict[str, Any] = {"metric": difference, "direction": "noising"}
    zero = attribution_patch(tiny_model, clean, "zero", name, **options)
    _, cache = tiny_model.run_with_cache(corrupted.mel, corrupted.tokens)
    given = attribution_patch(tiny_model, clean, cache, name, **options)
    from_run = attribution_patch(tiny_model, clean, corrupted, name, **options)
    torch.testing.assert_close(given.values, from_run.values)
    change, gradient = change_and_gradient(tiny_model, name, clean, corrupted)
    value = -(change - cache[name]) * gradient  # cache - change is the clean run's own value
    torch.testing.assert_close(at(zero, name)[0], -value.sum(), atol=1e-5, rtol=1e-5)
    assert zero.corrupted.isnan().all()
    more = attribution_patch(tiny_model, clean, "zero", name, n_steps=2, along="sites", **options)
    assert more.complete
    with pytest.raises(InterventionError, match=r'no inputs to move to.*along="sites"'):
        attribution_patch(tiny_model, clean, "zero", name, n_steps=2, **options)


def test_several_pairs_each_with_its_metric(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, clean: Example, corrupted: Example
) -> None:
    both = Example(Mel(tiny_mel, torch.tensor([44, 44])), tiny_tokens)
    other = Example(Mel(-tiny_mel, torch.tensor([44, 44])), tiny_tokens)
    metrics = [LogitDifference(3, 5, pos=-2), LogitDifference(8, 1, pos=-1)]
    result = attribution_patch(tiny_model, both, other, metric=metrics)
    assert result.values.shape[0] == 2
    for row, metric in enumerate(metrics):
        one, two = (Example(each.mel[row], each.tokens[row : row + 1]) for each in (both, other))
        alone = attribution_patch(tiny_model, one, two, metric=metric)
        torch.testing.assert_close(result.values[row], alone.values[0], equal_nan=True)


def test_hooks_of_ones_own_stay_in_effect(
    fresh_model: Any, clean: Example, corrupted: Example
) -> None:
    fresh_model.add_hook("encoder.blocks.1.hook_mlp_out", lambda value, hook: value.mul_(0.1))
    name = "encoder.blocks.0.hook_resid_post"
    result = attribution_patch(fresh_model, clean, corrupted, name, metric=difference)
    change, gradient = change_and_gradient(fresh_model, name, corrupted, clean)
    torch.testing.assert_close(at(result, name)[0], (change * gradient).sum())


def test_correlates_with_true_patching_on_real_speech() -> None:
    """Pearson over residual sites and time windows, for the digit that plain gradients miss."""
    model = HookedWhisper.from_pretrained("digits")
    three_one_four, eight_five_two = recordings()[:2]
    tokens = model.to_tokens(" three one four")
    clean = Example(model.to_mel(three_one_four.path), tokens)
    corrupted = Example(model.to_mel(eight_five_two.path), tokens)
    one, five = (int(model.to_tokens(word, prepend_sot=False)[0, 0]) for word in (" one", " five"))
    metric = LogitDifference(one, five, pos=4)
    names = ["encoder.blocks.0.hook_resid_post", "encoder.blocks.3.hook_resid_mid"]
    windows = [(0.5, 1.0), (1.4, 1.7), (1.7, 2.0), (2.3, 2.7), (2.9, 3.2)]
    options: dict[str, Any] = {"metric": metric, "per": "window", "parts": windows}
    estimate = attribution_patch(model, clean, corrupted, names, n_steps=3, **options)
    # Which is the plain loop's: tests of sweeps hold it to that.
    true = patch_sweep(model, clean, corrupted, names, progress=False, **options)
    found, wanted = (each.values[~each.values.isnan()] for each in (estimate, true))
    assert len(found) == 10
    assert torch.corrcoef(torch.stack([found, wanted]))[0, 1] > 0.9
    # The time of the digit itself matters most, at the first site and at the last one.
    assert {int(at(estimate, name).argmax()) for name in names} <= {1, 2}
