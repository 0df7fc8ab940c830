"""Directions of two autoencoders, matched as well as they can be."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.errors import InputError, SpliceError
from hooked_whisper.sae.evaluation.stability import assignment, decoder_stability


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 5), (5, 3), (6, 6)], ids=str)
@pytest.mark.parametrize("kind", ["floats", "ties"])
def test_no_other_pairs_have_a_greater_sum(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(shape[0] * 10 + shape[1])
    for _ in range(8):
        scores = (
            rng.standard_normal(shape) if kind == "floats" else rng.integers(-2, 2, shape) * 1.0
        )
        found = assignment(scores)
        rows = np.flatnonzero(found >= 0)
        assert len(rows) == min(shape) == len(set(found[rows].tolist()))
        wide = scores if shape[0] <= shape[1] else scores.T
        best = max(
            sum(wide[i, j] for i, j in enumerate(columns))
            for columns in permutations(range(max(shape)), min(shape))
        )
        assert scores[rows, found[rows]].sum() == pytest.approx(best)


def test_a_shuffled_copy_is_perfectly_stable(plain_sae: Any) -> None:
    sae, other = plain_sae(6, 20), plain_sae(6, 20, seed=1)
    order = torch.randperm(20)
    other.W_dec.data = 3 * sae.W_dec.data[order]  # another length, another order
    found = decoder_stability(sae, other)
    assert order[found.match].tolist() == list(range(20))
    assert found.mean_matched == pytest.approx(1)
    assert found.mean_nearest == pytest.approx(1)
    assert found.share_above(0.99) == 1


@pytest.mark.parametrize("sizes", [(7, 7), (5, 9), (9, 5)], ids=str)
def test_cosines_are_those_of_the_pairs(sizes: tuple[int, int], plain_sae: Any) -> None:
    sae, other = plain_sae(4, sizes[0]), plain_sae(4, sizes[1], seed=1)
    found = decoder_stability(sae, other)
    a, b = (each.W_dec / each.W_dec.norm(dim=1, keepdim=True) for each in (sae, other))
    cosines = (a @ b.T).detach()
    pairs = [(i, j) for i, j in enumerate(found.match.tolist()) if j >= 0]
    assert len(pairs) == min(sizes)
    expected = [float(cosines[i, j]) for i, j in pairs]
    assert found.matched[[i for i, _ in pairs]].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.mean_matched == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    both = [*cosines.amax(1).tolist(), *cosines.amax(0).tolist()]
    assert found.mean_nearest == pytest.approx(sum(both) / len(both), abs=1e-6)
    assert found.mean_matched <= float(cosines.amax(dim=1).mean()) + 1e-6 or sizes[0] > sizes[1]


def test_dead_latents_can_be_left_out(plain_sae: Any) -> None:
    sae, other = plain_sae(6, 8), plain_sae(6, 8, seed=1)
    other.W_dec.data[:5] = sae.W_dec.data[:5]
    used = torch.arange(8) < 5
    assert decoder_stability(sae, other).mean_matched < 0.99
    assert decoder_stability(sae, other, used, used).mean_matched == pytest.approx(1)


def test_what_cannot_be_compared_is_said(plain_sae: Any) -> None:
    with pytest.raises(InputError, match="writes vectors of 4 numbers, the second of 6"):
        decoder_stability(plain_sae(4, 8), plain_sae(6, 8))
    with pytest.raises(InputError, match=r"used is torch\.int64 of shape"):
        decoder_stability(plain_sae(4, 8), plain_sae(4, 8), torch.arange(8))
    with pytest.raises(InputError, match="no latents to compare"):
        decoder_stability(plain_sae(4, 8), plain_sae(4, 8), torch.zeros(8, dtype=torch.bool))
    broken = plain_sae(4, 8)
    broken.W_dec.data[0, 0] = torch.inf
    with pytest.raises(SpliceError, match="not finite"):
        decoder_stability(broken, plain_sae(4, 8))
