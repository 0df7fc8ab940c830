"""Greedy search, against the same search written with `run_with_hooks`, run by run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.errors import HookNameError, InterventionError, MetricError, SweepError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.interventions.ablation import (
    MeanAblation,
    ResampleAblation,
    SkipLayer,
    ZeroAblation,
)
from hooked_whisper.interventions.edits import Edit, Interventions
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.metrics import as_metric
from hooked_whisper.interventions.search import (
    GreedyAblation,
    edit_name,
    greedy_ablation,
    head_ablations,
    layer_ablations,
)
from hooked_whisper.interventions.sequence_metrics import KLDivergence, SequenceLogProb
from hooked_whisper.interventions.sites import Site
from hooked_whisper.interventions.token_metrics import LogitDifference, LogProb
from hooked_whisper.interventions.transcript_metrics import ExactTranscript
from hooked_whisper.speech.mel import Mel

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
    metrics = both(LogitDifference(5, 60))
    expected = plain_search(tiny_model, example, metrics, all_heads(tiny_model), n=1)
    found = greedy_ablation(
        tiny_model, example, metrics[0], tolerance=INFINITY, max_removals=1, progress=False
    )
    assert_same(found, expected)
    assert len(found.left) == 22 - 1


def test_layers(tiny_model: Any, example: Example) -> None:
    metrics = both(LogitDifference(5, 60))
    expected = plain_search(tiny_model, example, metrics, all_layers(tiny_model))
    found = greedy_ablation(
        tiny_model, example, metrics[0], "layers", tolerance=INFINITY, progress=False
    )
    assert_same(found, expected)
    assert found.left == ()


def test_heads_and_layers_together(tiny_model: Any, example: Example) -> None:
    hooks = all_heads(tiny_model, layers=(1,)) | all_layers(tiny_model)
    metrics = both(LogitDifference(5, 60))
    expected = plain_search(tiny_model, example, metrics, hooks, n=2)
    candidates = [*heads_of_layer_1(tiny_model), *layer_ablations(tiny_model)]
    assert len(candidates) == len(hooks) == 13
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


def test_the_removals_give_the_value(tiny_model: Any, example: Example) -> None:
    """The edits of a result, put in together, do what its last line says."""
    metric = LogitDifference(5, 60)
    found = greedy_ablation(
        tiny_model, example, metric, "layers", tolerance=INFINITY, max_removals=2, progress=False
    )
    with torch.no_grad(), Interventions(tiny_model, *found.edits):
        logits = tiny_model(example.mel, example.tokens)
    assert metric(logits).mean().item() == pytest.approx(found.removals[-1].value, abs=1e-5)


@pytest.mark.parametrize("max_bytes", [1, 300_000], ids=["one at a time", "some at a time"])
def test_memory_changes_no_number(tiny_model: Any, example: Example, max_bytes: int) -> None:
    options = {"tolerance": INFINITY, "max_removals": 1, "progress": False}
    metric, candidates = LogitDifference(5, 60), heads_of_layer_1(tiny_model)
    one = greedy_ablation(tiny_model, example, metric, candidates, max_bytes=max_bytes, **options)
    many = greedy_ablation(tiny_model, example, metric, candidates, **options)
    assert one.edits == many.edits != []
    values = [[each.value for each in result.removals] for result in (one, many)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


# When it ends


def test_it_ends_where_the_metric_would_change_too_much(tiny_model: Any, example: Example) -> None:
    metrics = both(LogitDifference(5, 60))
    layers = all_layers(tiny_model)
    every = plain_search(tiny_model, example, metrics, layers)
    tolerance = every[2][2] + 1e-4
    allowed = [change <= tolerance for _, _, change in every]
    expected = every[: allowed.index(False)]
    found = greedy_ablation(
        tiny_model, example, metrics, "layers", tolerance=tolerance, progress=False
    )
    assert 0 < len(found.removals) < 5
    assert_same(found, expected)
    assert all(removal.change <= tolerance for removal in found.removals)
    assert found.complete


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


# What it costs


def count_encoder_runs(model: Any, run: Callable[[], Any]) -> int:
    rows = []
    with model.hooks(fwd_hooks=[("encoder.hook_mel", lambda mel, hook: rows.append(len(mel)))]):
        run()
    return sum(rows)


@pytest.mark.parametrize("of_layers", [True, False], ids=["layers", "heads"])
def test_the_decoders_candidates_run_the_encoder_once(
    tiny_model: Any, example: Example, of_layers: bool
) -> None:
    candidates = (
        layer_ablations(tiny_model, "decoder")
        if of_layers
        else head_ablations(tiny_model, "decoder.*.1.*attn.hook_z")
    )

    def run() -> None:
        greedy_ablation(
            tiny_model,
            example,
            LogProb(3),
            candidates,
            tolerance=INFINITY,
            max_removals=2,
            progress=False,
        )

    assert count_encoder_runs(tiny_model, run) == 2  # recordings


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


def hooks_left(model: Any) -> int:
    return sum(len(point._forward_hooks) for point in model.hook_dict.values())


class Stops:
    """A metric that interrupts at its n-th call."""

    def __init__(self, n: int, error: BaseException) -> None:
        self.n, self.error = n, error

    def __call__(self, logits: Tensor) -> Tensor:
        self.n -= 1
        if self.n < 0:
            raise self.error
        return logits[:, -1, 5] - logits[:, -1, 60]


def test_ctrl_c_keeps_what_is_done_and_it_goes_on(
    tiny_model: Any, example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = layer_ablations(tiny_model, "decoder")

    def search(n_calls: int, resume: GreedyAblation | None = None) -> GreedyAblation:
        return greedy_ablation(
            tiny_model,
            example,
            Stops(n_calls, KeyboardInterrupt()),
            candidates,
            tolerance=INFINITY,
            progress=False,
            resume=resume,
        )

    whole = search(10**9)
    # 2 clean runs, a round of 3 layers and 2 recordings, and some of the next round.
    part = search(2 + 6 + 3)
    assert not part.complete and "not complete" in repr(part)
    assert part.removals == whole.removals[:1]
    assert len(part.left) == 2
    assert hooks_left(tiny_model) == 0
    assert "stopped after 1 removals; pass resume=result" in capsys.readouterr().err
    assert search(10**9, resume=part) == whole
    assert len(part.removals) == 1


def test_an_error_on_the_way_keeps_what_is_done(tiny_model: Any, example: Example) -> None:
    stopping = Stops(2 + 6 + 3, RuntimeError("no memory"))
    candidates = layer_ablations(tiny_model, "decoder")
    with pytest.raises(
        SweepError, match=r"after 1 removals: RuntimeError: no memory What is done is in"
    ) as caught:
        greedy_ablation(
            tiny_model, example, stopping, candidates, tolerance=INFINITY, progress=False
        )
    result = caught.value.result
    assert isinstance(result, GreedyAblation)
    assert len(result.removals) == 1 and not result.complete
    assert hooks_left(tiny_model) == 0


def test_an_error_in_the_first_round_is_itself(tiny_model: Any, example: Example) -> None:
    with pytest.raises(ZeroDivisionError):
        greedy_ablation(
            tiny_model, example, Stops(4, ZeroDivisionError()), tolerance=1, progress=False
        )
    assert hooks_left(tiny_model) == 0


def test_the_bar_is_on_stderr_and_can_be_turned_off(
    tiny_model: Any, example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = layer_ablations(tiny_model, "decoder")[:1]
    greedy_ablation(tiny_model, example, LogProb(3), edits, tolerance=INFINITY)
    shown = capsys.readouterr()
    assert shown.out == "" and "greedy ablation, 0 removed" in shown.err
    greedy_ablation(tiny_model, example, LogProb(3), edits, tolerance=INFINITY, progress=False)
    assert capsys.readouterr() == ("", "")


# The table


def test_its_table(tiny_model: Any, example: Example) -> None:
    candidates = [
        ZeroAblation(Site("decoder.blocks.2.cross_attn.hook_z", head=1)),
        SkipLayer("encoder", 1),
        Halve(0),
    ]
    found = greedy_ablation(
        tiny_model, example, LogProb(3), candidates, tolerance=INFINITY, progress=False
    )
    table = found.to_dataframe().set_index("edit")
    assert list(table.columns) == [
        *("step", "stack", "layer", "part", "head", "value", "change", "n_left")
    ]
    assert sorted(table.step) == [1, 2, 3] and sorted(table.n_left) == [0, 1, 2]
    head = table.loc["decoder 2 cross_attn head 1"]
    assert (head.stack, head.layer, head.part, head["head"]) == ("decoder", 2, "cross_attn", 1)
    layer = table.loc["encoder 1"]
    assert (layer.stack, layer.layer) == ("encoder", 1)
    assert table.loc["Halve(layer=0)"].isna()[["stack", "layer", "part", "head"]].all()
    assert repr(found).startswith(f"GreedyAblation(LogProb from {found.baseline:.4g}, to ")
    assert repr(found).endswith("3 removed, 0 left)")


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (ZeroAblation(Site("encoder.blocks.1.attn.hook_z", head=0)), "encoder 1 attn head 0"),
        (SkipLayer("decoder", 2), "decoder 2"),
        (
            ResampleAblation(Site("encoder.blocks.1.attn.hook_z", head=0)),
            "ResampleAblation(site=Site(name='encoder.blocks.1.attn.hook_z', head=0, pos=None,",
        ),
        (ZeroAblation(Site("*.attn.hook_z", head=0)), "ZeroAblation(site=Site(name='*.attn"),
        (ZeroAblation(Site("decoder.hook_embed")), "ZeroAblation(site=Site(name='decoder.hook"),
    ],
    ids=["head", "layer", "other", "glob", "no block"],
)
def test_names_of_edits(edit: Edit, name: str) -> None:
    assert edit_name(edit).startswith(name)


# What is refused


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"candidates": "neurons"}, InterventionError, r"'neurons'; they can be \"heads\""),
        ({"candidates": []}, InterventionError, r"list of candidates is empty"),
        ({"tolerance": -1}, InterventionError, r"tolerance is -1; it must be 0 or more"),
        ({"tolerance": float("nan")}, InterventionError, r"tolerance is nan"),
        ({"max_removals": 0}, InterventionError, r"max_removals is 0; it must be 1 or more"),
        ({"max_bytes": 0}, InterventionError, r"max_bytes is 0; give a number above 0"),
        ({"examples": []}, InterventionError, r"no examples were given"),
        ({"metric": [LogProb(3)] * 3}, InterventionError, r"3 metrics for 2 rows"),
        ({"metric": None}, MetricError, r"None is no metric"),
        ({"metric": LogProb(3, pos=9)}, MetricError, r"LogProb reads position 9; there are 7"),
        ({"metric": LogProb(500)}, MetricError, r"token is 500, out of the vocabulary"),
        ({"metric": LogProb((1, 2))}, MetricError, r"token has 2 token ids for 1 rows"),
        ({"metric": lambda x: x.mean()}, MetricError, r"returned a tensor of shape \(\)"),
        ({"metric": lambda x: x[:, 0, 0] / 0}, MetricError, r"gave -?inf in row 0"),
    ],
    ids=[
        "unknown candidates",
        "no candidates",
        "tolerance below 0",
        "tolerance NaN",
        "no removals",
        "no memory",
        "no examples",
        "too many metrics",
        "no metric",
        "position",
        "token",
        "too many tokens",
        "one number for all",
        "infinite",
    ],
)
def test_it_refuses(
    tiny_model: Any, example: Example, changes: dict[str, Any], error: Any, message: str
) -> None:
    given: dict[str, Any] = {"examples": example, "metric": LogProb(3), "tolerance": 1, **changes}
    with pytest.raises(error, match=message):
        greedy_ablation(tiny_model, progress=False, **given)
    assert hooks_left(tiny_model) == 0


def test_it_refuses_what_is_no_edit(tiny_model: Any, example: Example) -> None:
    edit = SkipLayer("decoder", 0)
    for candidates, message in (
        ([edit, edit], "a candidate is in the list twice"),
        ([edit, None], r"None is no edit\. Candidates are edits such as"),
    ):
        with pytest.raises(InterventionError, match=message):
            greedy_ablation(
                tiny_model, example, LogProb(3), candidates, tolerance=1, progress=False
            )


def test_it_refuses_sites_that_are_not_there(tiny_model: Any, example: Example) -> None:
    with pytest.raises(HookNameError, match=r"there are decoder blocks 0 to 2"):
        head_ablations(tiny_model, "decoder.blocks.7.attn.hook_z")
    with pytest.raises(InterventionError, match="no heads"):
        head_ablations(tiny_model, "decoder.blocks.0.hook_mlp_out")
    with pytest.raises(InterventionError, match=r"no encoder layer 5 to skip"):
        greedy_ablation(
            tiny_model,
            example,
            LogProb(3),
            [SkipLayer("encoder", 5)],
            tolerance=1,
            progress=False,
        )


def test_it_refuses_to_go_on_with_another_search(tiny_model: Any, example: Example) -> None:
    options = {"tolerance": INFINITY, "max_removals": 1, "progress": False}
    earlier = greedy_ablation(tiny_model, example, LogProb(3), "layers", **options)
    with pytest.raises(InterventionError, match="the result to resume has other candidates"):
        greedy_ablation(tiny_model, example, LogProb(3), "heads", resume=earlier, **options)


# On real speech


@pytest.fixture(scope="module")
def digits() -> HookedWhisper:
    return HookedWhisper.from_pretrained("digits")


def test_by_the_transcript(digits: HookedWhisper) -> None:
    said = recordings()[0]
    spoken = Example.from_audio(digits, said.path, " " + said.text)
    candidates: list[Edit] = [
        SkipLayer("decoder", 0),
        ZeroAblation(Site("decoder.blocks.1.attn.hook_z", head=2)),
    ]
    found = greedy_ablation(
        digits,
        spoken,
        ExactTranscript(said.text),
        candidates,
        tolerance=0,
        max_new_tokens=6,
        progress=False,
    )
    assert found.baseline == 1
    expected = []
    for edit in candidates:
        with torch.no_grad(), Interventions(digits, edit):
            text = digits.generate(spoken.mel, 6).texts[0]
        expected.append(text == said.text)
    assert expected == [False, True]
    assert found.edits == candidates[1:] and found.left == tuple(candidates[:1])


def test_heads_can_go_without_a_change_of_the_text(digits: HookedWhisper) -> None:
    said = recordings()[0]
    spoken = Example.from_audio(digits, said.path, " " + said.text, append_eot=True)
    with torch.no_grad():
        reference = digits(spoken.mel, spoken.tokens)
    found = greedy_ablation(
        digits,
        spoken,
        KLDivergence(reference, pos=[3, 4, 5, 6]),
        head_ablations(digits, "decoder.blocks.[123].attn.hook_z"),
        tolerance=0.05,
        max_removals=3,
        progress=False,
    )
    assert len(found.removals) == 3
    with torch.no_grad(), Interventions(digits, *found.edits):
        assert digits.generate(spoken.mel).texts[0] == said.text
