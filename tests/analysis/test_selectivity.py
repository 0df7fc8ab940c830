"""AUROC by counting pairs, mutual information by counting frames."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.analysis import selectivity as module
from hooked_whisper.analysis.selectivity import (
    ActiveLatents,
    Labels,
    LatentCollector,
    auroc,
    selectivity,
)
from hooked_whisper.errors import InputError


def pairs_won(values: list[float], has: list[bool]) -> float:
    """The AUROC, pair by pair."""
    pairs = list(
        product(
            [v for v, h in zip(values, has, strict=True) if h],
            [v for v, h in zip(values, has, strict=True) if not h],
        )
    )
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    return won / len(pairs) if pairs else math.nan


def information(a: list[Any], b: list[Any]) -> float:
    """Mutual information in nats, from probabilities written out."""
    n, total = len(a), 0.0
    pairs = list(zip(a, b, strict=True))
    for x, y in set(pairs):
        both = pairs.count((x, y)) / n
        total += both * math.log(both / (a.count(x) / n) / (b.count(y) / n))
    return total


def draw(kind: str, n: int, d: int) -> Tensor:
    generator = torch.Generator().manual_seed(n + d)
    values = torch.randn(n, d, generator=generator)
    if kind == "sparse":
        return values.relu() * (torch.rand(n, d, generator=generator) < 0.4)
    return values.mul(2).round() if kind == "ties" else values


CASES = {
    "sparse": ("sparse", 60, 5, 3),
    "negative and positive": ("floats", 41, 3, 2),
    "many ties": ("ties", 50, 4, 4),
    "one vector": ("sparse", 1, 3, 2),
}


@pytest.mark.parametrize(("kind", "n", "d", "n_values"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("at_once", [1, 1_000_000], ids=["latent by latent", "all at once"])
def test_numbers_are_those_of_counting(
    kind: str, n: int, d: int, n_values: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", at_once)
    latents = draw(kind, n, d)
    latents[:, 0] = 0  # a latent that is never active
    ids = torch.randint(-1, n_values, (n,), generator=torch.Generator().manual_seed(1))
    labels = Labels("digit", tuple("abcd"[:n_values]), ids)
    found = selectivity(latents, labels, unit="nats")["digit"]
    known = [i for i in range(n) if ids[i] >= 0]
    said = [int(ids[i]) for i in known]
    for latent, value in product(range(d), range(n_values)):
        values = [float(latents[i, latent]) for i in known]
        has, on = [s == value for s in said], [v != 0 for v in values]
        expected = pairs_won(values, has)
        assert float(found.auroc[latent, value]) == pytest.approx(expected, nan_ok=True)
        assert float(found.information[latent, value]) == pytest.approx(
            information(on, has) if known else 0, abs=1e-9
        )
        assert float(found.information_all[latent]) == pytest.approx(
            information(on, said) if known else 0, abs=1e-9
        )
    assert found.n.tolist() == [said.count(value) for value in range(n_values)]


def test_a_million_ties_do_not_cost_digits() -> None:
    n = 300_000
    latents = torch.zeros(n, 1)
    latents[: n // 2] = 1.0
    ids = (torch.arange(n) >= n // 4).long()
    # A quarter has the value 0, all of them active; a third of the others is active too.
    assert float(auroc(latents, Labels("x", ("a", "b"), ids))[0, 0]) == pytest.approx(
        5 / 6, abs=1e-12
    )


def test_batches_give_what_one_batch_gives() -> None:
    latents = draw("sparse", 50, 6)
    collector = LatentCollector()
    for part in latents.split([20, 1, 0, 29]):
        collector.add(part)
    whole, parts = ActiveLatents.of(latents), collector.result()
    assert parts.n_vectors == 50
    for name in ("offsets", "vectors", "activations"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name


def test_a_constant_label_has_no_auroc_and_tells_nothing() -> None:
    labels = Labels.of("speaker", ["theo"] * 4)
    found = selectivity(torch.rand(4, 3), labels)["speaker"]
    assert bool(found.auroc.isnan().all()) and float(found.information.abs().max()) == 0
    assert found.best() == []


def test_bits_are_nats_over_ln_2() -> None:
    latents, labels = torch.eye(2).repeat(3, 1), Labels.of("digit", ["one", "two"] * 3)
    assert selectivity(latents, labels)["digit"].information.flatten().tolist() == [1.0] * 4
    nats = selectivity(latents, labels, "nats")["digit"].information_all
    assert nats.tolist() == pytest.approx([math.log(2)] * 2)


def test_the_best_latent_of_each_value_is_found() -> None:
    said = ["one", "two", "three", "two"]
    latents = torch.tensor([[0.0, 1, 0], [3, 0, 0], [0, 0.5, 2], [1, 0, 0]])
    found = selectivity(latents, [Labels.of("digit", said), Labels.of("half", [0, 0, 1, 1])])
    best = {value: latent for value, latent, _ in found["digit"].best()}
    assert best == {"one": 1, "two": 0, "three": 2}
    table = found.best(n=2)
    assert table.loc[table.label == "digit", "value"].tolist() == [
        "one", "one", "three", "three", "two", "two",
    ]  # fmt: skip
    assert table.query("value == 'two'").auroc.tolist() == [1.0, 0.25]
    assert len(found.to_dataframe()) == 3 * (3 + 2)


def test_bad_input_is_said(without_shape_checks: None) -> None:
    latents = torch.rand(4, 2)
    labels = Labels.of("digit", ["one"] * 3)
    with pytest.raises(InputError, match="known for 3 vectors, and there are latents of 4"):
        selectivity(latents, labels)
    with pytest.raises(InputError, match="pass at least one, each with its own name"):
        selectivity(latents[:3], [labels, labels])
    with pytest.raises(InputError, match="nats"):
        selectivity(latents[:3], labels, "bytes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="go from 0 to 5; its 2 values have 0 to 1"):
        Labels("digit", ("a", "b"), torch.tensor([0, 5]))
    with pytest.raises(InputError, match="'four' is none of the values of 'digit'"):
        Labels.of("digit", ["four"], ["one"])
    with pytest.raises(InputError, match="not finite"):
        selectivity(torch.tensor([[torch.nan]]), Labels.of("digit", ["one"]))
    with pytest.raises(InputError, match="no label 'speaker'; there are digit"):
        selectivity(latents[:3], labels)["speaker"]
