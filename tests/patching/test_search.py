"""Greedy search, against the same search written with `run_with_hooks`, run by run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.interventions.ablation import (
    MeanAblation,
    SkipLayer,
    ZeroAblation,
)
from hooked_whisper.interventions.edits import Edit, Interventions
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import Site
from hooked_whisper.metrics.base import as_metric
from hooked_whisper.metrics.sequences import SequenceLogProb
from hooked_whisper.metrics.tokens import LogitDifference, LogProb
from hooked_whisper.patching.search import (
    GreedyAblation,
    edit_name,
    greedy_ablation,
    head_ablations,
    layer_ablations,
)
from hooked_whisper.speech.mel import Mel

pytestmark = pytest.mark.usefixtures(
    "without_shape_checks"
)  # many runs: test_search_stops has them

Hooks = list[tuple[str, Callable[..., Any]]]
INFINITY = float("inf")


@pytest.fixture
def example(tiny_mel: Tensor, tiny_tokens: Tensor) -> Example:
    """Two recordings side by side."""
    return Example(Mel(tiny_mel, torch.tensor([40, 60])), tiny_tokens)


def mute(name: str, head: int, mean: Tensor | None = None) -> Hooks:
    """A head set to zero, or to a mean, by hand."""

    def function(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, head] = 0 if mean is None else mean[:, :, head]
        return z

    return [(name, function)]


def skip(stack: str, layer: int) -> Hooks:
    """A layer whose output is its input, by hand."""
    kept: dict[str, Tensor] = {}

    def keep(resid: Tensor, hook: Any) -> None:
        kept["resid"] = resid.clone()

    def put_back(resid: Tensor, hook: Any) -> Tensor:
        return kept["resid"]

    block = f"{stack}.blocks.{layer}"
    return [(f"{block}.hook_resid_pre", keep), (f"{block}.hook_resid_post", put_back)]


def all_heads(model: Any, layers: tuple[int, ...] = (0, 1, 2)) -> dict[str, Hooks]:
    cfg, found = model.cfg, dict[str, Hooks]()
    for layer in set(layers) & set(range(cfg.n_audio_layers)):
        for head in range(cfg.n_audio_heads):
            name = f"encoder.blocks.{layer}.attn.hook_z"
            found[f"encoder {layer} attn head {head}"] = mute(name, head)
    for layer in layers:
        for part in ("attn", "cross_attn"):
            for head in range(cfg.n_text_heads):
                name = f"decoder.blocks.{layer}.{part}.hook_z"
                found[f"decoder {layer} {part} head {head}"] = mute(name, head)
    return found


def heads_of_layer_1(model: Any) -> list[Edit]:
    return head_ablations(model, "*.1.*attn.hook_z")


def all_layers(model: Any) -> dict[str, Hooks]:
    return {
        f"{stack} {layer}": skip(stack, layer)
        for stack in ("encoder", "decoder")
        for layer in range(model.cfg.n_layers(stack))
    }


def plain_search(
    model: Any,
    example: Example,
    metrics: list[Any],
    hooks: dict[str, Hooks],
    n: int | None = None,
) -> list[tuple[str, float, float]]:
    """Name, metric and change of each removal; each candidate is a run of its own."""

    def measure(removed: list[str]) -> Tensor:
        pairs = [pair for name in removed for pair in hooks[name]]
        with torch.no_grad():
            logits = model.run_with_hooks(example.mel, example.tokens, fwd_hooks=pairs)
        rows = [metric(logits[i : i + 1]) for i, metric in enumerate(metrics)]
        return torch.cat(rows)

    clean, removed, steps = measure([]), list[str](), []
    while len(removed) < (len(hooks) if n is None else n):
        tried = {name: measure([*removed, name]) for name in hooks if name not in removed}
        change = {name: float((each - clean).abs().mean()) for name, each in tried.items()}
        best = min(change, key=lambda name: change[name])
        removed.append(best)
        steps.append((best, float(tried[best].mean()), change[best]))
    return steps


def assert_same(result: GreedyAblation, steps: list[tuple[str, float, float]]) -> None:
    assert [edit_name(edit) for edit in result.edits] == [name for name, _, _ in steps]
    found = [(removal.value, removal.change) for removal in result.removals]
    expected = [(value, change) for _, value, change in steps]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def both(metric: Any) -> list[Any]:
    return [metric, metric]


# Against the plain search


@pytest.mark.parametrize(
    "make_metric",
    [
        lambda tokens: both(LogitDifference(5, 60)),
        lambda tokens: [SequenceLogProb(row[None]) for row in tokens],
        lambda tokens: [LogProb(3, pos=2), LogProb(4, pos=0)],
        lambda tokens: both(as_metric(lambda logits: logits.std(dim=(1, 2)))),
    ],
    ids=["logit difference", "a text for each row", "positions of each row", "function"],
)
def test_heads(tiny_model: Any, example: Example, make_metric: Any) -> None:
    metrics = make_metric(example.tokens)
    hooks = all_heads(tiny_model, layers=(1,))
    expected = plain_search(tiny_model, example, metrics, hooks, n=1)
    found = greedy_ablation(
        tiny_model,
        example,
        metrics,
        heads_of_layer_1(tiny_model),
        tolerance=INFINITY,
        max_removals=1,
        progress=False,
    )
    assert_same(found, expected)
    assert found.complete
    assert len(found.left) == 8 - 1


def test_every_head_of_the_model(tiny_model: Any, example: Example) -> None:
    found = greedy_ablation(
        tiny_model, example, LogProb(3), tolerance=INFINITY, max_removals=1, progress=False
    )
    assert sorted(map(edit_name, (*found.edits, *found.left))) == sorted(all_heads(tiny_model))


def test_layers_until_the_metric_would_change_too_much(tiny_model: Any, example: Example) -> None:
    metrics = both(LogitDifference(5, 60))
    every = plain_search(tiny_model, example, metrics, all_layers(tiny_model))
    options: dict[str, Any] = {"candidates": "layers", "progress": False}
    whole = greedy_ablation(tiny_model, example, metrics[0], tolerance=INFINITY, **options)
    assert_same(whole, every)
    assert whole.left == ()

    tolerance = every[2][2] + 1e-4
    allowed = [change <= tolerance for _, _, change in every]
    found = greedy_ablation(tiny_model, example, metrics[0], tolerance=tolerance, **options)
    assert 0 < len(found.removals) < 5 and found.complete
    assert_same(found, every[: allowed.index(False)])
    assert all(removal.change <= tolerance for removal in found.removals)
    # The edits of a result, put in together, do what its last line says.
    with torch.no_grad(), Interventions(tiny_model, *found.edits):
        logits = tiny_model(example.mel, example.tokens)
    value = metrics[0](logits).mean().item()
    assert value == pytest.approx(found.removals[-1].value, abs=1e-5)


def test_heads_and_layers_together(tiny_model: Any, example: Example) -> None:
    names = ["encoder.blocks.1.attn.hook_z", "decoder.blocks.1.cross_attn.hook_z"]
    hooks = {
        name: each
        for name, each in all_heads(tiny_model, layers=(1,)).items()
        if name.startswith("encoder") or "cross" in name
    } | all_layers(tiny_model)
    metrics = both(LogitDifference(5, 60))
    expected = plain_search(tiny_model, example, metrics, hooks, n=2)
    candidates = [*head_ablations(tiny_model, names), *layer_ablations(tiny_model)]
    assert len(candidates) == len(hooks) == 10
    found = greedy_ablation(
        tiny_model, example, metrics, candidates, tolerance=INFINITY, max_removals=2, progress=False
    )
    assert_same(found, expected)


def test_means_in_place_of_zeros(tiny_model: Any, example: Example) -> None:
    names = tiny_model.hook_names(["decoder.blocks.1.cross_attn.hook_z", "encoder.*.0.*.hook_z"])
    with torch.no_grad():
        _, cache = tiny_model.run_with_cache(example.mel, example.tokens, names_filter=names)
    means = {name: cache[name].mean(dim=(0, 1), keepdim=True) for name in names}
    axes = {name: cache.axes(name) for name in names}
    hooks = {}
    for name in names:
        stack, _, layer, part, _ = name.split(".")
        for head in range(means[name].shape[2]):
            label = f"{stack} {layer} {part} head {head} (MeanAblation)"
            hooks[label] = mute(name, head, means[name])
    metrics = both(LogitDifference(5, 60))
    expected = plain_search(tiny_model, example, metrics, hooks, n=2)
    candidates = head_ablations(tiny_model, names, WhisperCache(means, axes))
    found = greedy_ablation(
        tiny_model, example, metrics, candidates, tolerance=INFINITY, max_removals=2, progress=False
    )
    assert_same(found, expected)


@dataclass(frozen=True)
class Halve(Edit):
    """An edit of one's own, at several hooks of both stacks."""

    layer: int

    def hooks(self, model: HookedWhisper) -> Hooks:
        return [
            (f"{stack}.blocks.{self.layer}.hook_mlp_out", lambda value, hook: value / 2)
            for stack in ("encoder", "decoder")
        ]


