"""Attribution patching is the gradient's estimate, and good enough on real speech."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.digits import recordings
from hooked_whisper.errors import (
    AlignmentError,
    HookNameError,
    InterventionError,
    MetricError,
    SiteError,
    SweepError,
)
from hooked_whisper.interventions.attribution_patching import attribution_patch
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.results import SweepResult
from hooked_whisper.interventions.token_metrics import LogitDifference, TokenRank
from hooked_whisper.interventions.transcript_metrics import Repetition
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel

DIFFERENCE = LogitDifference(right=3, wrong=5, pos=-2)
N_FRAMES = torch.tensor([44])


def difference(logits: Tensor) -> Tensor:
    return logits[:, -2, 3] - logits[:, -2, 5]


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
    with torch.no_grad():
        for example, found in ((clean, result.clean), (corrupted, result.corrupted)):
            torch.testing.assert_close(found, difference(tiny_model(example.mel, example.tokens)))
    assert result.complete


def test_noising_starts_from_the_clean_run(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    name = "decoder.blocks.1.cross_attn.hook_z"
    options: dict[str, Any] = {"metric": DIFFERENCE, "direction": "noising"}
    result = attribution_patch(tiny_model, clean, corrupted, name, **options)
    change, gradient = change_and_gradient(tiny_model, name, clean, corrupted)
    by_hand = difference(tiny_model(clean.mel, clean.tokens)).detach() + (change * gradient).sum()
    torch.testing.assert_close(result.values.view(-1), by_hand, atol=1e-5, rtol=1e-5)


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


class Stop:
    """A metric that is stopped by Ctrl-C, or fails, at its n-th call."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.left, self.error = after, error

    def __call__(self, logits: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return difference(logits)


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
    estimate = attribution_patch(
        model, clean, corrupted, names, metric=metric, per="window", parts=windows, n_steps=4
    )
    _, cache = model.run_with_cache(clean.mel, tokens, names_filter=names)
    true = []
    for name in names:
        for start_s, end_s in windows:
            here = slice(round(50 * start_s), round(50 * end_s))

            def patch(value: Tensor, hook: Any, here: Any = here) -> Tensor:
                value[:, here] = cache[hook.name][:, here]
                return value

            with torch.no_grad():
                logits = model.run_with_hooks(corrupted.mel, tokens, fwd_hooks=[(name, patch)])
            true.append(metric(logits)[0] - estimate.corrupted[0])
    found = torch.cat([at(estimate, name) for name in names])
    assert torch.corrcoef(torch.stack([found, torch.stack(true)]))[0, 1] > 0.9
    # The time of the digit itself matters most, at the first site and at the last one.
    assert {int(at(estimate, name).argmax()) for name in names} <= {1, 2}
