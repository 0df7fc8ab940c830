"""Thresholds against loops over all of them, ties included."""

import pytest
import torch
from sklearn.metrics import f1_score

from hooked_whisper.analysis.thresholds import precision_at_recall, threshold_of_best_f1


def test_the_threshold_is_that_of_a_loop_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        score = torch.randint(5, (12,), generator=generator).double()
        is_value = torch.rand(12, generator=generator) < 0.4
        is_value[0] = True
        tried = {each: f1_score(is_value, score >= each) for each in score.unique().tolist()}
        assert tried[threshold_of_best_f1(score, is_value)] == pytest.approx(max(tried.values()))


@pytest.mark.parametrize("recall", [0.2, 0.5, 1.0])
def test_precision_at_a_recall_is_the_mean_over_orders_of_ties(recall: float) -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(3, (600,), generator=generator).float()
    is_value = torch.rand(600, generator=generator) < 0.4
    is_value[:400] |= score[:400] == 2
    wanted = recall * int(is_value.sum())
    needed = []
    for seed in range(100):
        order = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
        ranked = order[score[order].argsort(descending=True, stable=True)]
        right = is_value[ranked].cumsum(0)
        needed.append(int((right < wanted).sum()) + 1)
    expected = wanted / (sum(needed) / len(needed))
    found = float(precision_at_recall(score, is_value, recall))
    assert found == pytest.approx(expected, rel=0.05)
