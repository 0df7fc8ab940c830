"""What a greedy search refuses, before it computes anything."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import HookNameError, InterventionError, MetricError
from hooked_whisper.interventions.ablation import SkipLayer
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.tokens import LogProb
from hooked_whisper.patching.search import greedy_ablation, head_ablations
from hooked_whisper.speech.mel import Mel


@pytest.fixture
def example(tiny_mel: Tensor, tiny_tokens: Tensor) -> Example:
    """Two recordings side by side."""
    return Example(Mel(tiny_mel, torch.tensor([40, 60])), tiny_tokens)


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
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


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