def test_any_edit_can_be_a_candidate(tiny_model: Any, example: Example) -> None:
    pattern = "decoder.blocks.2.cross_attn.hook_pattern"
    neuron = Site("encoder.blocks.1.mlp.hook_post", neuron=[3, 7])
    candidates: list[Edit] = [
        Halve(0),
        Halve(1),
        ZeroAblation(Site(pattern, head=1)),
        ZeroAblation(neuron),
        SkipLayer("decoder", -1),
        MeanAblation(Site("encoder.blocks.0.hook_mlp_out")),
    ]

    def silence(post: Tensor, hook: Any) -> Tensor:
        post = post.clone()
        post[..., [3, 7]] = 0
        return post

    def drop(pattern: Tensor, hook: Any) -> Tensor:
        pattern = pattern.clone()
        pattern[:, 1] = 0
        return pattern

    def average(value: Tensor, hook: Any) -> Tensor:
        return value.mean(dim=1, keepdim=True).expand_as(value).clone()

    by_hand = [
        Halve(0).hooks(tiny_model),
        Halve(1).hooks(tiny_model),
        [(pattern, drop)],
        [("encoder.blocks.1.mlp.hook_post", silence)],
        skip("decoder", 2),
        [("encoder.blocks.0.hook_mlp_out", average)],
    ]
    hooks = {edit_name(edit): each for edit, each in zip(candidates, by_hand, strict=True)}
    metrics = both(LogitDifference(5, 60))
    expected = plain_search(tiny_model, example, metrics, hooks, n=3)
    found = greedy_ablation(
        tiny_model, example, metrics, candidates, tolerance=INFINITY, max_removals=3, progress=False
    )
    assert_same(found, expected)


