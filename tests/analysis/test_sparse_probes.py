"""Sparse probes against scikit-learn's logistic regression, features, thresholds and scores."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

from hooked_whisper.analysis import sparse_probe
from hooked_whisper.analysis.selectivity import Labels
from hooked_whisper.analysis.sparse_probes import logistic_regression
from hooked_whisper.errors import InputError

VALUES = ["AA", "P", "S"]


def draw(seed: int, n: int) -> tuple[torch.Tensor, list[str | None]]:
    """Nine features of other sizes, one constant; some vectors have no value."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, (n,), generator=generator)  # 3 is none
    x = torch.randn(n, 9, generator=generator)
    x[:, :3] += 1.5 * torch.nn.functional.one_hot(ids, 4)[:, :3]
    x[:, 3] -= (ids == 0).float()
    x[:, 8] = 7.0
    return x * torch.logspace(-2, 2, 9), [None if i == 3 else VALUES[i] for i in ids.tolist()]


def known(x: torch.Tensor, said: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
    kept = [i for i, value in enumerate(said) if value is not None]
    return x[kept].double().numpy(), np.array([said[i] for i in kept])


@pytest.mark.parametrize("strength", [1.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_every_probe_is_scikit_learns(strength: float) -> None:
    x, said = draw(0, 300)
    y, judged_said = draw(1, 170)
    labels, judged = (Labels.of("phone", each, VALUES) for each in (said, judged_said))
    found = sparse_probe(x, labels, y, judged, (1, 3, 100), strength=strength)
    assert found.ks == (1, 3, 9) and found.values == tuple(VALUES)
    (a, own), (b, others) = known(x, said), known(y, judged_said)
    spread = a.std(axis=0, ddof=1)
    spread[spread == 0] = 1
    for i, value in enumerate(VALUES):
        is_value, is_judged = own == value, others == value
        difference = (a[is_value].mean(axis=0) - a[~is_value].mean(axis=0)) / spread
        order = np.argsort(-abs(difference), kind="stable")
        assert found.features[i].tolist() == order.tolist()
        assert int(found.n[i]) == is_judged.sum()
        for row, k in enumerate(found.ks):
            u, v = (each[:, order[:k]] / spread[order[:k]] for each in (a, b))
            learner = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000).fit(
                u, is_value
            )
            scores = learner.decision_function(v)
            assert float(found.auroc[row, i]) == pytest.approx(
                roc_auc_score(is_judged, scores), abs=1e-3
            )
            own_scores = learner.decision_function(u)
            precision, recall, thresholds = precision_recall_curve(is_value, own_scores)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            threshold = thresholds[f1[:-1].argmax()]
            expected = f1_score(is_judged, scores >= threshold)
            assert float(found.f1[row, i]) == pytest.approx(expected, abs=0.02)
    frame = found.to_dataframe()
    assert frame["auroc"].tolist() == pytest.approx(found.auroc.mean(dim=1).tolist())
    assert "k 1 " in repr(found) and "auroc" in found._repr_html_()


@pytest.mark.parametrize("separable", [False, True])
def test_the_weights_are_scikit_learns(separable: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    noise = 0 if separable else torch.randn(200, generator=generator)
    is_value = x[:, 0] - 2 * x[:, 1] + noise > 1
    weights = logistic_regression(x, is_value, 0.5)
    learner = LogisticRegression(C=2.0, tol=1e-12, max_iter=10_000).fit(x, is_value)
    expected = [*learner.coef_[0], *learner.intercept_]
    assert weights.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": (0, 2)}, "features, 1 or more"),
        ({"judged_on": torch.zeros(3, 2)}, "they must be the same"),
        ({"judged_labels": Labels.of("word", ["AA", "P", "P"])}, "they must be the same"),
        ({"judged_labels": Labels.of("phone", ["AA", "P"])}, "known for 2 vectors"),
        ({"judged_labels": Labels.of("phone", ["S", "S", "S"])}, "no value of 'phone' can be told"),
        ({"strength": -1}, "strength is -1"),
    ],
    ids=["k", "features", "label", "vectors", "values", "strength"],
)
def test_what_cannot_be_judged_is_refused(changes: dict[str, Any], message: str) -> None:
    x, labels = torch.eye(3), Labels.of("phone", ["AA", "P", "P"])
    given = {"judged_on": x, "judged_labels": labels, **changes}
    with pytest.raises(InputError, match=message):
        sparse_probe(x, labels, **given)
