"""Sparse encoding and decoding give what matrix products give."""

import pytest
import torch
from torch import Tensor

from hooked_whisper.sae import selection as selecting
from hooked_whisper.sae.selection import (
    Selection,
    select_positive,
    select_top_k,
    select_top_of_batch,
    top_k,
)
from hooked_whisper.sae.sparse import decode_selected, encode_selected

SHAPES = pytest.mark.parametrize(
    ("n", "d_in", "d_sae", "k"),
    [(1, 3, 8, 1), (50, 6, 40, 3), (200, 8, 512, 16), (33, 4, 65, 7), (3, 4, 5, 5), (9, 2, 64, 60)],
)
"""With groups of latents and without; one chunk and several."""

SCALED = pytest.mark.parametrize("is_scaled", [False, True], ids=["plain", "scaled"])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selecting, "_CHUNK_ELEMENTS", 1 << 15)


@pytest.fixture(params=[1.0, -1.0], ids=["sparse", "dense"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of decoding, however many entries there are."""
    monkeypatch.setattr(selecting, "_SPARSE_SHARE", {"cpu": request.param})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@SHAPES
def test_the_k_largest_are_torchs(
    n: int, d_in: int, d_sae: int, k: int, dtype: torch.dtype
) -> None:
    pre = torch.randn(n, d_sae).to(dtype)
    values, indices = top_k(pre, k)
    assert torch.equal(values.sort().values, pre.topk(k).values.sort().values)
    assert torch.equal(pre.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_of_equal_ones_the_k_largest_are_k_different_ones() -> None:
    values, indices = top_k(torch.ones(4, 256), 8)
    assert torch.equal(values, torch.ones(4, 8))
    assert all(len(set(row)) == 8 for row in indices.tolist())


@SCALED
@SHAPES
def test_the_k_largest_of_each_vector(
    n: int, d_in: int, d_sae: int, k: int, is_scaled: bool
) -> None:
    x, W_enc, b_enc, scale, pre = _example(n, d_in, d_sae, is_scaled)
    values, selection = select_top_k(x, W_enc, b_enc, k, scale)
    best = _times(pre, scale).topk(k).indices
    expected = torch.zeros_like(pre).scatter(1, best, 1) * pre
    torch.testing.assert_close(_matrix(values, selection), expected)


@SCALED
@SHAPES
def test_the_largest_of_the_batch(n: int, d_in: int, d_sae: int, k: int, is_scaled: bool) -> None:
    x, W_enc, b_enc, scale, pre = _example(n, d_in, d_sae, is_scaled)
    values, selection = select_top_of_batch(x, W_enc, b_enc, n * k, scale)
    compared = _times(pre, scale).relu().flatten()
    best = compared.topk(n * k)
    kept = torch.zeros_like(compared).scatter(0, best.indices, (best.values > 0).to(pre))
    torch.testing.assert_close(_matrix(values, selection), kept.view_as(pre) * pre)
    assert values.min() > 0


def test_the_largest_of_a_batch_whose_first_vectors_tell_nothing_of_the_others() -> None:
    x = torch.zeros(1000, 2)
    x[7] = 1  # what the bound is guessed from has none of it
    values, selection = select_top_of_batch(x, torch.ones(2, 64), torch.arange(64.0) / 100, 900)
    expected = (x @ torch.ones(2, 64) + torch.arange(64.0) / 100).flatten().topk(900).values
    torch.testing.assert_close(values.sort().values, expected.sort().values)
    assert (selection.rows == 7).sum() == 64


def test_of_equal_ones_only_so_many_are_taken_of_a_batch() -> None:
    values, _ = select_top_of_batch(torch.ones(10, 2), torch.ones(2, 16), torch.zeros(16), 25)
    assert values.tolist() == [2.0] * 25


def test_no_more_than_the_positive_ones_are_taken_of_a_batch() -> None:
    b_enc = torch.tensor([1.0, -1.0, 2.0, -3.0])
    values, selection = select_top_of_batch(torch.zeros(3, 2), torch.zeros(2, 4), b_enc, 9)
    assert values.tolist() == [1.0, 2.0] * 3
    assert selection.indices.tolist() == [0, 2] * 3


@SHAPES
def test_the_positive_ones(n: int, d_in: int, d_sae: int, k: int) -> None:
    x, W_enc, b_enc, _, pre = _example(n, d_in, d_sae, False)
    values, selection = select_positive(x, W_enc, b_enc)
    torch.testing.assert_close(_matrix(values, selection), pre.relu())


@pytest.mark.usefixtures("_way")
@SHAPES
def test_gradients_are_autograds(n: int, d_in: int, d_sae: int, k: int) -> None:
    x, W_enc, b_enc, _, _ = _example(n, d_in, d_sae, False)
    b_dec, W_dec = torch.randn(d_in).double(), torch.randn(d_sae, 5).double()
    weights = [each.requires_grad_() for each in (W_enc, b_enc, b_dec, W_dec)]
    values, selection = select_top_of_batch(x - b_dec.detach(), W_enc, b_enc, n * k)
    values = encode_selected(x - b_dec.detach(), W_enc, b_enc, b_dec, values, selection)
    recons = decode_selected(values, W_dec, selection)
    matrix = selection.as_matrix(torch.ones_like(values.detach()))
    expected = (((x - b_dec) @ W_enc + b_enc) * matrix) @ W_dec
    torch.testing.assert_close(recons, expected)
    upstream = torch.randn_like(recons)
    for ours, theirs in zip(
        torch.autograd.grad(recons, weights, upstream),
        torch.autograd.grad(expected, weights, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("_way")
def test_gradients_are_finite_differences() -> None:
    x = torch.randn(5, 4).double()
    shapes = [(4, 10), (10,), (4,), (10, 3)]
    weights = [torch.randn(shape).double().requires_grad_() for shape in shapes]
    selection = select_top_of_batch(x, weights[0].detach(), weights[1].detach(), 12)[1]

    def recons(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, W_dec: Tensor) -> Tensor:
        inputs = (x - b_dec).detach()
        values = (inputs @ W_enc + b_enc).detach()[selection.rows, selection.indices]
        values = encode_selected(inputs, W_enc, b_enc, b_dec, values, selection)
        return decode_selected(values, W_dec, selection)

    assert torch.autograd.gradcheck(recons, weights)


def test_part_of_a_selection() -> None:
    selection = Selection(torch.tensor([4, 0, 2, 3]), torch.tensor([0, 2, 2, 4]), 5)
    part, kept = selection.between(2, 4)
    assert kept.tolist() == [False, False, True, True]
    assert (part.indices.tolist(), part.rows.tolist()) == ([2, 3], [2, 2])
    assert selection.active(torch.tensor([1.0, 0, 2, 3])).tolist() == [0, 0, 1, 1, 1]


def _example(
    n: int, d_in: int, d_sae: int, is_scaled: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    x, W_enc, b_enc = (torch.randn(s).double() for s in ((n, d_in), (d_in, d_sae), (d_sae,)))
    return (
        x,
        W_enc,
        b_enc,
        torch.rand(d_sae).double() + 0.5 if is_scaled else None,
        x @ W_enc + b_enc,
    )


def _times(pre: Tensor, scale: Tensor | None) -> Tensor:
    return pre if scale is None else pre * scale


def _matrix(values: Tensor, selection: Selection) -> Tensor:
    """All latents, vector by vector."""
    result = torch.zeros(selection.n_vectors, selection.n_latents, dtype=values.dtype)
    for row in range(selection.n_vectors):
        entries = slice(int(selection.offsets[row]), int(selection.offsets[row + 1]))
        result[row, selection.indices[entries]] = values[entries]
    return result
