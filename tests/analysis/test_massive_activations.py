"""Which vectors are massive, and sums without them, against what is computed of all at once."""

import pytest
import torch

from hooked_whisper.analysis.massive_activations import SumsByNorm, is_massive
from hooked_whisper.errors import InputError


def drawn(n: int = 200, d: int = 5) -> torch.Tensor:
    """Vectors of lengths that spread over four orders of magnitude."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, generator=generator)
    return x * (10 ** (torch.rand(n, 1, generator=generator) * 4 - 2))


@pytest.mark.parametrize("times", [1.5, 3.0, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_massive_is_over_so_many_times_the_median(times: float, dtype: torch.dtype) -> None:
    x = drawn().to(dtype)
    lengths = [float(row.double().norm()) for row in x]
    limit = times * sorted(lengths)[99]  # the lower one of the two in the middle
    near = [abs(length / limit - 1) < 1e-3 for length in lengths]
    found = is_massive(x, times).tolist()
    for got, length, unsure in zip(found, lengths, near, strict=True):
        assert unsure or got == (length > limit)
    assert any(found) and not all(found)


@pytest.mark.parametrize("sizes", [[200], [1, 0, 99, 100], [50] * 4], ids=str)
def test_sums_without_the_massive_are_those_of_the_others(sizes: list[int]) -> None:
    x, sums = drawn().double(), SumsByNorm()
    x[::3] *= 100 / x[::3].norm(dim=1, keepdim=True).clamp(max=100)
    x = torch.where(x.norm(dim=1, keepdim=True) > 50, x, x / x.norm(dim=1, keepdim=True))
    errors = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for part, error in zip(x.split(sizes), errors.split(sizes), strict=True):
        sums.add(part, error)
    usual, every = sums.parted(3.0)
    lengths = x.norm(dim=1)
    limit = 3 * float(lengths.sort().values[99])
    own = lengths <= limit
    assert 66 < int((~own).sum()) < 99  # all of them far over the limit
    assert (usual.n, every.n) == (int(own.sum()), 200)
    assert usual.squared_error == pytest.approx(float(errors[own].sum()))
    for part, chosen in ((usual, x[own]), (every, x)):
        spread = float((chosen - chosen.mean(0)).square().sum())
        assert part.spread == pytest.approx(spread, rel=1e-9)
    about = float((x[own] - x.mean(0)).square().sum())
    assert usual.spread_about(every) == pytest.approx(about, rel=1e-9)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="times is 1; it must be over 1"):
        is_massive(drawn(), 1)
    with pytest.raises(InputError, match="no vectors were added"):
        SumsByNorm().parted()
