import pytest
import torch

from hooked_whisper.sae.training.initialise import find_scale, first_b_dec, geometric_median


def test_no_other_point_has_less_distance_to_all() -> None:
    x = torch.randn(200, 3) ** 3 + torch.tensor([5.0, -2.0, 0.0])
    median = geometric_median(x)

    def distance(point: torch.Tensor) -> float:
        return float((x - point).norm(dim=1).double().sum())

    steps = torch.randn(100, 3) * torch.logspace(-3, 0, 100)[:, None]
    assert all(distance(median) <= distance(median + step) + 1e-3 for step in steps)
    assert distance(median) < distance(x.mean(dim=0)) - 1


def test_a_few_far_vectors_hardly_move_it() -> None:
    x = torch.randn(1000, 8) + 3
    x[:20] = 1e4
    assert (geometric_median(x) - 3).norm() < 0.3
    assert (x.mean(dim=0) - 3).norm() > 100


def test_it_may_lie_on_a_vector() -> None:
    torch.testing.assert_close(geometric_median(torch.full((5, 2), 7.0)), torch.full((2,), 7.0))


def test_scaled_vectors_are_as_long_as_the_root_of_their_width() -> None:
    x = torch.randn(500, 12) * 30 + 2
    assert (x * find_scale(x)).norm(dim=1).mean() == pytest.approx(12**0.5)
    assert find_scale(torch.zeros(3, 12)) == 1.0


def test_the_other_beginnings() -> None:
    x = torch.randn(50, 4)
    assert torch.equal(first_b_dec("mean", x), x.mean(dim=0))
    assert torch.equal(first_b_dec("zeros", x), torch.zeros(4))