def test_candidates_at_positions(tiny_model: Any, example: Example) -> None:
    """One position, several and all of them: what is not computed again is what does not change."""
    places: list[tuple[str, Any]] = [
        ("decoder.blocks.1.hook_resid_mid", 2),
        ("decoder.blocks.1.hook_resid_mid_cross", slice(None)),
        ("decoder.blocks.1.hook_mlp_out", [1, 4]),
        ("decoder.blocks.0.cross_attn.hook_z", -1),
        ("decoder.blocks.2.hook_attn_out", 5),
        ("decoder.blocks.2.mlp.hook_post", 3),
        ("decoder.blocks.0.mlp.hook_pre", 3),
    ]

    def zero(pos: Any) -> Callable[..., Any]:
        def function(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, pos] = 0
            return value

        return function

    candidates = [
        ZeroAblation(Site(name, pos=None if pos == slice(None) else pos)) for name, pos in places
    ]
    hooks = {
        edit_name(edit): [(name, zero(pos))]
        for edit, (name, pos) in zip(candidates, places, strict=True)
    }
    metrics: list[Any] = [SequenceLogProb(row[None]) for row in example.tokens]
    for metric in (metrics, both(as_metric(lambda logits: logits.std(dim=(1, 2))))):
        expected = plain_search(tiny_model, example, metric, hooks)
        found = greedy_ablation(
            tiny_model, example, metric, candidates, tolerance=INFINITY, progress=False
        )
        assert_same(found, expected)


def test_memory_changes_no_number(tiny_model: Any, example: Example) -> None:
    options = {"tolerance": INFINITY, "max_removals": 1, "progress": False}
    metric, candidates = LogitDifference(5, 60), heads_of_layer_1(tiny_model)
    many = greedy_ablation(tiny_model, example, metric, candidates, **options)
    for max_bytes in (1, 300_000):  # one at a time, some at a time
        own = {**options, "max_bytes": max_bytes}
        few = greedy_ablation(tiny_model, example, metric, candidates, **own)
        assert few.edits == many.edits != []
        values = [[each.value for each in result.removals] for result in (few, many)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)


# When it ends


def test_nothing_can_go(tiny_model: Any, example: Example) -> None:
    found = greedy_ablation(
        tiny_model, example, LogitDifference(5, 60), "layers", tolerance=0, progress=False
    )
    assert found.removals == () and len(found.left) == 5 and found.complete
    assert len(found.to_dataframe()) == 0


def test_opposite_changes_do_not_cancel(tiny_model: Any, example: Example) -> None:
    """One row up and the other down by as much is a change."""
    edits = layer_ablations(tiny_model, "decoder")
    metric = LogitDifference(5, 60)
    found = greedy_ablation(
        tiny_model, example, metric, edits[:1], tolerance=INFINITY, progress=False
    )
    (removal,) = found.removals
    mirrored = [metric, as_metric(lambda logits: -metric(logits))]
    same = greedy_ablation(
        tiny_model, example, mirrored, edits[:1], tolerance=INFINITY, progress=False
    ).removals[0]
    assert removal.change == pytest.approx(same.change, abs=1e-5)


# What stays as it was


@pytest.mark.parametrize(
    "names",
    [
        ["encoder.blocks.0.hook_mlp_out", "decoder.blocks.1.hook_attn_out"],
        ["decoder.ln_final.hook_normalized", "decoder.hook_logits"],
    ],
    ids=["in the blocks", "behind them"],
)
def test_hooks_of_the_users_own_act_too(
    tiny_model: Any, example: Example, names: list[str]
) -> None:
    def louder(value: Tensor, hook: Any) -> Tensor:
        return 1.5 * value

    own = [(name, louder) for name in names]
    metrics = both(LogitDifference(5, 60))
    with tiny_model.hooks(fwd_hooks=own):
        every = all_heads(tiny_model, layers=(1,)).items()
        hooks = {name: each for name, each in every if name.endswith("head 1")}
        expected = plain_search(tiny_model, example, metrics, hooks, n=1)
        found = greedy_ablation(
            tiny_model,
            example,
            metrics,
            [edit for edit in heads_of_layer_1(tiny_model) if edit_name(edit) in hooks],
            tolerance=INFINITY,
            max_removals=1,
            progress=False,
        )
    assert_same(found, expected)
