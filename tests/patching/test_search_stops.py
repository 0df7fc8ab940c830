"""A greedy search that is stopped, fails, goes on, and is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import InterventionError, SweepError
from hooked_whisper.interventions.ablation import (
    MeanAblation,
    ResampleAblation,
    SkipLayer,
    ZeroAblation,
)
from hooked_whisper.interventions.attention_edits import RestrictAttention
from hooked_whisper.interventions.edits import Edit, HookPair
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import Site
from hooked_whisper.metrics.tokens import LogitDifference, LogProb
from hooked_whisper.patching.search import (
    GreedyAblation,
    edit_name,
    greedy_ablation,
    head_ablations,
    layer_ablations,
)
from hooked_whisper.speech.mel import Mel

INFINITY = float("inf")


@pytest.fixture
def example(tiny_mel: Tensor, tiny_tokens: Tensor) -> Example:
    """Two recordings side by side."""
    return Example(Mel(tiny_mel, torch.tensor([40, 60])), tiny_tokens)


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


@pytest.fixture
def mean(tiny_model: Any) -> Callable[[float], MeanAblation]:
    """A candidate, with a mean that is all one number."""
    name = "decoder.blocks.1.hook_mlp_out"

    def make(value: float) -> MeanAblation:
        return MeanAblation(Site(name), torch.full((tiny_model.cfg.d_model,), value))

    return make


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"seed": 1}, "other weights"),
    "kind of metric": ({"metric": LogitDifference(3, 5)}, "other metric: 'LogProb', not 'Logit"),
    "token of the metric": ({"metric": LogProb(4)}, "other metric's settings"),
    "recording": ({"flip": True}, "other examples"),
    "candidates": ({"names": ["decoder 0"]}, "other candidates"),
    "mean of a candidate": ({"mean": 0.5}, "other candidates"),
    "length of texts": ({"max_new_tokens": 3}, "other max_new_tokens: None, not 3"),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS)
def test_it_refuses_to_go_on_with_another_search(
    tiny_model: Any,
    tiny_cfg: Any,
    make_model: Any,
    example: Example,
    mean: Callable[[float], MeanAblation],
    changes: dict[str, Any],
    message: str,
) -> None:
    skips = layer_ablations(tiny_model, "decoder")
    options: dict[str, Any] = {"tolerance": INFINITY, "max_removals": 1, "progress": False}
    metric = LogProb(3)
    earlier = greedy_ablation(tiny_model, example, metric, [*skips, mean(0.25)], **options)

    changes = dict(changes)
    seed = changes.pop("seed", None)
    model = tiny_model if seed is None else make_model(tiny_cfg, seed=seed)
    if changes.pop("flip", False):
        example = Example(Mel(example.mel.values.flip(2), example.mel.n_frames), example.tokens)
    candidates = [*skips, mean(changes.pop("mean", 0.25))]
    if names := changes.pop("names", None):
        candidates = [edit for edit in candidates if edit_name(edit) in names]
    given = {"metric": metric, **options, **changes}

    def never(value: Tensor, hook: Any) -> None:
        raise AssertionError("computed before the result was checked")

    with (
        model.hooks(fwd_hooks=[("encoder.hook_mel", never)]),
        pytest.raises(InterventionError, match=message),
    ):
        greedy_ablation(model, example, candidates=candidates, resume=earlier, **given)


@dataclass(frozen=True)
class Halve(Edit):
    """An edit of one's own, at several hooks of both stacks."""

    layer: int

    def hooks(self, model: HookedWhisper) -> list[HookPair]:
        return [
            (f"{stack}.blocks.{self.layer}.hook_mlp_out", lambda value, hook: value / 2)
            for stack in ("encoder", "decoder")
        ]


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
            "encoder 1 attn head 0 (ResampleAblation)",
        ),
        (RestrictAttention("encoder", 5), "RestrictAttention(stack='encoder', half_width=5,"),
        (ZeroAblation(Site("*.attn.hook_z", head=0)), "ZeroAblation(site=Site(name='*.attn"),
        (ZeroAblation(Site("decoder.hook_embed")), "ZeroAblation(site=Site(name='decoder.hook"),
    ],
    ids=["head", "layer", "of another kind", "no one place", "glob", "no block"],
)
def test_names_of_edits(edit: Edit, name: str) -> None:
    assert edit_name(edit).startswith(name)
