"""What single latents tell of a label, against scikit-learn and loops over all thresholds."""

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import (
    f1_score,
    mutual_info_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
)

import hooked_whisper.analysis.selectivity
from hooked_whisper.analysis.selectivity import ActiveLatents, Labels
from hooked_whisper.errors import InputError
from hooked_whisper.figures import plot_confusion
from hooked_whisper.sae import best_f1, readout
from hooked_whisper.sae.evaluation.readout import NONE

VALUES = ["AA", "P", "S"]


def draw(seed: int, n: int, *, signed: bool = False) -> tuple[torch.Tensor, list[str | None]]:
    """Latents with ties and zeros, the first three of them about the values; some know none."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, (n,), generator=generator)  # 3 is none
    x = torch.randn(n, 7, generator=generator)
    x[:, :3] += 2.0 * torch.nn.functional.one_hot(ids, 4)[:, :3]
    x = (4 * x).round() / 4
    return (x if signed else x.relu()), [None if i == 3 else VALUES[i] for i in ids.tolist()]


@pytest.mark.parametrize("signed", [False, True], ids=["zeros", "signed"])
def test_the_best_f1_is_that_of_a_loop_over_thresholds(signed: bool) -> None:
    x, said = draw(0, 90, signed=signed)
    f1, thresholds, bits = best_f1(ActiveLatents.of(x), Labels.of("phone", said, VALUES))
    known = torch.tensor([value is not None for value in said])
    for latent in range(x.shape[1]):
        column = x[known, latent]
        for i, value in enumerate(VALUES):
            true = [each == value for each in said if each is not None]
            tried = column[column != 0].unique().tolist()  # 0 itself is no activity,
            tried += [0.0] if signed else []  # but where activations are below it
            scores = {each: f1_score(true, (column >= each).tolist()) for each in tried}
            assert float(f1[latent, i]) == pytest.approx(max(scores.values()))
            assert scores[float(thresholds[latent, i])] == pytest.approx(float(f1[latent, i]))
            yes = (column >= thresholds[latent, i]).tolist()
            nats = mutual_info_score(true, yes)
            assert float(bits[latent, i]) == pytest.approx(nats / math.log(2), abs=1e-9)


def test_latents_are_looked_at_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, said = draw(0, 60)
    active, labels = ActiveLatents.of(x), Labels.of("phone", said, VALUES)
    whole = best_f1(active, labels)
    monkeypatch.setattr(hooked_whisper.analysis.selectivity, "_ENTRIES_AT_ONCE", 50)
    for some, all_at_once in zip(best_f1(active, labels), whole, strict=True):
        assert torch.equal(some, all_at_once)


@pytest.mark.parametrize("choose", ["f1", "auroc"])
def test_what_was_chosen_is_judged_on_the_others_as_scikit_learn_does(choose: str) -> None:
    (x, said), (y, judged) = draw(1, 300), draw(2, 200)
    found = readout(
        ActiveLatents.of(x), Labels.of("phone", said), ActiveLatents.of(y),
        Labels.of("phone", judged), choose,  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.values == ("AA", "P", "S") and found.latents.tolist() == [0, 1, 2]
    known = torch.tensor([value is not None for value in judged])
    for i, value in enumerate(VALUES):
        true = [each == value for each in judged if each is not None]
        column = y[known, i]
        yes = (column >= found.thresholds[i]).tolist()
        assert float(found.auroc[i]) == pytest.approx(roc_auc_score(true, column))
        assert float(found.precision[i]) == pytest.approx(precision_score(true, yes))
        assert float(found.recall[i]) == pytest.approx(recall_score(true, yes))
        assert float(found.f1[i]) == pytest.approx(f1_score(true, yes))
        assert int(found.n[i]) == sum(true)
    assert found.mean_f1 > 0.4


def test_the_confusion_is_counted_vector_by_vector_and_groups_add_up() -> None:
    (x, said), (y, judged) = draw(3, 300), draw(4, 150)
    found = readout(
        ActiveLatents.of(x),
        Labels.of("phone", said),
        ActiveLatents.of(y),
        Labels.of("phone", judged),
    )
    spread = x[:, :3].double().std(dim=0)
    plain = torch.zeros(3, 4, dtype=torch.int64)
    for row, value in zip(y.double(), judged, strict=True):
        if value is not None:
            margins = [
                float((row[i] - found.thresholds[i]) / spread[i])
                if row[i] >= found.thresholds[i] else -1.0
                for i in range(3)
            ]  # fmt: skip
            told = max(range(3), key=margins.__getitem__) if max(margins) >= 0 else 3
            plain[VALUES.index(value), told] += 1
    assert found.confusion.tolist() == plain.tolist()
    assert found.accuracy == pytest.approx(float(plain.diagonal().sum() / plain.sum()))
    table = found.confusion_table()
    assert list(table.columns) == [*VALUES, NONE]
    assert table.to_numpy().sum(axis=1) == pytest.approx([1, 1, 1])
    groups = found.confusion_table({"P": "consonant", "S": "consonant", "AA": "vowel"})
    assert list(groups.index) == ["vowel", "consonant"]
    assert groups.loc["consonant", "consonant"] == pytest.approx(
        float(plain[1:, 1:3].sum() / plain[1:].sum())
    )


def test_values_of_one_side_alone_are_left_out_but_count_as_others() -> None:
    x, said = draw(5, 200)
    only = [value if value != "S" else "SH" for value in said]
    found = readout(
        ActiveLatents.of(x), Labels.of("phone", said), ActiveLatents.of(x), Labels.of("phone", only)
    )  # fmt: skip
    assert found.values == ("AA", "P")
    assert int(found.confusion.sum()) == sum(value in ("AA", "P") for value in said)
    yes = int((x[torch.tensor([v is not None for v in said]), 0] >= found.thresholds[0]).sum())
    right = sum(v == "AA" and x[i, 0] >= found.thresholds[0] for i, v in enumerate(said))
    assert float(found.precision[0]) == pytest.approx(float(right) / yes)
    with pytest.raises(InputError, match="no value of 'phone' is on both sides"):
        readout(
            ActiveLatents.of(x), Labels.of("phone", said), ActiveLatents.of(x),
            Labels.of("phone", ["Z"] * 200),
        )  # fmt: skip


def test_a_latent_that_is_active_once_is_not_chosen() -> None:
    x, said = draw(6, 200)
    x[:, 6] = 0
    place = said.index("P")
    x[place, 6] = 9.0
    few = [value if i == place or value != "P" else None for i, value in enumerate(said)]
    labels = Labels.of("phone", few)
    found = readout(ActiveLatents.of(x), labels, ActiveLatents.of(x), labels)
    assert int(found.latents[1]) != 6


def test_what_does_not_fit_is_refused(without_shape_checks: None) -> None:
    x, said = draw(7, 50)
    active, labels = ActiveLatents.of(x), Labels.of("phone", said)
    with pytest.raises(InputError, match="choose is 'best'"):
        readout(active, labels, active, labels, "best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="they must be the same"):
        readout(active, labels, active, Labels.of("word", said))
    with pytest.raises(InputError, match="they must be the same"):
        readout(active, labels, ActiveLatents.of(x[:, :3]), labels)


def test_it_shows_itself(shown: Any) -> None:
    x, said = draw(8, 200)
    labels = Labels.of("phone", said)
    found = readout(ActiveLatents.of(x), labels, ActiveLatents.of(x), labels)
    assert "mean F1" in repr(found)
    seen = shown(found)
    assert len(seen.rows) == 1 + len(VALUES) and "AUROC" in " ".join(seen.words)
    table = found.to_dataframe()
    assert list(table["value"]) == VALUES and table["f1"].between(0, 1).all()
    figure = found.plot({"P": "plosive", "S": "fricative", "AA": "vowel"})
    assert [each.get_text() for each in figure.axes[0].get_yticklabels()] == [
        *("vowel", "plosive", "fricative")
    ]
    with pytest.raises(InputError, match="2 rows and 1 columns are named"):
        plot_confusion(torch.eye(2), ["a", "b"], ["a"])


def test_the_readouts_precision_at_a_recall_is_scikit_learns() -> None:
    x, said = draw(0, 200, signed=True)
    y, judged_said = draw(1, 150, signed=True)
    y = y + 1e-3 * torch.arange(len(y))[:, None]  # no ties
    sides = [
        (ActiveLatents.of(v), Labels.of("phone", s, VALUES))
        for v, s in ((x, said), (y, judged_said))
    ]
    found = readout(*sides[0], *sides[1], at_recall=0.6)
    known = [i for i, value in enumerate(judged_said) if value is not None]
    for i, value in enumerate(VALUES):
        true = [judged_said[row] == value for row in known]
        column = y[known, int(found.latents[i])].tolist()
        precision, recalls, _ = precision_recall_curve(true, column)
        at = min(row for row in range(len(recalls)) if recalls[row] < 0.6) - 1
        assert float(found.precision_at_recall[i]) == pytest.approx(float(precision[at]), abs=0.03)
    with pytest.raises(InputError, match="at_recall is 0"):
        readout(*sides[0], *sides[1], at_recall=0.0)
