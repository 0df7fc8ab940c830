"""Estimates by nearby patches and by gradients that a pilot agrees with."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import InterventionError
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.means import mean_activations
from hooked_whisper.metrics.tokens import TokenRank
from hooked_whisper.patching import pilot
from hooked_whisper.patching.attribution_patching import attribution_patch
from hooked_whisper.patching.sweep import patch_sweep
from hooked_whisper.speech.mel import Mel

from .shared import DIFFERENCE, Stop, difference

SITES = [
    "encoder.blocks.*.hook_resid_mid",
    "encoder.blocks.*.hook_resid_post",
    "encoder.blocks.*.hook_attn_out",
    "encoder.blocks.*.mlp.hook_post",
    "encoder.blocks.*.attn.hook_z",
]
OPTIONS: dict[str, Any] = {"per": "window", "window_s": 0.1, "all_frames": True}


@pytest.fixture
def pair(tiny_mel: Tensor, tiny_tokens: Tensor) -> tuple[Example, Example]:
    n_frames = torch.tensor([44])
    clean, corrupted = (
        Example(Mel(tiny_mel[i : i + 1], n_frames), tiny_tokens[:1]) for i in (0, 1)
    )
    return clean, corrupted


def without_far(
    model: Any, pair: tuple[Example, Example], name: str, window: tuple[int, int], reach: int
) -> float:
    """By hooks: a window patched, and behind it all that is far away put back."""
    clean, corrupted = pair
    hooks = ["encoder.blocks.*.hook_resid_*", name]
    _, of_clean = model.run_with_cache(clean.mel, clean.tokens, names_filter=hooks)
    _, of_base = model.run_with_cache(corrupted.mel, corrupted.tokens, names_filter=hooks)
    start, end = window
    first = min(max(0, start - reach), 30 - min(30, end - start + 2 * reach))
    last = first + min(30, end - start + 2 * reach)

    def patch(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, start:end] = of_clean[name][:, start:end]
        return value

    def put_back(value: Tensor, hook: Any) -> Tensor:
        whole = of_base[hook.name].clone()
        whole[:, first:last] = value[:, first:last]
        return whole

    # What is far away has the stream of the base run, whatever the patched site wrote there.
    behind = model.hook_names("encoder.blocks.*.hook_resid_*")
    with torch.no_grad():
        logits = model.run_with_hooks(
            corrupted.mel, corrupted.tokens, fwd_hooks=[(name, patch), (behind, put_back)]
        )
    return float(difference(logits))


@pytest.mark.parametrize("name", SITES)
def test_only_what_is_near_changes(tiny_model: Any, pair: Any, name: str) -> None:
    name = name.replace("*", "1")
    found = attribution_patch(
        tiny_model, *pair, name, metric=DIFFERENCE, reach_s=0.08, **OPTIONS
    ).values.flatten()
    wanted = [without_far(tiny_model, pair, name, (n, n + 5), 4) for n in range(0, 30, 5)]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_with_reach_enough_it_is_the_sweep(
    tiny_model: Any, pair: Any, without_shape_checks: None
) -> None:
    for direction in ("denoising", "noising"):
        options = {"metric": DIFFERENCE, "direction": direction, **OPTIONS}
        near = attribution_patch(tiny_model, *pair, SITES, reach_s=1, **options)
        true = patch_sweep(tiny_model, *pair, SITES, progress=False, **options)
        torch.testing.assert_close(near.values, true.values, atol=1e-5, rtol=1e-5, equal_nan=True)
        assert torch.equal(near.clean, true.clean) and near.complete
    near = attribution_patch(
        tiny_model, *pair, SITES, reach_s=1, metric=DIFFERENCE, per="pos", parts=[0, 7, 29]
    )
    true = patch_sweep(
        tiny_model, *pair, SITES, metric=DIFFERENCE, per="pos", parts=[0, 7, 29], progress=False
    )
    torch.testing.assert_close(near.values, true.values, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_needs_no_gradient_and_no_run(tiny_model: Any, pair: Any) -> None:
    clean, _ = pair
    rank = attribution_patch(tiny_model, *pair, SITES[0], metric=TokenRank(token=3), **OPTIONS)
    assert rank.complete
    options = {"metric": DIFFERENCE, "direction": "noising", "reach_s": 1, **OPTIONS}
    near = attribution_patch(tiny_model, clean, "zero", SITES[1], **options)
    options.pop("reach_s")
    true = patch_sweep(tiny_model, clean, "zero", SITES[1], progress=False, **options)
    torch.testing.assert_close(near.values, true.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [SITES[1], "decoder.blocks.*.hook_mlp_out"])
def test_a_mean_is_put_in_at_every_position(tiny_model: Any, pair: Any, name: str) -> None:
    name = name.replace("*", "1")
    mean = mean_activations(tiny_model, pair[0], name, progress=False)
    options: dict[str, Any] = {"metric": difference, "direction": "noising"}
    found = patch_sweep(tiny_model, pair[0], mean, name, progress=False, **options)
    with torch.no_grad():
        logits = tiny_model.run_with_hooks(
            pair[0].mel,
            pair[0].tokens,
            fwd_hooks=[(name, lambda value, hook: mean[name].expand_as(value))],
        )
    assert found.values.item() == pytest.approx(difference(logits).item(), abs=1e-5)
    estimate = attribution_patch(tiny_model, pair[0], mean, name, n_steps=1, **options)
    assert estimate.complete


def test_a_hook_in_the_encoder_sees_whole_runs(fresh_model: Any, pair: Any) -> None:
    lengths = set()
    fresh_model.add_hook(
        "encoder.blocks.1.hook_mlp_out", lambda value, hook: lengths.add(value.shape[1])
    )
    options = {"metric": DIFFERENCE, **OPTIONS}
    near = attribution_patch(fresh_model, *pair, SITES[0], reach_s=0.02, **options)
    true = patch_sweep(fresh_model, *pair, SITES[0], progress=False, **options)
    torch.testing.assert_close(near.values, true.values, atol=1e-5, rtol=1e-5)
    assert lengths == {30}


@pytest.mark.parametrize(
    "name", ["encoder.blocks.*.mlp.hook_post", "decoder.blocks.*.mlp.hook_post"]
)
def test_gradients_are_believed_where_a_pilot_agrees(
    tiny_model: Any, pair: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot, "FEW", {"encoder": 1, "decoder": 1})
    clean, _ = pair
    noise = torch.randn(clean.mel.shape, generator=torch.Generator().manual_seed(5))
    near = Example(Mel(clean.mel.values + 1e-3 * noise, clean.mel.n_frames), clean.tokens)
    options: dict[str, Any] = {"metric": DIFFERENCE, "per": "neuron"}
    found = attribution_patch(tiny_model, clean, near, name, **options)
    gradient = attribution_patch(tiny_model, clean, near, name, n_steps=1, **options)
    assert torch.equal(found.values.nan_to_num(), gradient.values.nan_to_num())
    monkeypatch.setattr(pilot, "AGREES", 2.0)  # never
    found = attribution_patch(tiny_model, *pair, name, **options)
    true = patch_sweep(tiny_model, *pair, name, progress=False, **options)
    torch.testing.assert_close(found.values, true.values, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_stops_and_goes_on(tiny_model: Any, pair: Any, capsys: Any) -> None:
    pairs = [pair[0], pair[0]], [pair[1], pair[1]]
    whole = attribution_patch(tiny_model, *pairs, SITES[0], metric=Stop(10**6), **OPTIONS)
    found = attribution_patch(tiny_model, *pairs, SITES[0], metric=Stop(4), **OPTIONS)
    assert 0 < found.n_done < found.n_cells
    rest = attribution_patch(
        tiny_model, *pairs, SITES[0], metric=Stop(10**6), resume=found, **OPTIONS
    )
    assert torch.equal(rest.values, whole.values)


def test_refuses(tiny_model: Any, pair: Any) -> None:
    with pytest.raises(InterventionError, match="reach_s is -1"):
        attribution_patch(tiny_model, *pair, SITES[0], metric=DIFFERENCE, reach_s=-1)
    with pytest.raises(InterventionError, match="pass n_steps too"):
        attribution_patch(tiny_model, *pair, SITES[0], metric=DIFFERENCE, along="sites")
