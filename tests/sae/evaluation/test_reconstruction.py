"""What an autoencoder gives back, against the formulas over all vectors at once."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import InputError, SpliceError
from hooked_whisper.sae.evaluation.reconstruction import (
    Reconstruction,
    ReconstructionMeter,
    decoder_cosines,
    decoder_directions,
    judge_reconstruction,
)

SHAPES = {"narrow": (50, 3, 7), "one batch's worth": (64, 16, 40), "few": (5, 8, 2)}


def vectors(n: int, d: int, offset: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n + d)) * 2 + offset


@pytest.mark.parametrize(("n", "d", "d_sae"), SHAPES.values(), ids=SHAPES.keys())
def test_every_number_is_its_formula(n: int, d: int, d_sae: int, plain_sae: Any) -> None:
    sae, x = plain_sae(d, d_sae), vectors(n, d)
    latents = sae.encode(x)
    recons = sae.decode(latents)
    found = judge_reconstruction(sae, [x])
    error = x - recons
    assert found.n_vectors == n
    assert found.fvu == pytest.approx(float(error.square().sum() / (x - x.mean(0)).square().sum()))
    explained = 1 - float(error.var(0).sum() / x.var(0).sum())
    assert found.explained_variance == pytest.approx(explained, abs=1e-5)
    assert found.mse == pytest.approx(float(error.square().sum(1).mean()))
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(x, recons, strict=True)]
    assert found.cosine == pytest.approx(sum(cosines) / n, abs=1e-5)
    assert found.norm_ratio == pytest.approx(float(recons.norm(dim=1).sum() / x.norm(dim=1).sum()))
    assert found.l0 == pytest.approx(sum(int((row > 0).sum()) for row in latents) / n)
    share = [sum(float(value) > 0 for value in column) / n for column in latents.T]
    assert found.density.tolist() == pytest.approx(share)
    assert found.dead_share == sum(each == 0 for each in share) / d_sae
    assert found.always_on_share == sum(each > 0.9 for each in share) / d_sae


@pytest.mark.parametrize("sizes", [[1, 1, 1, 37], [7, 20, 0, 13], [39, 1]], ids=str)
def test_batches_give_what_one_batch_gives(sizes: list[int], plain_sae: Any) -> None:
    sae, x = plain_sae(6, 12), vectors(40, 6, offset=1000.0)  # where squares would cancel
    whole, parts = judge_reconstruction(sae, [x]), judge_reconstruction(sae, x.split(sizes))
    for name, value in vars(whole).items():
        other = getattr(parts, name)
        if isinstance(value, Tensor):
            torch.testing.assert_close(other, value)
        else:
            # The size of the batch decides how float32 is rounded: at 1000 by 6e-5, and the
            # variance, 1, is of 240 numbers.
            assert other == pytest.approx(value, rel=1e-5), name


def test_memory_holds_sums_and_no_vectors(plain_sae: Any) -> None:
    sae, meter = plain_sae(6, 12), ReconstructionMeter()
    for seed in range(3):
        x = vectors(100 + seed, 6)
        meter.update(x, x, sae.encode(x))
    # How often each latent was active; mean and squared distance, of vectors, of their directions
    # and of errors; and the sums of vectors whose lengths are alike to 1 %, of 0.3 to 10 times
    # the root mean square.
    assert sum(each.numel() for each in _tensors(meter)) <= 12 + 3 * 2 * 6 + 355 * (6 + 3)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    held = value.values() if isinstance(value, dict) else getattr(value, "__dict__", {}).values()
    return [tensor for each in held for tensor in _tensors(each)]


def spiked(n: int, d: int, offset: float = 0.0) -> Tensor:
    """Vectors of which every fifth is thirty times as long, and in one direction."""
    x = vectors(n, d, offset)
    x[::5] = 30 * x.norm(dim=1).median() * torch.eye(d)[0] + x[::5]
    return x


@pytest.mark.parametrize(("n", "d", "d_sae"), SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("offset", [0.0, 40.0], ids=["about 0", "far from 0"])
def test_shares_of_variance_with_massive_vectors(
    n: int, d: int, d_sae: int, offset: float, plain_sae: Any
) -> None:
    sae, x = plain_sae(d, d_sae), spiked(n, d, offset)
    recons = sae.decode(sae.encode(x))
    found = judge_reconstruction(sae, x.split(7))
    is_long = torch.zeros(n, dtype=torch.bool)
    is_long[::5] = True

    def fvu(x: Tensor, recons: Tensor) -> float:
        x, recons = x.double(), recons.double()
        return float((x - recons).square().sum() / (x - x.mean(0)).square().sum())

    lengths = x.norm(dim=1, keepdim=True)
    apart = (x.double() - x.double().mean(0)).square().sum(1)
    assert found.fvu == pytest.approx(fvu(x, recons), rel=1e-5)
    assert found.fvu_without_massive == pytest.approx(fvu(x[~is_long], recons[~is_long]), rel=1e-4)
    assert found.fvu_normalized == pytest.approx(fvu(x / lengths, recons / lengths), rel=1e-4)
    assert found.massive_share == pytest.approx(float(is_long.float().mean()))
    assert found.massive_variance == pytest.approx(float(apart[is_long].sum() / apart.sum()))


def test_without_massive_vectors_they_are_not_missed(plain_sae: Any) -> None:
    found = judge_reconstruction(plain_sae(16, 40), [vectors(64, 16)])
    assert found.fvu_without_massive == found.fvu
    assert (found.massive_share, found.massive_variance) == (0, 0)


def test_a_constant_error_is_unexplained_but_no_variance() -> None:
    x = vectors(30, 4)
    shifted = SimpleNamespace(encode=lambda x: x, decode=lambda latents: latents + 1.0)
    found = judge_reconstruction(shifted, [x])
    assert found.explained_variance == pytest.approx(1.0)
    assert found.fvu == pytest.approx(30 * 4 / float((x - x.mean(0)).square().sum()))


def test_perfect_mean_and_zero_have_known_numbers() -> None:
    x = vectors(30, 4)
    same = SimpleNamespace(encode=lambda x: x, decode=lambda latents: latents)
    mean = SimpleNamespace(encode=lambda x: 0 * x, decode=lambda latents: latents + x.mean(0))
    perfect, poor = judge_reconstruction(same, [x]), judge_reconstruction(mean, [x])
    assert (perfect.fvu, perfect.explained_variance, perfect.mse) == (0, 1, 0)
    assert perfect.cosine == pytest.approx(1)
    assert poor.fvu == pytest.approx(1)
    assert poor.explained_variance == pytest.approx(0, abs=1e-6)
    assert (poor.l0, poor.dead_share) == (0, 1)


def test_one_vector_has_no_variance_to_explain(plain_sae: Any) -> None:
    found = judge_reconstruction(plain_sae(4, 8), [vectors(1, 4)])
    assert found.fvu != found.fvu and found.n_vectors == 1


def test_a_transcoder_is_judged_by_what_it_should_write(plain_sae: Any) -> None:
    sae, x, y = plain_sae(4, 8, 3), vectors(20, 4), vectors(20, 3)
    found = judge_reconstruction(sae, [(x, y)])
    error = y - sae.decode(sae.encode(x))
    assert found.fvu == pytest.approx(float(error.square().sum() / (y - y.mean(0)).square().sum()))


def test_histogram_of_densities_counts_every_living_latent() -> None:
    density = torch.tensor([0.0, 1e-7, 1e-6, 0.01, 0.5, 1.0], dtype=torch.float64)
    numbers = dict.fromkeys([each.name for each in fields(Reconstruction)], 0.0)
    found = Reconstruction(**numbers | {"n_vectors": 10, "density": density})
    found = found.density_histogram(-6, 3)
    assert found.counts.tolist() == [1, 0, 3]  # an edge belongs to the bin above it
    assert found.n_outside == 2


def test_nothing_to_judge_is_said(plain_sae: Any) -> None:
    with pytest.raises(InputError, match="no vectors were given"):
        judge_reconstruction(plain_sae(4, 8), [])


def test_output_that_is_not_finite_or_of_another_shape_is_said(plain_sae: Any) -> None:
    sae, x = plain_sae(4, 8), vectors(5, 4)
    with pytest.raises(SpliceError, match=r"batch 0 of the reconstructions is \(5, 4\)"):
        judge_reconstruction(sae, [(x, vectors(5, 3))])
    sae.b_dec.data[2] = torch.nan
    with pytest.raises(SpliceError, match="batch 1 of the reconstructions holds values"):
        bad_later = SimpleNamespace(encode=sae.encode, decode=lambda latents: latents @ sae.W_dec)
        bad_later.decode = lambda f: f @ sae.W_dec + (0 if len(f) == 5 else sae.b_dec)
        judge_reconstruction(bad_later, [x, vectors(6, 4)])


def test_nearest_cosine_is_that_of_the_loop(plain_sae: Any) -> None:
    sae = plain_sae(5, 9)
    found = decoder_cosines(sae)
    rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    loop = [max(float(rows[i] @ rows[j]) for j in range(9) if j != i) for i in range(9)]
    assert found.nearest.tolist() == pytest.approx(loop, abs=1e-6)
    assert found.mean_nearest == pytest.approx(sum(loop) / 9, abs=1e-6)
    assert int(found.histogram().counts.sum()) == 9


def test_nearest_cosine_among_thousands(plain_sae: Any) -> None:
    sae = plain_sae(5, 1100)  # more than are looked at together
    rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    cosines = (rows @ rows.T).fill_diagonal_(-1)
    torch.testing.assert_close(decoder_cosines(sae).nearest, cosines.amax(dim=1))


def test_directions_are_found_without_a_decoder_matrix(plain_sae: Any) -> None:
    sae = plain_sae(5, 9)
    hidden = SimpleNamespace(encode=sae.encode, decode=sae.decode, d_sae=9)
    torch.testing.assert_close(decoder_directions(hidden), decoder_directions(sae))
    with pytest.raises(SpliceError, match="neither a W_dec nor a d_sae"):
        decoder_directions(SimpleNamespace(decode=sae.decode))


@pytest.mark.parametrize("d_sae", [1, 3])
def test_dead_directions_have_no_neighbour(d_sae: int, plain_sae: Any) -> None:
    sae = plain_sae(5, d_sae)
    sae.W_dec.data[0] = 0
    assert decoder_cosines(sae).nearest[0] == 0
